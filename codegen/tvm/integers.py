"""Pointwise operators on integers and bool, as generated kernels call them while they are parsed.

Integers wrap around. Dividing by 0, for which PyTorch raises an error, gives some number: a kernel must not trap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from .float8 import float8_value

Expr = Any  # tvm has no type stubs


def _const(value: int, like: Expr) -> Expr:
    return tirx.const(value, str(like.ty.dtype))


def _signed(x: Expr) -> bool:
    return str(x.ty.dtype).startswith("int")


def neg(x: Expr) -> Expr:
    """-x."""
    return _const(0, x) - x


def abs(x: Expr) -> Expr:
    """|x|; the least integer stays as it is."""
    return tirx.Select(x < _const(0, x), neg(x), x) if _signed(x) else x


def sign(x: Expr) -> Expr:
    """-1, 0 or 1."""
    below = tirx.Select(x < _const(0, x), _const(-1, x), _const(0, x)) if _signed(x) else _const(0, x)
    return tirx.Select(x > _const(0, x), _const(1, x), below)


def _division(divide: Callable[[Expr, Expr], Expr], by_minus_one: Callable[[Expr], Expr]) -> Callable[..., Expr]:
    """Division by 0 traps, and so does the least integer by -1."""

    def safe(a: Expr, b: Expr) -> Expr:
        trapping = tirx.Or(b == _const(0, b), b == _const(-1, b)) if _signed(b) else b == _const(0, b)
        result = divide(a, tirx.Select(trapping, _const(1, b), b))
        return tirx.Select(b == _const(-1, b), by_minus_one(a), result) if _signed(b) else result

    return safe


def _nothing(a: Expr) -> Expr:
    return _const(0, a)


def _implies(a: Expr, b: Expr) -> Expr:
    return tirx.Or(tirx.Not(a), b)


def _differ(a: Expr, b: Expr) -> Expr:
    # TVM compares bool as if they were floats
    return tirx.NE(tirx.Cast("int8", a), tirx.Cast("int8", b))


def _without(a: Expr, b: Expr) -> Expr:
    return tirx.And(a, tirx.Not(b))


COMPARISONS: dict[str, Callable[..., Expr]] = {
    "eq": tirx.EQ,
    "ne": tirx.NE,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
# By the names of the IR's primitives.
INTEGER: dict[str, Callable[..., Expr]] = {
    **COMPARISONS,
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "neg": neg,
    "abs": abs,
    "sign": sign,
    "maximum": tirx.max,
    "minimum": tirx.min,
    "floor_div": _division(tirx.floordiv, neg),
    "trunc_div": _division(tirx.truncdiv, neg),
    "remainder": _division(tirx.floormod, _nothing),
    "fmod": _division(tirx.truncmod, _nothing),
    "bit_and": lambda a, b: a & b,
    "bit_or": lambda a, b: a | b,
    "bit_xor": lambda a, b: a ^ b,
    "bit_not": lambda a: ~a,
    "float8_value": float8_value,
}
BOOL: dict[str, Callable[..., Expr]] = {
    "eq": lambda a, b: tirx.Not(_differ(a, b)),
    "ne": _differ,
    "lt": lambda a, b: _without(b, a),
    "le": _implies,
    "gt": _without,
    "ge": lambda a, b: _implies(b, a),
    "sign": lambda a: a,
    "add": tirx.Or,
    "mul": tirx.And,
    "maximum": tirx.Or,
    "minimum": tirx.And,
    "bit_and": tirx.And,
    "bit_or": tirx.Or,
    "bit_xor": _differ,
    "bit_not": tirx.Not,
}
