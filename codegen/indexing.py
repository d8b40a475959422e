"""Index maps through views: where an element of a view lies in the tensor it views."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import sympy
import torch

from ..ir.errors import UnsupportedError
from ..ir.types import Dim, Shape, canonical_dim, product
from .bounds import Bounds
from .program import Affine, Apply, Expr, Index, IndexValue


def affine(index: Index) -> Affine:
    """An index that does not come from data.

    Raises:
        UnsupportedError: it does.
    """
    if isinstance(index, Expr):
        raise UnsupportedError("an index from data goes where a condition on it would be needed")
    return index


# --- arithmetic on indices --------------------------------------------------------------------------------------------


def plus(index: Index, offset: Index) -> Index:
    """The sum of two indices, either of which may come from data."""
    if isinstance(index, Expr) or isinstance(offset, Expr):
        return index if _is(offset, 0) else offset if _is(index, 0) else _computed("add", index, offset)
    return canonical_dim(index + offset)


def times(index: Index, factor: Dim) -> Index:
    """A multiple of an index."""
    if isinstance(index, Expr):
        return index if factor == 1 else _computed("mul", index, factor)
    return canonical_dim(index * factor)


def _is(index: Index, number: int) -> bool:
    return not isinstance(index, Expr) and bool(index == number)


def _computed(op: str, *args: Index) -> Expr:
    values = tuple(a if isinstance(a, Expr) else IndexValue(a, torch.int64) for a in args)
    return Apply(op, values, torch.int64)


def split(linear: Index, size: Dim, bounds: Bounds) -> tuple[Index, Index]:
    """Quotient and remainder of an index by ``size``, without a division where the axis bounds show it."""
    if isinstance(linear, Expr):
        return _computed("floor_div", linear, size), _computed("remainder", linear, size)
    whole: list[sympy.Expr] = []
    rest: list[sympy.Expr] = []
    for term in sympy.Add.make_args(sympy.expand(linear)):
        quotient = sympy.cancel(term / size)
        if quotient.is_integer and _is_whole(quotient):
            whole.append(quotient)
        else:
            rest.append(term)
    quotient, remainder = sympy.Add(*whole), sympy.Add(*rest)
    turns = 0 if bounds.inside(remainder, size) else bounds.quotient(remainder, size)
    if turns is not None:
        return _plain(quotient + turns), _plain(sympy.expand(remainder - turns * size))
    return _plain(quotient + sympy.floor(remainder / size)), _plain(sympy.Mod(remainder, size))


def rejoined(linear: Index) -> Index:
    """An index with e in the place of n * floor(e / n) + e % n, as a row and a column of another shape's give it.

    Relative positions are shifted so, row by row: a tensor is reshaped, loses its first row and is reshaped again.
    """
    if not isinstance(linear, sympy.Expr) or not linear.has(sympy.Mod):
        return linear
    found = sympy.expand(linear)
    for remainder in found.atoms(sympy.Mod):
        e, n = remainder.args
        factor, quotient = found.coeff(remainder), sympy.expand(sympy.floor(e / n))
        joined = sympy.expand(found - factor * (remainder + n * quotient) + factor * e)
        if factor != 0 and not joined.has(remainder) and not joined.has(quotient):
            found = joined
    return linear if found.has(sympy.Mod) else canonical_dim(found)


def divides(divisor: Dim, size: Dim) -> bool:
    """Whether a size is certainly a multiple of another, which is not 0."""
    if isinstance(divisor, int) and isinstance(size, int):
        return size % divisor == 0
    return _divides_size(divisor, size)


@lru_cache(maxsize=1 << 12)
def _divides_size(divisor: Dim, size: Dim) -> bool:
    return _is_whole(sympy.cancel(sympy.sympify(size) / divisor))


def _is_whole(expr: sympy.Expr) -> bool:
    # together, for s + 1/2 as it stands has no denominator
    return bool(sympy.fraction(sympy.together(expr))[1] == 1)


def _plain(expr: Affine) -> Affine:
    return int(expr) if isinstance(expr, sympy.Expr) and expr.is_Integer else expr


# --- views ------------------------------------------------------------------------------------------------------------


def reshape_index(old: Shape, new: Shape, index: Sequence[Index], bounds: Bounds) -> tuple[Index, ...]:
    """The index into a tensor of shape ``old`` of an element of its reshape to ``new``.

    Raises:
        UnsupportedError: how the shapes correspond cannot be told.
    """
    result: list[Index] = [0] * len(old)
    if 0 in old:
        return tuple(result)
    for old_axes, new_axes in _groups(old, new):
        if len(old_axes) == 1 and len(new_axes) == 1:
            result[old_axes[0]] = index[new_axes[0]]
            continue
        linear: Index = 0
        for axis in new_axes:
            linear = plus(times(linear, new[axis]), index[axis])
        linear = rejoined(linear)
        for axis in reversed(old_axes[1:]):
            linear, result[axis] = split(linear, old[axis], bounds)
        if old_axes:
            result[old_axes[0]] = linear
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
    return divides(left, right)


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


def replaced(index: Sequence[Index], dim: int, by: Index) -> tuple[Index, ...]:
    """An index with one position changed."""
    return (*index[:dim], by, *index[dim + 1 :])
