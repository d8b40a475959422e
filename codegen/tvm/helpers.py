"""What generated kernels call by name while they are parsed: functions from TIR expressions to TIR expressions."""

from __future__ import annotations

from typing import Any

from tvm import tirx

Expr = Any  # tvm has no type stubs


def _dtype(x: Expr) -> str:
    return str(x.ty.dtype)


def one(x: Expr) -> Expr:
    """1 in the type of x."""
    return tirx.const(1, _dtype(x))


def sign(x: Expr) -> Expr:
    """-1, 0 or 1; NaN stays."""
    zero = tirx.const(0, _dtype(x))
    step = tirx.Select(x > zero, one(x), tirx.Select(x < zero, -one(x), zero))
    return tirx.Select(tirx.isnan(x), x, step) if _dtype(x).startswith("float") else step


def from_bf16(bits: Expr) -> Expr:
    """bfloat16 bits (uint16) as float32."""
    return tirx.reinterpret("float32", bits.astype("uint32") << tirx.const(16, "uint32"))


def to_bf16(x: Expr) -> Expr:
    """float32 as bfloat16 bits, rounded to nearest even; NaN stays a NaN."""
    bits = tirx.reinterpret("uint32", x)
    sixteen = tirx.const(16, "uint32")
    rounded = (bits + tirx.const(0x7FFF, "uint32") + ((bits >> sixteen) & tirx.const(1, "uint32"))) >> sixteen
    return tirx.Select(tirx.isnan(x), tirx.const(0x7FC0, "uint16"), rounded.astype("uint16"))


def float_to_int(x: Expr, dtype: str) -> Expr:
    """Truncated; through int64 for narrow types, as PyTorch does, so that what does not fit wraps alike."""
    wide = tirx.Cast("int64", x) if dtype != "int64" else x
    return tirx.Cast(dtype, wide)


def float_remainder(a: Expr, b: Expr) -> Expr:
    """The remainder with the sign of the divisor."""
    r = tirx.fmod(a, b)
    zero = tirx.const(0, _dtype(a))
    return tirx.Select(tirx.And(r != zero, (r < zero) != (b < zero)), r + b, r)


def float_floor_div(a: Expr, b: Expr) -> Expr:
    """floor(a / b), as PyTorch computes it: from the remainder, so that it is exact."""
    quotient = (a - float_remainder(a, b)) / b
    return tirx.Select(b == tirx.const(0, _dtype(b)), a / b, tirx.nearbyint(quotient))


def _safe_divisor(b: Expr) -> Expr:
    # PyTorch raises on an integer division by zero; the kernel must not trap, so it divides by one
    return tirx.Select(b == tirx.const(0, _dtype(b)), one(b), b)


def int_floor_div(a: Expr, b: Expr) -> Expr:
    """Rounded down."""
    return tirx.floordiv(a, _safe_divisor(b))


def int_trunc_div(a: Expr, b: Expr) -> Expr:
    """Rounded toward zero."""
    return tirx.truncdiv(a, _safe_divisor(b))


def int_remainder(a: Expr, b: Expr) -> Expr:
    """With the sign of the divisor."""
    return tirx.floormod(a, _safe_divisor(b))


def int_fmod(a: Expr, b: Expr) -> Expr:
    """With the sign of the dividend."""
    return tirx.truncmod(a, _safe_divisor(b))


def wrapped(index: Expr, size: Expr) -> Expr:
    """An index counted from the end where it is negative."""
    return tirx.Select(index < tirx.const(0, "int64"), index + size, index)


def inside(index: Expr, size: Expr) -> Expr:
    """The index where it is inside [0, size), else 0."""
    zero = tirx.const(0, "int64")
    return tirx.Select(tirx.And(index >= zero, index < size), index, zero)


def _is_float(x: Expr) -> bool:
    return _dtype(x).startswith("float")


def more(a: Expr, b: Expr) -> Expr:
    """Whether a comes before b in an argmax: NaN is largest, the first NaN wins."""
    return tirx.Or(a > b, tirx.And(tirx.isnan(a), tirx.Not(tirx.isnan(b)))) if _is_float(a) else a > b


def less(a: Expr, b: Expr) -> Expr:
    """Whether a comes before b in an argmin: NaN is smallest, the first NaN wins."""
    return tirx.Or(a < b, tirx.And(tirx.isnan(a), tirx.Not(tirx.isnan(b)))) if _is_float(a) else a < b


def maximum(a: Expr, b: Expr) -> Expr:
    """NaN if either is NaN."""
    return tirx.Select(tirx.Or(a > b, tirx.isnan(a)), a, b) if _is_float(a) else tirx.max(a, b)


def minimum(a: Expr, b: Expr) -> Expr:
    """NaN if either is NaN."""
    return tirx.Select(tirx.Or(a < b, tirx.isnan(a)), a, b) if _is_float(a) else tirx.min(a, b)
