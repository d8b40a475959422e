"""Weights of few bits in a product: numbers that any half type holds exactly (whole ones, float8), times a scale.

So where the left operand is of a half type, the product of the two is taken on tensor cores in that type and loses
nothing; the scale of a group of terms multiplies their sum. Words of eight numbers are read once each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import sympy
import torch

from ...ir.ops.quantize import WORD
from ..program import Apply, Axis, Const, Expr, Guard, IndexValue, Load, as_fraction, postorder
from .storage import HALF

_BYTES = (torch.int8, torch.uint8)


@dataclass(frozen=True)
class FewBits:
    """A right operand that is numbers of few bits times a scale.

    Attributes:
        numbers: a float32 expression whose value is a whole number of at most 255, or one of float8.
        scale: the load of a factor that ``group`` terms share, None where there is none.
        group: how many terms in a row share it; 1 where some have their own.
    """

    numbers: Expr
    scale: Load | None
    group: int


def few_bits(right: Expr, k: Axis) -> FewBits | None:
    """What a right operand is as numbers of few bits along ``k``; None for anything else."""
    if isinstance(right, Apply) and right.op == "mul":
        numbers, scale = right.args
        if isinstance(scale, Load) and scale.dtype == torch.float32 and _is_small(numbers):
            return FewBits(numbers, scale, _group(scale, k.symbol))
    return FewBits(right, None, 1) if _is_small(right) else None


def _group(scale: Load, k: sympy.Symbol) -> int:
    """g where k is in the index as floor(k / g) only; 1 where it is in it otherwise."""
    found = [i for i in scale.index if isinstance(i, sympy.Expr) and k in i.free_symbols]
    if len(found) != 1 or not isinstance(found[0], sympy.floor):
        return 1
    above, below = as_fraction(found[0].args[0])
    return int(below) if above == k and below.is_Integer else 1


def _is_small(expr: Expr) -> bool:
    """Whether a float32 expression is a number of eight bits, or the difference of two that are not negative."""
    if not isinstance(expr, Apply) or expr.dtype != torch.float32:
        return False
    if expr.op == "float8_value":
        return isinstance(expr.args[0], Load)
    if expr.op == "sub":
        first, second = expr.args
        return _is_whole(first, signed=False) and (second == Const(8.0, torch.float32) or _is_whole(second, False))
    return _is_whole(expr, signed=True)


def _is_whole(expr: Expr, signed: bool) -> bool:
    if not isinstance(expr, Apply) or expr.op != "cast" or expr.dtype != torch.float32:
        return False
    (of,) = expr.args
    if isinstance(of, Load):
        return of.dtype == torch.uint8 or (signed and of.dtype == torch.int8)
    return nibble(of) is not None


# --- a half type's own numbers ----------------------------------------------------------------------------------------


def widened_half(expr: Expr) -> Expr | None:
    """The half-type expression that a float32 one widens."""
    if isinstance(expr, Apply) and expr.op == "cast" and expr.dtype == torch.float32 and expr.args[0].dtype in HALF:
        return expr.args[0]
    return None


def bytes_of(left: Expr, right: Expr) -> tuple[Load, Load] | None:
    """The loads of int8 that both operands of a product in int32 widen."""
    found = []
    for expr in (left, right):
        if not isinstance(expr, Apply) or expr.op != "cast" or expr.dtype != torch.int32:
            return None
        (load,) = expr.args
        if not isinstance(load, Load) or load.dtype != torch.int8:
            return None
        found.append(load)
    return found[0], found[1]


def float8_bits_of(left: Expr, right: Expr) -> tuple[Load, Load] | None:
    """The loads of float8's bits whose numbers a product in float32 multiplies."""
    found = []
    for expr in (left, right):
        if not isinstance(expr, Apply) or expr.op != "float8_value" or not isinstance(expr.args[0], Load):
            return None
        found.append(expr.args[0])
    return found[0], found[1]


# --- words of eight numbers -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nibble:
    """Four bits of a word: those at ``place``, an index that is 0 to 7."""

    word: Load
    place: sympy.Expr


def nibble(expr: Expr) -> Nibble | None:
    """The four bits that an expression takes of a word, told apart place by place; None for anything else."""
    return _nibble(expr) if isinstance(expr, Apply) and expr.op == "where" else None


@lru_cache(maxsize=1 << 12)
def _nibble(expr: Expr) -> Nibble | None:
    place: sympy.Expr | None = None
    word: Load | None = None
    for at in range(WORD):
        taken = expr
        if at < WORD - 1:
            if not (isinstance(expr, Apply) and expr.op == "where"):
                return None
            asked, taken, expr = expr.args
            here = _asked(asked, at)
            if here is None or (place is not None and here != place):
                return None
            place = here
        found = _bits(taken, at)
        if found is None or (word is not None and found != word):
            return None
        word = found
    assert place is not None
    assert word is not None
    return Nibble(word, place)


def _asked(expr: Expr, place: int) -> sympy.Expr | None:
    """The index that is compared with a place."""
    if not isinstance(expr, Apply) or expr.op != "eq":
        return None
    index, number = expr.args
    if not isinstance(index, IndexValue) or number != Const(place, torch.int64):
        return None
    is_place = isinstance(index.index, sympy.Mod) and index.index.args[1] == WORD
    return index.index if is_place else None


def _bits(expr: Expr, place: int) -> Load | None:
    """The word of which the four bits at a place are taken."""
    if not isinstance(expr, Apply) or expr.op != "bit_and" or expr.args[1] != Const(15, torch.int32):
        return None
    shifted = expr.args[0]
    if isinstance(shifted, Load) and place == 0:
        return shifted
    if not isinstance(shifted, Apply) or shifted.op != "floor_div":
        return None
    word, by = shifted.args
    return word if isinstance(word, Load) and by == Const(16**place, torch.int32) else None


def nibbles_of(roots: list[Expr]) -> list[tuple[Expr, Nibble]]:
    """The four-bit numbers in some expressions, outside of guards, each once."""
    found = []
    stop = lambda e: isinstance(e, Guard) or nibble(e) is not None  # noqa: E731
    for expr in postorder(roots, stop):
        bits = None if isinstance(expr, Guard) else nibble(expr)
        if bits is not None:
            found.append((expr, bits))
    return found
