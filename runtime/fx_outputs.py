"""Results of Dynamo's graphs as eager gives them: their strides, and the memory that they share.

Python runs between graphs and sees both. A view of an argument that is written to after a graph break changes the
argument, and ``.view`` of a result asks for its strides. Kernels return values, so here they become views again.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._C._functorch import is_functorch_wrapped_tensor

from ..ir.errors import UnsupportedError

Geometry = tuple[tuple[Any, ...], tuple[Any, ...], Any]  # sizes, strides, offset
_MAX_KNOWN = 1024
_Reader = Callable[[Sequence[Any]], int]


@dataclass(frozen=True)
class Argument:
    """A result that is an input itself, at this place."""

    place: int


@dataclass(frozen=True)
class View:
    """A result in the memory of an input, or of another result of the compiled graph.

    Attributes:
        place: which one.
        of_input: whether it is an input.
        base: the geometry of that one in the trace.
        own: that of the view.
        requires_grad: whether it requires grad, as views do that are made of a weight where gradients are disabled.
    """

    place: int
    of_input: bool
    base: Geometry
    own: Geometry
    requires_grad: bool = False


@dataclass(frozen=True)
class Fresh:
    """A result of the compiled graph at this place, with its strides; None where they are not known."""

    place: int
    own: Geometry | None


Recipe = Argument | View | Fresh


class Outputs:
    """How the results of a graph are had from its inputs and from what the compiled graph returns.

    Attributes:
        kept: what the compiled graph returns.
    """

    def __init__(
        self,
        kept: Sequence[Any],
        recipes: Sequence[Recipe],
        same: Sequence[int],
        symbols: Mapping[Any, _Reader],
        several: Any,
    ) -> None:
        """``same`` is for each result the first that is the same object; ``symbols``, where calls show each size."""
        self.kept = tuple(kept)
        self._recipes = tuple(recipes)
        self._same = tuple(same)
        self._several = several  # the type of the graph's result; None where it is one value
        used = {s for recipe in recipes for s in _symbols_in(recipe)}
        self._symbols = {symbol: read for symbol, read in symbols.items() if symbol in used}
        self._known: dict[tuple[int, ...], list[Recipe]] = {}

    def make(self, inputs: Sequence[Any], results: Sequence[Any]) -> Any:
        """The graph's results."""
        sizes = tuple([read(inputs) for read in self._symbols.values()])
        recipes = self._known.get(sizes)
        if recipes is None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            values = dict(zip(self._symbols, sizes, strict=True))
            recipes = self._known[sizes] = [_concrete(recipe, values) for recipe in self._recipes]
        found: list[Any] = []
        bases: dict[int, Tensor] = {}
        for place, recipe in enumerate(recipes):
            first = self._same[place]
            found.append(found[first] if first < place else _make(recipe, inputs, results, bases))
        return found[0] if self._several is None else self._several(found)


def _make(recipe: Recipe, inputs: Sequence[Any], results: Sequence[Any], bases: dict[int, Tensor]) -> Any:
    """A result; ``bases`` holds what views are of, so that those of one tensor share its memory."""
    if isinstance(recipe, Argument):
        return inputs[recipe.place]
    if isinstance(recipe, Fresh):
        result = results[recipe.place]
        return result if recipe.own is None else bases.setdefault(recipe.place, _with_strides(result, recipe.own[1]))
    sizes, strides, offset = recipe.own
    if recipe.of_input:
        base = inputs[recipe.place] if recipe.requires_grad else inputs[recipe.place].detach()
    else:
        if recipe.place not in bases:
            bases[recipe.place] = _with_strides(results[recipe.place], recipe.base[1])
        base = bases[recipe.place]
    return base.as_strided(sizes, strides, base.storage_offset() + offset - recipe.base[2])


