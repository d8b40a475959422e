"""What a mask says of positions: whether it hides exactly the keys after a query's own position.

Masks are written in many ways: ranges of keys and of queries compared with one another, a position added on either
side, shaped before or after. All of them are a sum of multiples of the axes and of single numbers that is at least 0
where a key may be seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from ...ir import ops
from ...ir.node import Node
from ...ir.types import Dim, Shape
from .common import is_size

LIMIT = 32  # operators that are looked at: a mask by position takes about ten


@dataclass(frozen=True)
class Line:
    """An integer tensor as ``sum of factor * position along each axis + sum of factor * number + constant``."""

    shape: Shape
    factors: tuple[int, ...]
    terms: tuple[tuple[int, Node], ...] = ()
    constant: Dim = 0

    def times(self, factor: int) -> Line:
        """A multiple."""
        return replace(
            self,
            factors=tuple(f * factor for f in self.factors),
            terms=tuple((f * factor, x) for f, x in self.terms),
            constant=self.constant * factor,
        )

    def plus(self, other: Line, shape: Shape) -> Line:
        """A sum, broadcast to a shape."""
        pairs = zip(self.spread(shape).factors, other.spread(shape).factors, strict=True)
        return Line(shape, tuple(a + b for a, b in pairs), (*self.terms, *other.terms), self.constant + other.constant)

    def spread(self, shape: Shape) -> Line:
        """The same broadcast to a shape: new axes are in front."""
        return replace(self, shape=shape, factors=(*[0] * (len(shape) - len(self.factors)), *self.factors))

    def shaped(self, shape: Shape) -> Line | None:
        """The same with axes of 1 put in or left out; None for another reshape."""
        longer = [(n, f) for n, f in zip(self.shape, self.factors, strict=True) if n != 1]
        if [n for n, _ in longer] != [n for n in shape if n != 1]:
            return None
        rest = iter(longer)
        return replace(self, shape=shape, factors=tuple(0 if n == 1 else next(rest)[1] for n in shape))


def line_of(root: Node) -> Line | None:
    """An integer tensor as a line, None where it is none that is known."""
    found: dict[Node, Line | None] = {}
    stack = [root]
    while stack:
        node = stack[-1]
        waiting = [x for x in _looked_into(node) if x not in found]
        if waiting and len(found) + len(stack) <= LIMIT:
            stack.extend(waiting)
        else:
            stack.pop()
            found[node] = None if waiting else _line(node, found)
    return found[root]


def _is_exact(x: Node) -> bool:
    """Whether arithmetic on positions is that of whole numbers: in narrower types than int64 it may wrap around."""
    return x.dtype == torch.int64 and not (x.op is ops.cast and x.inputs[0].dtype != torch.int64)


def _looked_into(x: Node) -> Sequence[Node]:
    if not _is_exact(x):
        return ()
    if x.tensor_type.numel == 1:  # one number, whatever it is computed from; p + 1 is still a line in p
        return x.inputs if x.is_a(ops.add, ops.sub) and any(y.is_a(ops.full) for y in x.inputs) else ()
    wanted = (ops.add, ops.sub, ops.neg, ops.cast, ops.reshape, ops.expand)
    return x.inputs if x.is_a(*wanted) else ()


def _line(x: Node, found: dict[Node, Line | None]) -> Line | None:
    if not _is_exact(x):
        return None
    flat = (0,) * len(x.shape)
    if x.is_a(ops.full) and is_size(x.attrs["value"]):
        return Line(x.shape, flat, constant=x.attrs["value"])
    if x.is_a(ops.arange):
        start, step = x.attrs["start"], x.attrs["step"]
        known = is_size(start) and isinstance(step, int)
        return Line(x.shape, (step,), constant=start) if known else None  # type: ignore[arg-type]
    lines = [found[y] for y in _looked_into(x)]
    if x.tensor_type.numel == 1 and not lines:
        return Line(x.shape, flat, ((1, x),))
    known_lines = [line for line in lines if line is not None]
    if not lines or len(known_lines) < len(lines):
        return None
    first = known_lines[0]
    if x.is_a(ops.add, ops.sub):
        return first.plus(known_lines[1].times(1 if x.is_a(ops.add) else -1), x.shape)
    if x.is_a(ops.neg):
        return first.times(-1)
    return first.shaped(x.shape) if x.is_a(ops.reshape) else first.spread(x.shape)


def seen(mask: Node) -> Line | None:
    """The line that is at least 0 where a mask lets a key be seen: a bool mask, or one of 0 and -inf to be added."""
    views: list[Node] = []
    node, hides = mask, False
    while not node.is_a(ops.le, ops.lt):
        if node.is_a(ops.reshape, ops.expand):
            views.append(node)
        elif node.is_a(ops.bit_not) and node.dtype == torch.bool:
            hides = not hides
        elif node.is_a(ops.where) and _filled(node) is not None:
            hides = hides != _filled(node)
        else:
            return None
        node = node.inputs[0]
    left, right = (line_of(x) for x in node.inputs)
    if left is None or right is None:
        return None
    line: Line | None = _compared(right.plus(left.times(-1), node.shape), node.is_a(ops.lt), hides)
    for view in reversed(views):
        if line is not None:
            line = line.shaped(view.shape) if view.is_a(ops.reshape) else line.spread(view.shape)
    return line


def _compared(gap: Line, strict: bool, hides: bool) -> Line:
    """Of left <= right, or left < right, the line that is at least 0 where it holds, or with ``hides`` where not."""
    line = replace(gap, constant=gap.constant - 1) if strict else gap
    return replace(line.times(-1), constant=-line.constant - 1) if hides else line


def _filled(node: Node) -> bool | None:
    """Whether a choice of 0 and -inf hides where its condition holds; None for another choice."""
    values = [x.attrs["value"] if x.is_a(ops.full) else None for x in node.inputs[1:]]
    return {(0.0, -math.inf): False, (-math.inf, 0.0): True}.get((values[0], values[1]))  # type: ignore[arg-type]


def offset_of(mask: Node, queries: Dim, keys: Dim) -> Line | None:
    """The number d for which a mask lets query i see exactly the keys up to i + d, as a line without axes."""
    if mask.tensor_type.rank > 4:
        return None
    line = seen(mask)
    if line is None:
        return None
    whole = line.spread((*[1] * (4 - len(line.shape)), *line.shape)).factors
    fits = not any(whole[:2]) and (queries == 1 or whole[2] == 1) and (keys == 1 or whole[3] == -1)
    return Line((), (), line.terms, line.constant) if fits else None


def as_node(line: Line) -> Node:
    """A line without axes as one number, int64."""
    total: Node | None = None
    for factor, x in sorted(line.terms, key=lambda term: -term[0]):
        number = ops.reshape(x if x.dtype == torch.int64 else ops.cast(x, dtype=torch.int64), shape=())
        number = number if abs(factor) == 1 else ops.mul(number, ops.scalar(abs(factor), torch.int64))
        if total is None:
            total = number if factor > 0 else ops.neg(number)
        else:
            total = (ops.add if factor > 0 else ops.sub)(total, number)
    if total is None:
        return ops.scalar(line.constant, torch.int64)
    return total if line.constant == 0 else ops.add(total, ops.scalar(line.constant, torch.int64))
