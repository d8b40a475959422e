"""The value of one operator at an index, as an expression over its operands' values at theirs."""

from __future__ import annotations

from collections.abc import Callable

import sympy
import torch

from ..ir import ops
from ..ir.node import Node
from ..ir.types import Dim
from . import attrs
from .bounds import Bounds
from .indexing import affine, broadcast_index, permute_index, plus, replaced, reshape_index, times
from .lowering import Lowering, Position
from .program import Affine, Apply, Checked, Const, Expr, Guard, IndexValue

Rule = Callable[[Lowering, Node, Position], Expr]


# --- views ------------------------------------------------------------------------------------------------------------


def view_index(node: Node, index: Position, bounds: Bounds) -> Position:
    """The index into a view's operand.

    Raises:
        UnsupportedError: a reshape that cannot be followed.
    """
    shape = node.inputs[0].shape
    if node.is_a(ops.reshape):
        return reshape_index(shape, node.shape, index, bounds)
    if node.is_a(ops.permute):
        return permute_index(attrs.integers(node, "dims"), index)
    if node.is_a(ops.expand):
        return broadcast_index(shape, index)
    if node.is_a(ops.slice_):
        dim = attrs.integer(node, "dim")
        along = plus(times(index[dim], attrs.integer(node, "step")), attrs.size(node, "start"))
        return replaced(index, dim, along)
    if node.is_a(ops.windows):
        dim = attrs.integer(node, "dim")
        first, within = (
            times(index[dim], attrs.integer(node, "step")),
            times(index[dim + 1], attrs.integer(node, "apart")),
        )
        return (*index[:dim], plus(first, within), *index[dim + 2 :])
    for dim in attrs.integers(node, "dims"):  # flip
        index = replaced(index, dim, plus(times(index[dim], -1), shape[dim] - 1))
    return index


def guarded(bounds: Bounds, index: Affine, size: Dim, then: Callable[[], Expr], otherwise: Callable[[], Expr]) -> Expr:
    """A guard, or the side that is taken at every point where that is certain."""
    if bounds.inside(index, size):
        return then()
    if bounds.outside(index, size):
        return otherwise()
    return Guard(index, size, then(), otherwise())


# --- constants --------------------------------------------------------------------------------------------------------


def _full(lowering: Lowering, node: Node, index: Position) -> Expr:
    value = attrs.number(node, "value")
    return _whole(value, node.dtype) if isinstance(value, sympy.Expr) else Const(value, node.dtype)


def _whole(value: Affine, dtype: torch.dtype) -> Expr:
    if dtype.is_floating_point:
        return Apply("cast", (IndexValue(value, torch.int64),), dtype)
    return IndexValue(value, dtype)


def _arange(lowering: Lowering, node: Node, index: Position) -> Expr:
    start, step = attrs.number(node, "start"), attrs.number(node, "step")
    position = affine(index[0])
    if not isinstance(start, float) and not isinstance(step, float):
        return _whole(position * step + start, node.dtype)
    wide = torch.float64
    scaled = Apply("mul", (_whole(position, wide), _as_float64(step)), wide)
    total = Apply("add", (scaled, _as_float64(start)), wide)
    return total if node.dtype == wide else Apply("cast", (total,), node.dtype)


def _as_float64(value: float | Affine) -> Expr:
    return _whole(value, torch.float64) if isinstance(value, sympy.Expr) else Const(float(value), torch.float64)


# --- several operands side by side ------------------------------------------------------------------------------------


def _concat(lowering: Lowering, node: Node, index: Position) -> Expr:
    dim = attrs.integer(node, "dim")
    at, start = affine(index[dim]), 0
    candidates: list[tuple[Affine, Node]] = []
    for x in node.inputs:
        local, start = at - start, start + x.shape[dim]
        if lowering.bounds.inside(local, x.shape[dim]):
            return lowering.value(x, replaced(index, dim, plus(local, 0)))
        if not lowering.bounds.outside(local, x.shape[dim]):
            candidates.append((plus(local, 0), x))
    *others, (local, last) = candidates or [(plus(local, 0), x)]
    result = lowering.value(last, replaced(index, dim, local))
    for local, x in reversed(others):
        result = Guard(local, x.shape[dim], lowering.value(x, replaced(index, dim, local)), result)
    return result