def _with_strides(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """The tensor where its elements already lie so, a copy that does otherwise."""
    have = tensor.stride()
    if have == strides or all(a == b or size < 2 for a, b, size in zip(have, strides, tensor.shape, strict=True)):
        return tensor
    repeated = [axis for axis, stride in enumerate(strides) if stride == 0 and tensor.shape[axis] > 1]
    shown = tensor
    for axis in repeated:  # one place in memory for all of them, as expand makes it
        shown = shown.narrow(axis, 0, 1)
    return torch.empty_strided(shown.shape, strides, dtype=tensor.dtype).copy_(shown).expand(tensor.shape)


def _concrete(recipe: Recipe, values: Mapping[Any, int]) -> Recipe:
    if isinstance(recipe, View):
        return replace(recipe, base=_numbers(recipe.base, values), own=_numbers(recipe.own, values))
    if isinstance(recipe, Fresh) and recipe.own is not None:
        return replace(recipe, own=_numbers(recipe.own, values))
    return recipe


def _numbers(value: Any, values: Mapping[Any, int]) -> Any:
    if isinstance(value, tuple):
        return tuple(_numbers(v, values) for v in value)
    return value if isinstance(value, int) else int(value.xreplace(values))


def _symbols_in(value: Any) -> set[Any]:
    if isinstance(value, tuple):
        return {s for v in value for s in _symbols_in(v)}
    if isinstance(value, View):
        return _symbols_in((value.base, value.own))
    if isinstance(value, Fresh):
        return _symbols_in(value.own)
    return set(getattr(value, "free_symbols", ()))


# --- planning ---------------------------------------------------------------------------------------------------------


def outputs_of(gm: fx.GraphModule) -> Outputs:
    """How the results of a graph lie in memory, as Dynamo's fake values tell. Without those, in any way.

    Raises:
        UnsupportedError: a result shows memory in a way that no strides say: in another dtype, or conjugated.
    """
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    (output,) = (node for node in gm.graph.nodes if node.op == "output")
    returned: Any = output.args[0]
    leaves = list(returned) if isinstance(returned, list | tuple) else [returned]
    symbols = _symbols(placeholders)
    planner = _Planner(gm, placeholders, leaves, set(symbols))
    recipes = [planner.recipe(leaf) for leaf in leaves]
    same = [next(i for i, other in enumerate(leaves) if other is leaf) for leaf in leaves]
    several = type(returned) if isinstance(returned, list | tuple) else None
    return Outputs(planner.kept, recipes, same, symbols, several)


def with_outputs(gm: fx.GraphModule, kept: Sequence[Any]) -> fx.GraphModule:
    """A graph that returns these of its values."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(gm.graph, copies)
    graph.output(tuple(copies[value] if isinstance(value, fx.Node) else value for value in kept))
    return fx.GraphModule(gm, graph)


class _Planner:
    def __init__(
        self, gm: fx.GraphModule, placeholders: Sequence[fx.Node], leaves: Sequence[Any], symbols: set[Any]
    ) -> None:
        self.kept: list[Any] = []
        self.symbols = symbols
        self.inputs = {key for node in placeholders if (key := _storage(node)) is not None}
        self.placeholders = placeholders
        self.owners: dict[int, fx.Node] = {}
        for node in gm.graph.nodes:
            key = _storage(node)
            if key is not None:
                self.owners.setdefault(key, node)
        nodes = dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, fx.Node))
        self.shared = [_storage(node) for node in nodes]

    def recipe(self, leaf: Any) -> Recipe:
        key = _storage(leaf)
        if key is None:
            return Fresh(self._keep(leaf), None)
        own, fake = _geometry(leaf), leaf.meta["example_value"]
        if key in self.inputs:
            return self._of_input(leaf, own, fake, key)
        if self.shared.count(key) > 1:
            owner = self.owners[key]
            _check_view(fake, owner.meta["example_value"])
            return self._known(View(self._keep(owner), False, _geometry(owner), own))
        found = Fresh(self._keep(leaf), own)
        return found if _symbols_in(found) <= self.symbols else Fresh(found.place, None)

    def _of_input(self, leaf: fx.Node, own: Geometry, fake: Tensor, key: int) -> Recipe:
        if leaf in self.placeholders:
            return Argument(self.placeholders.index(leaf))
        place = self._place_of(leaf, key)
        base = self.placeholders[place]
        _check_view(fake, base.meta["example_value"])
        return self._known(View(place, True, _geometry(base), own, fake.requires_grad))

    def _place_of(self, leaf: fx.Node, key: int) -> int:
        """Which input a result is a view of: several may share memory in the trace, and not in a later call."""
        seen, found = {leaf}, set()
        pending = [leaf]
        while pending:
            node = pending.pop()
            if node in self.placeholders and _storage(node) == key:
                found.add(self.placeholders.index(node))
            fresh = [x for x in node.all_input_nodes if x not in seen and _storage(x) in (key, None)]
            seen.update(fresh)
            pending.extend(fresh)
        if len(found) != 1:
            raise UnsupportedError("a result shows the memory of an input, and it is not known of which")
        return found.pop()

    def _known(self, view: View) -> View:
        if not _symbols_in(view) <= self.symbols:
            raise UnsupportedError("a result shows a part of another tensor's memory that depends on data")
        return view

    def _keep(self, leaf: Any) -> int:
        for place, other in enumerate(self.kept):
            if other is leaf:
                return place
        self.kept.append(leaf)
        return len(self.kept) - 1


def _storage(node: Any) -> int | None:
    """What tells the memory of a node's value; None for what has none, or is not known."""
    fake = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    if not isinstance(fake, Tensor) or fake.layout is not torch.strided or is_functorch_wrapped_tensor(fake):
        return None
    return int(fake.untyped_storage()._cdata)


def _check_view(fake: Tensor, base: Tensor) -> None:
    same = fake.dtype == base.dtype and fake.is_conj() == base.is_conj() and fake.is_neg() == base.is_neg()
    if not same:
        raise UnsupportedError("a result shows the memory of another tensor in another dtype")


def _geometry(node: fx.Node) -> Geometry:
    fake: Tensor = node.meta["example_value"]
    return _dims(fake.shape), _dims(fake.stride()), _dims((fake.storage_offset(),))[0]


def _dims(values: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(_dim(value) for value in values)


def _dim(value: Any) -> Any:
    if not isinstance(value, torch.SymInt):
        return int(value)
    expression = value.node.expr
    return int(expression) if expression.is_number else expression


def _symbols(placeholders: Sequence[fx.Node]) -> dict[sympy.Symbol, _Reader]:
    """Where the inputs of a call show the size of each symbol."""
    found: dict[sympy.Symbol, _Reader] = {}
    for place, node in enumerate(placeholders):
        fake = node.meta.get("example_value")
        if isinstance(fake, torch.SymInt):
            _enter(found, fake, operator.itemgetter(place))
        elif isinstance(fake, Tensor) and fake.layout is torch.strided:
            for axis, size in enumerate(fake.shape):
                _enter(found, size, partial(_size, place, axis))
            for axis, stride in enumerate(fake.stride()):
                _enter(found, stride, partial(_stride, place, axis))
    return found


def _size(place: int, axis: int, inputs: Sequence[Any]) -> int:
    return int(inputs[place].shape[axis])


def _stride(place: int, axis: int, inputs: Sequence[Any]) -> int:
    return int(inputs[place].stride(axis))


def _enter(found: dict[sympy.Symbol, Any], size: Any, read: Callable[[Sequence[Any]], int]) -> None:
    expression = _dim(size)
    if isinstance(expression, sympy.Symbol):
        found.setdefault(expression, read)
