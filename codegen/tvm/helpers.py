"""Conversions, checks of indices and comparisons that generated kernels call while they are parsed."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as script

from . import floats
from .rolled import rolled as rolled_loop

Expr = Any  # tvm has no type stubs


def _dtype(x: Expr) -> str:
    return str(x.ty.dtype)


def _is_float(x: Expr) -> bool:
    return _dtype(x).startswith("float")


def from_bf16(bits: Expr) -> Expr:
    """bfloat16 bits (uint16) as float32."""
    return tirx.reinterpret("float32", bits.astype("uint32") << tirx.const(16, "uint32"))


def to_bf16(x: Expr) -> Expr:
    """float32 as bfloat16 bits, rounded to nearest even; NaN stays a NaN."""
    bits = tirx.reinterpret("uint32", x)
    sixteen = tirx.const(16, "uint32")
    rounded = (bits + tirx.const(0x7FFF, "uint32") + ((bits >> sixteen) & tirx.const(1, "uint32"))) >> sixteen
    return tirx.Select(floats.isnan(x), tirx.const(0x7FC0, "uint16"), rounded.astype("uint16"))


def float_to_int(x: Expr, dtype: str) -> Expr:
    """Truncated. Narrow integers are the low bits of an int32, so that what does not fit is as in PyTorch on x86."""
    return tirx.Cast("int64", x) if dtype == "int64" else tirx.Cast(dtype, tirx.Cast("int32", x))


def nonzero(x: Expr) -> Expr:
    """x as a bool."""
    return floats.COMPARISONS["ne"](x, tirx.const(0, _dtype(x)))


def wrapped(index: Expr, size: Expr) -> Expr:
    """An index counted from the end where it is negative."""
    return index + tirx.Select(index < tirx.const(0, "int64"), size, tirx.const(0, "int64"))


def more(a: Expr, b: Expr) -> Expr:
    """Whether a comes before b in an argmax: NaN is largest, the first NaN wins."""
    if not _is_float(a):
        return a > b
    return tirx.Or(a > b, tirx.And(floats.isnan(a), tirx.Not(floats.isnan(b))))


def less(a: Expr, b: Expr) -> Expr:
    """Whether a comes before b in an argmin: NaN is smallest, the first NaN wins."""
    if not _is_float(a):
        return a < b
    return tirx.Or(a < b, tirx.And(floats.isnan(a), tirx.Not(floats.isnan(b))))


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger; NaN if either is NaN."""
    return floats.maximum(a, b) if _is_float(a) else tirx.max(a, b)


def minimum(a: Expr, b: Expr) -> Expr:
    """The smaller; NaN if either is NaN."""
    return floats.minimum(a, b) if _is_float(a) else tirx.min(a, b)


def prefetch(element: Expr) -> Expr:
    """Ask for the cache line of an element of a buffer, which may lie outside of it, for reading."""
    return script.evaluate(tirx.call_intrin("void", "tirx.prefetch", script.address_of(element), 0, 3, 1))


def rolled() -> Expr:
    """A statement in the body of a loop that LLVM must not unroll."""
    return script.evaluate(rolled_loop())