def _pad(lowering: Lowering, node: Node, index: Position) -> Expr:
    x, low, high = node.inputs[0], attrs.sizes(node, "low"), attrs.sizes(node, "high")
    inner = tuple(plus(i, -lo) for i, lo in zip(index, low, strict=True))
    outside = Const(attrs.number(node, "value"), node.dtype)
    padded = [d for d in range(len(inner)) if (low[d], high[d]) != (0, 0)]
    # where it is certain that the value is outside, the operand is not looked at
    if any(lowering.bounds.outside(affine(inner[d]), x.shape[d]) for d in padded):
        return outside
    result = lowering.value(x, inner)
    for d in padded:
        if not lowering.bounds.inside(affine(inner[d]), x.shape[d]):
            result = Guard(affine(inner[d]), x.shape[d], result, outside)
    return result


def _slice_put(lowering: Lowering, node: Node, index: Position) -> Expr:
    x, src = node.inputs
    dim, step = attrs.integer(node, "dim"), attrs.integer(node, "step")
    local = plus(affine(index[dim]), -attrs.size(node, "start"))
    assert not isinstance(local, Expr)
    along, left_over = (local, sympy.Integer(0)) if step == 1 else (sympy.floor(local / step), sympy.Mod(local, step))

    def kept() -> Expr:
        return lowering.value(x, index)

    def written() -> Expr:
        return lowering.value(src, replaced(index, dim, along))

    def in_range() -> Expr:
        return guarded(lowering.bounds, along, src.shape[dim], written, kept)

    return guarded(lowering.bounds, left_over, 1, in_range, kept)


# --- addressed by data ------------------------------------------------------------------------------------------------


def chosen(lowering: Lowering, x: Node, indices: tuple[Node, ...], dim: int, at: Position, wrap: bool) -> list[Checked]:
    """The places along the axes of ``x`` from ``dim`` on that index tensors choose at an index of theirs."""
    return [
        Checked(lowering.value(i, broadcast_index(i.shape, at)), x.shape[dim + n], wrap) for n, i in enumerate(indices)
    ]


def _index(lowering: Lowering, node: Node, index: Position) -> Expr:
    x, *indices = node.inputs
    dim = attrs.integer(node, "dim")
    picked = node.tensor_type.rank - (x.tensor_type.rank - len(indices))
    at = chosen(lowering, x, tuple(indices), dim, index[dim : dim + picked], attrs.flag(node, "wrap"))
    return lowering.value(x, (*index[:dim], *at, *index[dim + picked :]))


def _gather(lowering: Lowering, node: Node, index: Position) -> Expr:
    x, i = node.inputs
    if not index:  # of one element, which any index names
        return lowering.value(x, index)
    dim = attrs.integer(node, "dim")
    return lowering.value(x, replaced(index, dim, Checked(lowering.value(i, index), x.shape[dim], False)))


# --- rotary positions -------------------------------------------------------------------------------------------------


def _rope(lowering: Lowering, node: Node, index: Position) -> Expr:
    x, cos, sin = node.inputs
    size = x.shape[-1]
    last = affine(index[-1])
    kept = Apply("mul", (lowering.value(x, index), lowering.value(cos, broadcast_index(cos.shape, index))), x.dtype)
    other = _neighbour if node.attrs["interleaved"] else _other_half
    turned = Apply(
        "mul",
        (other(lowering, x, index, last, size // 2), lowering.value(sin, broadcast_index(sin.shape, index))),
        x.dtype,
    )
    return Apply("add", (kept, turned), x.dtype)


def _neighbour(lowering: Lowering, x: Node, index: Position, last: Affine, half: Dim) -> Expr:
    """The other element of a pair of neighbours, negated for the first of them."""
    odd = sympy.Mod(last, 2)
    other = lowering.value(x, (*index[:-1], plus(last + 1 - 2 * odd, 0)))
    first = Apply("lt", (IndexValue(odd, torch.int64), IndexValue(1, torch.int64)), torch.bool)
    return Apply("where", (first, Apply("neg", (other,), x.dtype), other), x.dtype)


def _other_half(lowering: Lowering, x: Node, index: Position, last: Affine, half: Dim) -> Expr:
    """The element half a row away, negated in the first half."""

    def at(i: Affine) -> Expr:
        return lowering.value(x, (*index[:-1], plus(i, 0)))

    if lowering.bounds.inside(last, half):
        return Apply("neg", (at(last + half),), x.dtype)
    if lowering.bounds.never_negative(last - half):
        return at(last - half)
    # by arithmetic on the index, not by a guard: loads need no branch
    other = at(sympy.Mod(last + half, 2 * half))
    first = Apply("lt", (IndexValue(last, torch.int64), IndexValue(half, torch.int64)), torch.bool)
    return Apply("where", (first, Apply("neg", (other,), x.dtype), other), x.dtype)


RULES: dict[str, Rule] = {
    "full": _full,
    "arange": _arange,
    "concat": _concat,
    "pad": _pad,
    "slice_put": _slice_put,
    "index": _index,
    "gather": _gather,
    "rope": _rope,
}
