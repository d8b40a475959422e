"""The element of a node at a position, as a term of the solver: what the graph means, one element at a time.

Views and concatenations become positions in what they read; operands are functions of their row-major offset; a sum or
another combination along axes is an unknown function of the whole row (as a function of its positions) and of its size.
Composites are taken by their definition.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import sympy
import z3

from ...ir import ops
from ...ir.node import Node, OpDef, Trait, topological
from ...ir.types import Shape
from .positions import BeyondProofError, Position, expanded, offset, regrouped
from .scalars import Free, Term, whole_number

_Steps = Generator[tuple[Node, Position], Term, Term]  # asks for elements of operands, gives the element


def entails(solver: Any, more: list[Term], claim: Term) -> bool:
    """Whether a claim follows from what a solver holds and more."""
    solver.push()
    solver.add(*more, z3.Not(claim))
    found = solver.check() == z3.unsat
    solver.pop()
    return bool(found)


class Elements:
    """Elements of nodes under one reading of scalars.

    ``facts`` are what holds of sizes and indices, ``claims`` what has to hold for the nodes to make sense: slices that
    lie within what they cut.
    """

    def __init__(self, scalars: Free, facts: list[Term], effort: int) -> None:
        self.scalars, self.facts = scalars, facts
        self.claims: list[Term] = []
        self._solver = z3.Solver()
        self._solver.set("rlimit", effort)
        self._solver.add(*facts)
        self._ranges: dict[Any, Term] = {}  # of the indices of rows: they hold inside the row alone
        self._heights: dict[Node, int] = {}
        self._known: dict[tuple[Node, Position], Term] = {}

    def at(self, node: Node, position: Position) -> Term:
        """The element of a node of primitives at a position within its shape.

        Raises:
            SplitIndex: an index of the position has to be split into several.
            BeyondProofError: there is no meaning for something.
        """
        stack = [((node, position), self._steps(node, position))]
        answer: Term = None
        while stack:
            key, steps = stack[-1]
            try:
                wanted = steps.send(answer)
            except StopIteration as finished:
                answer = self._known[key] = finished.value
                stack.pop()
                continue
            answer = self._known.get(wanted)
            if answer is None:
                stack.append((wanted, self._steps(*wanted)))
        return answer

    def within(self, part: Any, size: Any) -> bool:
        """Whether 0 <= part < size follows from the facts, for indices within their ranges."""
        number = whole_number(part)
        ranges = [self._ranges[x] for x in part.free_symbols if x in self._ranges]
        return entails(self._solver, ranges, z3.And(number >= 0, number < whole_number(size)))

    def _steps(self, node: Node, position: Position) -> _Steps:
        if node.op in (ops.input, ops.weight):
            return self._read(node, position)
        if node.op in _MEANING:
            return _MEANING[node.op](self, node, position)
        if node.has(Trait.POINTWISE):
            return self._pointwise(node, position)
        if node.has(Trait.REDUCTION) and "dims" in node.attrs:
            return self._reduction(node, position)
        raise BeyondProofError(f"{node.op.name} has no reading")

    def _read(self, node: Node, position: Position) -> _Steps:
        yield from ()
        return self.read(node, offset(position, node.shape))

    def read(self, source: Node, at: Any) -> Term:
        """An element of an input or a weight, by its row-major offset."""
        name = f"{source.op.name} {source.attrs['name']}"
        return z3.Function(name, z3.IntSort(), self.scalars.sort(source.dtype))(whole_number(at))

    def _pointwise(self, node: Node, position: Position) -> _Steps:
        args = []
        for x in node.inputs:
            args.append((yield x, _narrowed(position, x.shape)))
        return self.scalars.apply(node, args)

    # --- rows

    def _reduction(self, node: Node, position: Position) -> _Steps:
        x, dims = node.inputs[0], tuple(node.attrs["dims"])  # type: ignore[arg-type]
        if not dims:
            return (yield x, position)
        bound = self._indices(node, tuple(x.shape[d] for d in dims))
        kept = iter(position if not node.attrs["keepdim"] else [p for d, p in enumerate(position) if d not in dims])
        at = tuple(bound[dims.index(d)] if d in dims else next(kept) for d in range(x.tensor_type.rank))
        body = yield x, at
        return self._combined(node.op.name, node, [body], bound, tuple(x.shape[d] for d in dims))

    def product(self, node: Node, position: Position) -> _Steps:
        """A matrix product: a function of a row and a column."""
        a, b = node.inputs
        *batch, row, column = position
        (k,) = self._indices(node, (a.shape[-1],))
        left = yield a, (*_narrowed(tuple(batch), a.shape[:-2]), row, k)
        right = yield b, (*_narrowed(tuple(batch), b.shape[:-2]), k, column)
        return self._combined("matmul", node, [left, right], [k], (a.shape[-1],))

    def _indices(self, node: Node, sizes: Shape) -> list[Any]:
        """Indices that run along axes, named so that equal rows are equal terms, and none captures another's."""
        found: list[Any] = []
        for axis, size in enumerate(sizes):
            if size == 1:
                found.append(sympy.Integer(0))
                continue
            name = f"_r{self._height(node)}_{axis}_{size}"
            index = sympy.Symbol(name, integer=True, nonnegative=True)
            number = whole_number(index)
            self._ranges[index] = z3.And(number >= 0, number < whole_number(size))
            found.append(index)
        return found

    def _height(self, node: Node) -> int:
        """How many combinations are nested in a node."""
        for x in topological([node]) if node not in self._heights else ():
            below = max((self._heights[y] for y in x.inputs), default=0)
            self._heights[x] = below + x.has(Trait.REDUCTION, Trait.CONTRACTION)
        return self._heights[node]

    def _combined(self, name: str, node: Node, bodies: list[Term], bound: list[Any], sizes: Shape) -> Term:
        names = [index.name for index in bound if index.is_Symbol] or ["_r"]
        rows = [z3.Lambda([z3.Int(name) for name in names], body) for body in bodies]
        lengths = [whole_number(size) for size in sizes]
        return self.scalars.combine(name, node, rows, lengths)


