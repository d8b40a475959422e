"""Boxes of a result on which no guard is needed: the operands of a concatenation, a tensor and the padding around it.

One loop nest a box is faster than one nest with a branch in it, whose loads could not be vectors.
"""

from __future__ import annotations

from itertools import pairwise, product

from ..ir import ops
from ..ir.node import Node, Trait
from ..ir.types import Dim, Shape, canonical_dim
from . import attrs
from .bounds import Bounds

MAX_BOXES = 16  # with more, each box would be small: guards cost less

Box = tuple[tuple[Dim, Dim], ...]  # for each axis where the box starts and how long it is


def boxes_of(node: Node, bounds: Bounds) -> list[Box]:
    """The boxes that a node's result falls into, in row-major order; they cover it and do not overlap."""
    rows = [_intervals(node.shape[d], cuts, bounds) for d, cuts in enumerate(_cuts(node))]
    count = 1
    for row in rows:
        count *= len(row)
    return list(product(*rows)) if count <= MAX_BOXES else [tuple((0, size) for size in node.shape)]


def _cuts(root: Node) -> list[dict[Dim, None]]:
    """Where something changes along each axis, in the order in which it was found."""
    found: list[dict[Dim, None]] = [{} for _ in root.shape]
    stack: list[tuple[Node, Shape]] = [(root, tuple(0 for _ in root.shape))]
    seen = set(stack)
    while stack:
        node, start = stack.pop()
        operands = []
        for x, offset in _placed(node, found, start):
            if (x, offset) not in seen:
                seen.add((x, offset))
                operands.append((x, offset))
        stack.extend(reversed(operands))
    return found


def _placed(node: Node, found: list[dict[Dim, None]], start: Shape) -> list[tuple[Node, Shape]]:
    """Notes a node's own cuts; returns the operands that lie in its result as they are, with where they start."""

    def moved(x: Node, dim: int, by: Dim) -> tuple[Node, Shape]:
        return x, tuple(canonical_dim(s + by) if d == dim else s for d, s in enumerate(start))

    def cut(dim: int, *positions: Dim) -> None:
        found[dim].update((canonical_dim(start[dim] + p), None) for p in positions)

    if node.is_a(ops.concat):
        dim, at, placed = attrs.integer(node, "dim"), canonical_dim(0), []
        for x in node.inputs:
            cut(dim, at)
            placed.append(moved(x, dim, at))
            at = canonical_dim(at + x.shape[dim])
        cut(dim, at)
        return placed
    if node.is_a(ops.pad):
        (x,), low = node.inputs, attrs.sizes(node, "low")
        for d, lo in enumerate(low):
            cut(d, lo, lo + x.shape[d])
        return [(x, tuple(canonical_dim(s + lo) for s, lo in zip(start, low, strict=True)))]
    if node.is_a(ops.slice_put) and attrs.integer(node, "step") == 1:
        (x, src), dim, at = node.inputs, attrs.integer(node, "dim"), attrs.size(node, "start")
        cut(dim, at, at + src.shape[dim])
        return [(x, start), moved(src, dim, at)]
    if node.is_a(ops.rope):
        last = len(start) - 1
        if node.attrs["interleaved"]:
            return []
        cut(last, node.shape[last] // 2, node.shape[last])
        return []
    if node.has(Trait.POINTWISE):
        return [(x, start) for x in node.inputs if x.shape == node.shape]
    return []


def _intervals(size: Dim, cuts: dict[Dim, None], bounds: Bounds) -> list[tuple[Dim, Dim]]:
    """The parts of an axis between cuts; cuts whose order is not certain are left out."""
    positions: list[Dim] = [0, size]
    for cut in cuts:
        if cut not in positions:
            _insert(positions, cut, bounds)
    return [(low, canonical_dim(high - low)) for low, high in pairwise(positions)]


def _insert(positions: list[Dim], cut: Dim, bounds: Bounds) -> None:
    for n, (low, high) in enumerate(pairwise(positions)):
        if bounds.never_negative(cut - low) and bounds.never_negative(high - cut):
            positions.insert(n + 1, cut)
            return
