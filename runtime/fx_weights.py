"""Weights among the inputs of Dynamo's graphs: bound to the graph, to be packed, and watched for changes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn


def bind_weights(gm: fx.GraphModule, inputs: Sequence[Any]) -> tuple[fx.GraphModule, dict[str, int]]:
    """A graph whose weights are attributes and no longer inputs.

    Dynamo passes a module's parameters and buffers as inputs, and marks them.

    Returns:
        The graph, and the place among the inputs of each weight by its attribute's name.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(gm.graph, copies))
    places: dict[str, int] = {}
    for place, node in enumerate(n for n in gm.graph.nodes if n.op == "placeholder"):
        if _is_weight(node, inputs[place]):
            places[node.name] = place
            _hold(gm, node.name, inputs[place])
            _replace(graph, copies[node], node.name)
    return fx.GraphModule(gm, graph), places


def _is_weight(node: fx.Node, value: Any) -> bool:
    marked = (node.meta.get("tensor_dict") or {}).get("_dynamo_static_input_type") is not None
    if isinstance(value, Tensor) and value.is_inference():
        return False  # it counts no versions, so that nobody notices when it changes
    # transformers marks the tensors of its static caches as well: to each call of generate its own
    return isinstance(value, nn.Parameter) or (isinstance(value, Tensor) and marked and not _is_written(node))


def _is_written(node: fx.Node) -> bool:
    """Whether an operator in place has a node for what it writes to."""
    named = (user.target for user in node.users if user.args and user.args[0] is node)
    names = [target if isinstance(target, str) else getattr(target, "__name__", "") for target in named]
    return any(name == "setitem" or (name.endswith("_") and not name.endswith("__")) for name in names)


def _hold(gm: fx.GraphModule, name: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        setattr(gm, name, tensor)
    else:
        gm.register_buffer(name, tensor, persistent=False)


def _replace(graph: fx.Graph, node: fx.Node, name: str) -> None:
    with graph.inserting_before(node):
        held = graph.create_node("get_attr", name)
    held.meta = dict(node.meta)
    node.replace_all_uses_with(held)
    graph.erase_node(node)


class WeightWatch:
    """Notices weights that were replaced or written to since they were packed: under torch.compile nobody tells.

    What is written through ``.data``, ``.detach().numpy()`` and the like no version counts, so a few words of every
    weight are compared as well. They show what changes a weight as a whole, and not every change of a few elements.
    """

    def __init__(self, places: Mapping[str, int]) -> None:
        self.places = dict(places)
        self._order = tuple(self.places.values())
        self._seen: list[tuple[int, Any]] | None = None
        self._held: list[Tensor] = []  # while these are alive nothing else has their addresses
        self._cells: list[_Cell] = []
        self._words: list[int] = []

    def changed(self, inputs: Sequence[Any]) -> bool:
        """Whether a weight in the inputs of a call is another tensor, or holds other values, than at ``note``."""
        # addresses first: where they are those of before, the words are still there
        return self._state(inputs) != self._seen or [cell.value for cell in self._cells] != self._words

    def note(self, inputs: Sequence[Any]) -> None:
        """Take the weights as they are now for known."""
        state = self._state(inputs)
        if self._seen is None or [place[0] for place in state] != [place[0] for place in self._seen]:
            self._held = [inputs[place].detach() for place in self._order]
            self._cells = [cell for tensor in self._held for cell in _cells(tensor)]
        self._seen, self._words = state, [cell.value for cell in self._cells]

    def weights(self, inputs: Sequence[Any], known: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a capture as they are now. Its names end in the attributes' names."""
        found = dict(known)
        for name in known:
            place = self.places.get(name.rpartition(".")[2])
            if place is not None:
                found[name] = inputs[place].detach()
        return found

    def _state(self, inputs: Sequence[Any]) -> list[tuple[int, Any]]:
        return [(inputs[place].data_ptr(), _version(inputs[place])) for place in self._order]


_Cell = ctypes.c_uint64 | ctypes.c_uint8
_WORDS = 8  # of each weight


def _version(tensor: Tensor) -> Any:
    # Tensors made in inference mode count no versions: each call may have changed them
    return object() if tensor.is_inference() else tensor._version


def _cells(tensor: Tensor) -> list[_Cell]:
    """Words of a tensor's memory to read again: all where it has few, else some from all over it."""
    if not tensor.numel():
        return []
    span = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    begin, last = tensor.data_ptr(), span * tensor.itemsize - 8
    if last < 0:
        return [ctypes.c_uint8.from_address(begin + at) for at in range(last + 8)]
    # multiples of an irrational number, so that they are of many rows and many columns
    some = {int(last * (i * _GOLDEN % 1)) for i in range(1, _WORDS)} | {last}
    few = range(0, last + 1, 8) if last < 8 * _WORDS else some
    return [ctypes.c_uint64.from_address(begin + at) for at in {*few, last}]


_GOLDEN = 0.6180339887498949
