"""Index maps through views: where an element of a view lies in the tensor it views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import sympy

from ..ir.errors import UnsupportedError
from ..ir.types import Dim, Shape, canonical_dim, product
from .program import Affine, Expr, Index

Bounds: TypeAlias = Mapping[sympy.Symbol, Dim]


def affine(index: Index) -> Affine:
    """An index that does not come from data.

    Raises:
        UnsupportedError: it does.
    """
    if isinstance(index, Expr):
        raise UnsupportedError("an index from data goes through a view that computes with it")
    return index


def as_fraction(index: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """Numerator and denominator, both without divisions of their own: (a + b) / 2 is not a / 2 + b / 2 in integers."""
    factors = (f for term in sympy.Add.make_args(index) for f in sympy.Mul.make_args(term))
    if any((f.is_Rational and not f.is_Integer) or (f.is_Pow and f.exp.is_negative) for f in factors):
        return sympy.fraction(sympy.together(index))
    return index, sympy.Integer(1)


def split(linear: Affine, size: Dim, bounds: Bounds) -> tuple[Affine, Affine]:
    """Quotient and remainder of an index by ``size``, without a division where the axis bounds show it."""
    linear = sympy.expand(linear)
    whole, rest = [], []
    for term in sympy.Add.make_args(linear):
        quotient = sympy.cancel(term / size)
        (whole if quotient.is_integer and _denominator_free(quotient) else rest).append((term, quotient))
    remainder = sympy.Add(*(t for t, _ in rest))
    quotient = sympy.Add(*(q for _, q in whole))
    if _below(remainder, size, bounds):
        return _plain(quotient), _plain(remainder)
    return _plain(quotient + sympy.floor(remainder / size)), _plain(sympy.Mod(remainder, size))


def _denominator_free(expr: sympy.Expr) -> bool:
    return sympy.fraction(sympy.together(expr))[1] == 1


def _plain(expr: Affine) -> Affine:
    return int(expr) if isinstance(expr, sympy.Expr) and expr.is_Integer else expr


def _below(index: sympy.Expr, size: Dim, bounds: Bounds) -> bool:
    """Whether the axis bounds show that 0 <= index < size."""
    if index == 0:
        return True
    top = index
    for symbol in index.free_symbols:
        if symbol not in bounds or sympy.diff(index, symbol).could_extract_minus_sign():
            return False
        top = top.subs(symbol, bounds[symbol] - 1)
    gap = sympy.expand(size - 1 - top)
    return bool(gap.is_nonnegative) or bool(gap == 0)


def reshape_index(old: Shape, new: Shape, index: Sequence[Index], bounds: Bounds) -> tuple[Index, ...]:
    """The index into a tensor of shape ``old`` of an element of its reshape to ``new``."""
    result: list[Index] = [0] * len(old)
    for old_axes, new_axes in _groups(old, new):
        if len(old_axes) == 1 and len(new_axes) == 1:
            result[old_axes[0]] = index[new_axes[0]]
            continue
        linear: Affine = 0
        for axis in new_axes:
            linear = linear * new[axis] + affine(index[axis])
        for axis in reversed(old_axes[1:]):
            linear, result[axis] = split(linear, old[axis], bounds)
        if old_axes:
            result[old_axes[0]] = _plain(sympy.expand(linear))
    return tuple(result)


def _groups(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Runs of axes of either shape that hold the same elements; axes of size 1 are left out."""
    left = [a for a, d in enumerate(old) if d != 1]
    right = [a for a, d in enumerate(new) if d != 1]
    groups = []
    i = j = 0
    while i < len(left) or j < len(right):
        a, b = left[i : i + 1], right[j : j + 1]
        i, j = i + len(a), j + len(b)
        while product(old[x] for x in a) != product(new[x] for x in b):
            grow_left = i < len(left) and (j >= len(right) or _divides(a, old, b, new))
            if grow_left:
                a, i = [*a, left[i]], i + 1
            elif j < len(right):
                b, j = [*b, right[j]], j + 1
            else:
                raise UnsupportedError(f"cannot follow the reshape of {list(old)} to {list(new)}")
        groups.append((a, b))
    return groups


def _divides(a: list[int], old: Shape, b: list[int], new: Shape) -> bool:
    """Whether the left run is the smaller one: its size divides the right one's."""
    left, right = product(old[x] for x in a), product(new[x] for x in b)
    if isinstance(left, int) and isinstance(right, int):
        return left < right
    return _denominator_free(sympy.cancel(sympy.sympify(right) / left))


def broadcast_index(shape: Shape, index: Sequence[Index]) -> tuple[Index, ...]:
    """The index of an operand that broadcasts to the result whose index is given."""
    own = index[len(index) - len(shape) :]
    return tuple(0 if dim == 1 else i for dim, i in zip(shape, own, strict=True))


def permute_index(dims: Sequence[int], index: Sequence[Index]) -> tuple[Index, ...]:
    """The index into the operand of ``permute``."""
    result: list[Index] = [0] * len(dims)
    for position, dim in enumerate(dims):
        result[dim] = index[position]
    return tuple(result)


def sliced(index: Index, start: Dim, step: int) -> Index:
    """The index into the operand of ``slice`` along its axis."""
    if isinstance(start, int) and start == 0 and step == 1:
        return index
    return canonical_dim(affine(index) * step + start)
