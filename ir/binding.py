"""Size symbols bound to numbers by the shapes that a graph is called with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy

from .errors import InputError, TypeRuleError
from .graph import Graph
from .types import Dim, concrete, symbols_of

Sizes = dict[sympy.Symbol, int]


def bind_symbols(
    graph: Graph, shapes: Sequence[Sequence[int]], sizes: Mapping[sympy.Symbol, int] | None = None
) -> Sizes:
    """The size of each symbol that the inputs' shapes tell, besides those given in ``sizes``.

    A dim that is a plain symbol binds it. A dim that is an expression is checked where its symbols are bound elsewhere;
    where it is a linear function of the only one that is not, it is solved for that one. Symbols that no shape tells
    stay unbound. Plain symbols cost a dictionary look-up.

    Raises:
        InputError: a wrong number of shapes or dims, a size that differs from the declared one or from that of the same
            symbol elsewhere, or one outside its symbol's range. The message names the input and the dim.
    """
    if len(shapes) != len(graph.inputs):
        raise InputError(f"the graph takes {len(graph.inputs)} inputs, got {len(shapes)}")
    binding = _Binding(graph, sizes or {})
    for i, (node, shape) in enumerate(zip(graph.inputs, shapes, strict=True)):
        dims = node.type.shape
        if len(dims) != len(shape):
            raise InputError(f"input {node.attrs['name']!r} has {len(shape)} dims, the graph takes {node.type}")
        for axis, (dim, size) in enumerate(zip(dims, shape, strict=True)):
            if isinstance(dim, int):
                if dim != size:
                    raise binding.error(i, axis, size, f"the graph takes {dim}")
            elif dim.is_Symbol:
                binding.bind(i, axis, size, dim, size)
            else:
                binding.later.append((i, axis, size))
    binding.solve()
    return binding.sizes


class _Binding:
    """Sizes found so far, and the dims that can only be looked at once the plain ones are known."""

    def __init__(self, graph: Graph, sizes: Mapping[sympy.Symbol, int]) -> None:
        self.graph = graph
        self.ranges = {declared.symbol: declared for declared in graph.symbols}
        self.sizes = dict(sizes)
        self.later: list[tuple[int, int, int]] = []
        for symbol, size in sizes.items():
            if symbol in self.ranges and size not in self.ranges[symbol]:
                raise InputError(f"the size {symbol} = {size} is out of range: {self.ranges[symbol]}")

    def error(self, i: int, axis: int, size: int, reason: str) -> InputError:
        name = str(self.graph.inputs[i].attrs["name"])
        error = InputError(f"input {name!r}: dim {axis} is {size}, {reason}")
        error.place = (name, axis)
        return error

    def bind(self, i: int, axis: int, size: int, symbol: sympy.Symbol, value: int) -> None:
        """Give a symbol its value, told by this dim of this input."""
        known = self.sizes.setdefault(symbol, value)
        if known != value:
            raise self.error(i, axis, size, f"but {symbol} is {known} elsewhere")
        if symbol in self.ranges and value not in self.ranges[symbol]:
            raise self.error(i, axis, size, f"out of range: {self.ranges[symbol]}")

    def solve(self) -> None:
        """Solve the linear dims of one unknown, until none is left, then check all."""
        waiting = self.later
        while waiting:
            left = [entry for entry in waiting if not self._solve_one(*entry)]
            if len(left) == len(waiting):
                return
            waiting = left

    def _solve_one(self, i: int, axis: int, size: int) -> bool:
        dim = self.graph.inputs[i].type.shape[axis]
        unknown = [s for s in symbols_of([dim]) if s not in self.sizes]
        if len(unknown) == 1:
            value = _solution(dim, unknown[0], self.sizes, size)
            if value is None:
                return False
            self.bind(i, axis, size, unknown[0], value)
        if unknown[1:]:
            return False
        if concrete(dim, self.sizes) != size:
            raise self.error(i, axis, size, f"the graph takes {dim} = {concrete(dim, self.sizes)}")
        return True


def _solution(dim: Dim, unknown: sympy.Symbol, sizes: Sizes, size: int) -> int | None:
    """The nearest value of the unknown that makes ``dim`` the size, if ``dim`` is linear in it."""
    try:
        at = [concrete(dim, {**sizes, unknown: x}) for x in range(3)]
    except TypeRuleError:
        return None
    slope = at[1] - at[0]
    if slope == 0 or at[2] - at[1] != slope:
        return None
    return max(0, (size - at[0]) // slope)
