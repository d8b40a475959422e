"""Pointwise operators on floating-point numbers, as generated kernels call them while they are parsed.

They mean what IEEE 754 and PyTorch say of NaN, infinities and signed zeros. That rests on ``pipeline``, which keeps TVM
from simplifying them; only what TVM folds while an expression is built is kept from it here.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script import tirx as script

from . import activations, vmath
from .float8 import float8_of

Expr = Any  # tvm has no type stubs


def _dtype(x: Expr) -> str:
    return str(x.ty.dtype)


def _const(value: float, like: Expr) -> Expr:
    return tirx.FloatImm(_dtype(like), value)


def _is_zero(x: Expr) -> bool:
    return isinstance(x, tirx.FloatImm) and x.value == 0


def _opaque(x: Expr) -> Expr:
    """x, as something that TVM does not take for the constant that it may be."""
    return fma(x, _const(1.0, x), _const(-0.0, x)) if _is_zero(x) else x


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """a * b + c with one rounding."""
    return _llvm("fma", a, b, c)


def _llvm(name: str, *args: Expr) -> Expr:
    """An LLVM intrinsic, which has vectors; most of TVM's own operators become a call for each lane."""
    return tirx.call_llvm_pure_intrin(_dtype(args[0]), f"llvm.{name}", *args)


# --- arithmetic -------------------------------------------------------------------------------------------------------


def add(a: Expr, b: Expr) -> Expr:
    """a + b."""
    return _opaque(a) + _opaque(b)


def sub(a: Expr, b: Expr) -> Expr:
    """a - b."""
    return _opaque(a) - _opaque(b)


def mul(a: Expr, b: Expr) -> Expr:
    """a * b."""
    return _opaque(a) * _opaque(b)


def div(a: Expr, b: Expr) -> Expr:
    """a / b."""
    return _opaque(a) / _opaque(b)


def neg(x: Expr) -> Expr:
    """-x, of zeros too."""
    return x * _const(-1.0, x)


def reciprocal(x: Expr) -> Expr:
    """1 / x."""
    return div(_const(1.0, x), x)


def abs(x: Expr) -> Expr:
    """|x|."""
    return _from_bits(_bits(x) & tirx.const(_magnitude(x), _bits_type(x)), x)


def sign(x: Expr) -> Expr:
    """-1, 0 or 1; 0 for NaN, as in PyTorch."""
    zero = _const(0.0, x)
    return tirx.Select(x > zero, _const(1.0, x), tirx.Select(x < zero, _const(-1.0, x), zero))


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger; NaN if either is NaN."""
    return _llvm("maximum", a, b)


def minimum(a: Expr, b: Expr) -> Expr:
    """The smaller; NaN if either is NaN."""
    return _llvm("minimum", a, b)


def isnan(x: Expr) -> Expr:
    """Whether x is NaN, by its bits."""
    magnitude = _bits(x) & tirx.const(_magnitude(x), _bits_type(x))
    return magnitude > tirx.const(_infinity(x), _bits_type(x))


def _bits_type(x: Expr) -> str:
    return "int64" if _dtype(x) == "float64" else "int32"


def _magnitude(x: Expr) -> int:
    return 0x7FFFFFFFFFFFFFFF if _dtype(x) == "float64" else 0x7FFFFFFF


def _infinity(x: Expr) -> int:
    return 0x7FF << 52 if _dtype(x) == "float64" else 0xFF << 23


def _bits(x: Expr) -> Expr:
    return tirx.reinterpret(_bits_type(x), x)


def _from_bits(bits: Expr, like: Expr) -> Expr:
    return tirx.reinterpret(_dtype(like), bits)


# --- division with a whole quotient -----------------------------------------------------------------------------------


def fmod(a: Expr, b: Expr) -> Expr:
    """The remainder with the sign of the dividend: exact."""
    return tirx.call_pure_extern(_dtype(a), "fmod" if _dtype(a) == "float64" else "fmodf", a, b)


def remainder(a: Expr, b: Expr) -> Expr:
    """The remainder with the sign of the divisor. Binds its parts before the statement being built."""
    b = script.Bind(b)
    r = script.Bind(fmod(a, b))
    return tirx.Select(_signs_differ(r, b), r + b, r)


def _signs_differ(r: Expr, b: Expr) -> Expr:
    """Whether a remainder that is not 0 has another sign than the divisor."""
    zero = _const(0.0, r)
    below = tirx.And(r < zero, b > zero)
    return tirx.Or(below, tirx.And(r > zero, b < zero))


def floor_div(a: Expr, b: Expr) -> Expr:
    """floor(a / b) by way of the exact remainder, as in Python and PyTorch; a / b where b is 0.

    Binds its parts before the statement being built.
    """
    a, b = script.Bind(a), script.Bind(b)
    zero, one = _const(0.0, a), _const(1.0, a)
    r = script.Bind(fmod(a, b))
    quotient = script.Bind((a - r) / b)
    lower = script.Bind(tirx.Select(_signs_differ(r, b), quotient - one, quotient))
    whole = script.Bind(floor(lower))
    # the quotient is whole but for its rounding
    nearest = tirx.Select(lower - whole > _const(0.5, a), whole + one, whole)
    ratio = script.Bind(a / b)
    exact = tirx.Select(tirx.EQ(lower, zero), mul(ratio, zero), nearest)
    return tirx.Select(tirx.EQ(b, zero), ratio, exact)


def trunc_div(a: Expr, b: Expr) -> Expr:
    """a / b, rounded toward 0."""
    return trunc(div(a, b))


# --- rounding and elementary functions --------------------------------------------------------------------------------


def floor(x: Expr) -> Expr:
    """Rounded down."""
    return _llvm("floor", x)


def ceil(x: Expr) -> Expr:
    """Rounded up."""
    return _llvm("ceil", x)


def round(x: Expr) -> Expr:
    """Rounded to the nearest whole number, halves to even."""
    return _llvm("roundeven", x)


def trunc(x: Expr) -> Expr:
    """Rounded toward 0."""
    return _llvm("trunc", x)


def tan(x: Expr) -> Expr:
    """The tangent: a call of libm."""
    return tirx.call_pure_extern(_dtype(x), "tan" if _dtype(x) == "float64" else "tanf", x)


def atan2(a: Expr, b: Expr) -> Expr:
    """The angle of the point (b, a): a call of libm."""
    return tirx.call_pure_extern(_dtype(a), "atan2" if _dtype(a) == "float64" else "atan2f", a, b)


COMPARISONS = {
    "eq": tirx.EQ,
    "ne": lambda a, b: tirx.Not(tirx.EQ(a, b)),  # TVM's own is false for NaN
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
# By the names of the IR's primitives.
FUNCTIONS = {
    **{
        f.__name__: f
        for f in (
            *(add, sub, mul, div, neg, reciprocal, abs, sign, maximum, minimum, isnan),
            *(fmod, remainder, floor_div, trunc_div, floor, ceil, round, trunc, tan, atan2),
        )
    },
    **COMPARISONS,
    **vmath.FUNCTIONS,
    **activations.FUNCTIONS,
    "pow": vmath.pow,
    "float8_of": float8_of,
}
