"""Questions that several guards ask, and small builders that several right sides use."""

from __future__ import annotations

from typing import Any

import sympy
import torch

from ...ir import ops
from ...ir.node import Node
from ...ir.types import Dim, Shape, canonical_dim


def is_number(value: Any) -> bool:
    """Whether a constant's value is known: a number and not a size."""
    return isinstance(value, int | float)


def is_integer(dtype: torch.dtype) -> bool:
    """Whether arithmetic in the dtype is exact modulo a power of two."""
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def like(x: Node, root: Node) -> Node:
    """``x`` in the dtype of the root."""
    return x if x.dtype == root.dtype else ops.cast(x, dtype=root.dtype)


def broadcast_to(x: Node, shape: Shape) -> Node:
    """``x`` with the given shape, to which it broadcasts."""
    return x if x.shape == shape else ops.expand(x, shape=shape)


def full_like(node: Node, value: Any) -> Node:
    """A constant of another node's type."""
    return ops.full(shape=node.shape, value=value, dtype=node.dtype)


def at_most(low: Dim, high: Dim) -> bool:
    """Whether ``low <= high`` for all sizes, as far as signs tell: size symbols are not negative."""
    gap = canonical_dim(high - low)
    return gap >= 0 if isinstance(gap, int) else bool(gap.is_nonnegative)


def within(end: Dim, size: Dim) -> bool:
    """Whether ``end <= size`` wherever ``size`` is that of an axis, and so at least 0 itself: n <= 2n - 1, for one."""
    if at_most(end, size):
        return True
    symbols = sympy.sympify(size).free_symbols
    gap = sympy.expand(sympy.sympify(size) - end)
    if len(symbols) != 1 or gap.free_symbols != symbols:
        return False
    (s,) = symbols
    slope, rise = sympy.expand(size).coeff(s, 1), gap.coeff(s, 1)
    offset, rest = sympy.expand(size - slope * s), sympy.expand(gap - rise * s)
    if not all(x.is_Integer for x in (slope, rise, offset, rest)) or slope <= 0 or rise < 0:
        return False
    least = max(0, int(sympy.ceiling(-offset / slope)))
    return bool(rise * least + rest >= 0)


def from_weights(node: Node, limit: int = 32) -> bool:
    """Whether a node is computed from weights and constants alone; False where that takes more than ``limit`` nodes."""
    stack, seen = [node], {node}
    while stack:
        if len(seen) > limit:
            return False
        x = stack.pop()
        if x.op is ops.input or x.op is ops.aten_call:
            return False
        new = [y for y in x.inputs if y not in seen]
        seen.update(new)
        stack.extend(new)
    return True


def without_ones(shape: Shape) -> Shape:
    """The dims other than 1."""
    return tuple(dim for dim in shape if dim != 1)


def as_vector(x: Node) -> Node:
    """The elements of ``x`` as one axis."""
    return ops.reshape(x, shape=(x.tensor_type.numel,)) if x.tensor_type.rank != 1 else x


def is_row(x: Node, size: Dim) -> bool:
    """Whether ``x`` broadcasts along the last axis only: [..., 1, size]."""
    shape = x.shape
    return bool(shape) and shape[-1] == size and all(dim == 1 for dim in shape[:-1])


def is_size(value: Any) -> bool:
    """Whether a constant's value is an integer or a size expression."""
    return isinstance(value, sympy.Expr) or (isinstance(value, int) and not isinstance(value, bool))
