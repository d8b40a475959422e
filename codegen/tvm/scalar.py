"""Scalar TIR expressions whose floating-point meaning TVM keeps.

TVM simplifies floats as if they were real numbers: ``x + c - c`` becomes ``x``, ``x - x`` and ``0 * x`` become 0,
``x != x`` becomes false and ``not x < c`` becomes ``c <= x``. Sums that rely on rounding are therefore written with
``llvm.fma``, which TVM's simplifier leaves alone, and a ``Select`` so that NaN takes the branch that keeps it.
"""

from collections.abc import Sequence
from typing import Any, Final

from tvm import tirx
from tvm.script import tirx as script
from tvm.script.ir_builder import IRBuilder

Expr = Any  # a tvm.ir.Expr of primitive type: tvm has no type stubs

SIGN_BIT: Final = -0x80000000


class Bindings:
    """Names for shared subexpressions: ``bind`` each, then ``close`` over the result.

    A TIR expression is a tree, so one that is used twice is written, simplified and compiled twice.
    """

    def __init__(self) -> None:
        self._bound: list[tuple[Expr, Expr]] = []

    def bind(self, value: Expr) -> Expr:
        """A variable that stands for ``value``, which is then evaluated once.

        While a kernel's text is parsed this is a statement before the one being built: TVM's vectoriser and its
        common-subexpression pass both fail on a ``Let`` that stands inside a larger expression.
        """
        if IRBuilder.is_in_scope():
            return script.Bind(value)
        var = tirx.Var(f"t{len(self._bound)}", value.ty.dtype)
        self._bound.append((var, value))
        return var

    def close(self, result: Expr) -> Expr:
        """``result`` inside one ``Let`` per bound value, the first outermost."""
        for var, value in reversed(self._bound):
            result = tirx.Let(var, value, result)
        return result


def f32(value: float) -> Expr:
    """A float32 constant."""
    return tirx.FloatImm("float32", value)


def f64(value: float) -> Expr:
    """A float64 constant."""
    return tirx.FloatImm("float64", value)


def i32(value: int) -> Expr:
    """An int32 constant."""
    return tirx.IntImm("int32", value)


def i64(value: int) -> Expr:
    """An int64 constant."""
    return tirx.IntImm("int64", value)


INF: Final = tirx.infinity("float32")
NAN: Final = tirx.reinterpret("float32", i32(0x7FC00000))


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """a * b + c with one rounding: one instruction on AVX2, AVX-512 and NEON.

    Hardware without it gets a library call: right, but slow.
    """
    return tirx.call_llvm_pure_intrin(a.ty.dtype, "llvm.fma", a, b, c)


def subtract(a: Expr, b: float) -> Expr:
    """a - b, rounded as written. LLVM folds the multiplication by 1 that hides it from TVM."""
    dtype = a.ty.dtype
    return fma(a, tirx.FloatImm(dtype, 1.0), tirx.FloatImm(dtype, -b))


def horner(x: Expr, coefficients: Sequence[float]) -> Expr:
    """The polynomial in x with these coefficients, constant term first, in the dtype of x."""
    dtype = x.ty.dtype
    result = tirx.FloatImm(dtype, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = fma(result, x, tirx.FloatImm(dtype, coefficient))
    return result


def bits(x: Expr) -> Expr:
    """The bits of a float32 as an int32."""
    return tirx.reinterpret("int32", x)


def from_bits(pattern: Expr) -> Expr:
    """The float32 with these int32 bits."""
    return tirx.reinterpret("float32", pattern)


def absolute(x: Expr) -> Expr:
    """|x| of a float32."""
    return from_bits(bits(x) & i32(0x7FFFFFFF))


def sign_bit(x: Expr) -> Expr:
    """The sign bit of a float32, alone in an int32."""
    return bits(x) & i32(SIGN_BIT)


def with_sign(magnitude: Expr, sign: Expr) -> Expr:
    """``magnitude``, whose own sign is ignored, with the sign of ``sign``."""
    return from_bits((bits(magnitude) & i32(0x7FFFFFFF)) | sign_bit(sign))


def clamp(x: Expr, low: float, high: float) -> Expr:
    """x within [low, high]; NaN stays NaN. Pass a variable: x is written three times."""
    dtype = x.ty.dtype
    least, most = tirx.FloatImm(dtype, low), tirx.FloatImm(dtype, high)
    return tirx.Select(x > most, most, tirx.Select(x < least, least, x))


def at_most(x: Expr, high: float) -> Expr:
    """x or ``high``, the lesser; NaN stays NaN. Pass a variable: x is written twice."""
    most = tirx.FloatImm(x.ty.dtype, high)
    return tirx.Select(x > most, most, x)
