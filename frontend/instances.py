"""The layers of a trace as nodes: each is the first of its kind on other arguments and weights (:mod:`.repeats`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..ir import ops
from ..ir.node import Node, Origin, topological
from .repeats import LayerCall


class NotAlike(Exception):
    """Layers that were taken for equal are not: the model must be traced without that."""


@dataclass
class _Layer:
    """What stands for a layer's arguments, the arguments, and what it gives of what stands for them."""

    inputs: list[Node]
    arguments: list[Node]
    outputs: list[Node]


class Instances:
    """The layers of one lowering.

    Args:
        calls: the marked calls of the trace.
        weights: the weights of the layer at a path, by their paths in it.
    """

    def __init__(self, calls: Mapping[int, LayerCall], weights: Callable[[str], dict[str, Node]]) -> None:
        self._calls = calls
        self._weights = weights
        self._layers: dict[int, _Layer] = {}

    def lower(self, name: str, arguments: Sequence[Node], number: int) -> list[Node]:
        """The results of one of the operators that mark a layer.

        Raises:
            NotAlike: the layer is not what the first of its kind is.
        """
        if name == "layer_begin":
            return self._begin(list(arguments), number)
        if name == "layer_end":
            return self._end(list(arguments), number)
        like = self._calls[number].like
        assert like is not None
        return self._instance(like, list(arguments), number)

    def _begin(self, arguments: list[Node], number: int) -> list[Node]:
        inputs = [
            ops.input(name=f"layer {number} argument {i}", shape=x.shape, dtype=x.dtype)
            for i, x in enumerate(arguments)
        ]
        self._layers[number] = _Layer(inputs, arguments, [])
        return inputs

    def _end(self, outputs: list[Node], number: int) -> list[Node]:
        layer, like = self._layers[number], self._calls[number].like
        layer.outputs = outputs
        if like is not None and self._instance(like, layer.inputs, number) != outputs:
            raise NotAlike(f"{self._calls[number].path} is not what {self._calls[like].path} is")
        return self._instance(number, layer.arguments, number)

    def _instance(self, first: int, arguments: list[Node], number: int) -> list[Node]:
        """The results of a layer on the arguments and weights of the call of a number."""
        layer, paths = self._layers[first], (self._calls[first].path, self._calls[number].path)
        new = dict(zip(layer.inputs, arguments, strict=True))
        mine = self._weights(paths[1])
        for path, node in self._weights(paths[0]).items():
            new[node] = mine[path]
        for node in topological(layer.outputs):
            if node not in new:
                new[node] = _on(node, tuple(new[x] for x in node.inputs), *map(_place, paths))
        return [new[x] for x in layer.outputs]


def _on(node: Node, inputs: tuple[Node, ...], old: str, place: str) -> Node:
    """A node of one layer as one of another."""
    if node.op is ops.input or node.attrs.get("serial"):
        raise NotAlike(f"a layer reads {node}, which is neither its argument nor its own")
    if inputs == node.inputs:
        return node
    origin = node.origin
    inside = origin.module == old or origin.module.startswith(f"{old}.")
    module = place + origin.module.removeprefix(old) if inside else origin.module
    return node.with_inputs(inputs, Origin(origin.source, module, origin.made_by))


def _place(path: str) -> str:
    """A layer's path as origins tell it."""
    return path.removeprefix("model").removeprefix(".")