def _narrowed(position: Position, shape: Shape) -> Position:
    """The position in an operand that broadcasts: index 0 along axes of size 1."""
    own = position[len(position) - len(shape) :]
    return tuple(0 if size == 1 else index for index, size in zip(own, shape, strict=True))


def _replaced(position: Position, dim: int, index: Any) -> Position:
    return (*position[:dim], expanded(index), *position[dim + 1 :])


def _reshape(self: Elements, node: Node, position: Position) -> _Steps:
    x = node.inputs[0]
    while x.op is ops.reshape:
        x = x.inputs[0]
    if x.shape == node.shape:
        return (yield x, position)
    if x.op in (ops.input, ops.weight):
        return self.read(x, offset(position, node.shape))
    return (yield x, regrouped(position, node.shape, x.shape, self.within))


def _permute(self: Elements, node: Node, position: Position) -> _Steps:
    dims: Any = node.attrs["dims"]
    return (yield node.inputs[0], tuple(position[dims.index(d)] for d in range(len(dims))))


def _expand(self: Elements, node: Node, position: Position) -> _Steps:
    return (yield node.inputs[0], _narrowed(position, node.inputs[0].shape))


def _slice(self: Elements, node: Node, position: Position) -> _Steps:
    dim, start, stop, step = (node.attrs[name] for name in ("dim", "start", "stop", "step"))
    x: Any = node.inputs[0]
    first, last, size = whole_number(start), whole_number(stop), whole_number(x.shape[dim])
    self.claims.append(z3.And(first >= 0, first <= last, last <= size))
    return (yield x, _replaced(position, dim, start + step * position[dim]))  # type: ignore[index, arg-type]


def _windows(self: Elements, node: Node, position: Position) -> _Steps:
    attrs: Any = node.attrs
    dim, size, step, apart, count = (attrs[name] for name in ("dim", "size", "step", "apart", "count"))
    x: Any = node.inputs[0]
    many, last = whole_number(count), whole_number(expanded((count - 1) * step + (size - 1) * apart))
    self.claims.append(z3.Or(many == 0, z3.And(many > 0, last < whole_number(x.shape[dim]))))
    at = expanded(position[dim] * step + position[dim + 1] * apart)
    return (yield x, (*position[:dim], at, *position[dim + 2 :]))


def _flip(self: Elements, node: Node, position: Position) -> _Steps:
    for d in node.attrs["dims"]:  # type: ignore[union-attr]
        position = _replaced(position, d, node.shape[d] - 1 - position[d])  # type: ignore[index, arg-type]
    return (yield node.inputs[0], position)


def _concat(self: Elements, node: Node, position: Position) -> _Steps:
    dim: Any = node.attrs["dim"]
    index, start, parts = position[dim], 0, []
    for x in node.inputs:
        element = yield x, _replaced(position, dim, index - start)
        start = start + x.shape[dim]
        parts.append((whole_number(expanded(index)) < whole_number(expanded(start)), element))
    found = parts[-1][1]
    for condition, element in reversed(parts[:-1]):
        found = z3.If(condition, element, found)
    return found


def _pad(self: Elements, node: Node, position: Position) -> _Steps:
    x, low = node.inputs[0], node.attrs["low"]
    inner = tuple(expanded(p - lo) for p, lo in zip(position, low, strict=True))  # type: ignore[arg-type]
    element = yield x, inner
    pairs = [(whole_number(p), whole_number(size)) for p, size in zip(inner, x.shape, strict=True)]
    inside = z3.And(*(z3.And(p >= 0, p < size) for p, size in pairs))
    return z3.If(inside, element, self.scalars.constant(node.attrs["value"], node.dtype))


def _full(self: Elements, node: Node, position: Position) -> _Steps:
    yield from ()
    return self.scalars.constant(node.attrs["value"], node.dtype)


def _arange(self: Elements, node: Node, position: Position) -> _Steps:
    yield from ()
    start, step = node.attrs["start"], node.attrs["step"]
    if isinstance(start, float) or isinstance(step, float):
        raise BeyondProofError("a range of fractions")
    return self.scalars.size(expanded(start + step * position[0]), node.dtype)


def _index(self: Elements, node: Node, position: Position) -> _Steps:
    """A look-up by positions that are known; they count from the start where they are proved not to be negative."""
    x, *indices = node.inputs
    dim: Any = node.attrs["dim"]
    rank = node.tensor_type.rank - (x.tensor_type.rank - len(indices))
    inner = position[dim : dim + rank]
    picked = [_position_value(i, _narrowed(inner, i.shape), self) for i in indices]
    if not all(self.within(p, x.shape[dim + k]) for k, p in enumerate(picked)):
        raise BeyondProofError("a look-up that may be out of range")
    return (yield x, (*position[:dim], *picked, *position[dim + rank :]))


def _position_value(node: Node, position: Position, elements: Elements) -> Any:
    """The value of an integer node that ranges and views of them make, as a position."""
    while node.op in (ops.reshape, ops.expand):
        x = node.inputs[0]
        position = (
            _narrowed(position, x.shape)
            if node.op is ops.expand
            else regrouped(position, node.shape, x.shape, elements.within)
        )
        node = x
    if node.op is ops.full:
        return expanded(node.attrs["value"])
    if node.op is ops.arange:
        return expanded(node.attrs["start"] + node.attrs["step"] * position[0])
    raise BeyondProofError("a look-up by values")


_MEANING: dict[OpDef, Callable[[Elements, Node, Position], _Steps]] = {
    ops.reshape: _reshape,
    ops.permute: _permute,
    ops.expand: _expand,
    ops.slice_: _slice,
    ops.windows: _windows,
    ops.flip: _flip,
    ops.concat: _concat,
    ops.pad: _pad,
    ops.full: _full,
    ops.arange: _arange,
    ops.index: _index,
    ops.matmul: Elements.product,
}
