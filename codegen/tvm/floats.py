"""Pointwise operators on floating-point numbers, as generated kernels call them while they are parsed.

TVM simplifies floats as if they were real numbers: ``x - x`` and ``0 * x`` become 0, ``x <= x`` true and ``not x < y``
``y <= x``, which NaN, infinities and signed zeros contradict. Arithmetic is therefore written with ``llvm.fma``, whose
trivial forms LLVM folds back into one addition or multiplication, and a comparison is hidden from the logic around it.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from . import vmath
from .scalar import Bindings, fma

Expr = Any  # tvm has no type stubs


def _dtype(x: Expr) -> str:
    return str(x.ty.dtype)


def _const(value: float, like: Expr) -> Expr:
    return tirx.FloatImm(_dtype(like), value)


def opaque(x: Expr) -> Expr:
    """x, as something that TVM knows nothing of."""
    return fma(x, _const(1.0, x), _const(-0.0, x))


def _hidden(condition: Expr) -> Expr:
    """A condition whose negation is not taken for the opposite comparison."""
    return tirx.Cast("int32", condition) != tirx.const(0, "int32")


# --- arithmetic -------------------------------------------------------------------------------------------------------


def add(a: Expr, b: Expr) -> Expr:
    """a + b."""
    return fma(a, _const(1.0, a), b)


def sub(a: Expr, b: Expr) -> Expr:
    """a - b."""
    return add(a, neg(b))


def mul(a: Expr, b: Expr) -> Expr:
    """a * b."""
    return fma(a, b, _const(-0.0, a))


def div(a: Expr, b: Expr) -> Expr:
    """a / b."""
    return opaque(a) / opaque(b)


def neg(x: Expr) -> Expr:
    """-x, of zeros too."""
    return mul(x, _const(-1.0, x))


def reciprocal(x: Expr) -> Expr:
    """1 / x."""
    return div(_const(1.0, x), x)


def abs(x: Expr) -> Expr:
    """|x|."""
    return _from_bits(_bits(x) & tirx.const(_magnitude(x), _bits_type(x)), x)


def sign(x: Expr) -> Expr:
    """-1, 0 or 1; 0 for NaN, as in PyTorch."""
    bindings = Bindings()
    x = bindings.bind(x)
    zero = _const(0.0, x)
    below = tirx.Select(lt(x, zero), _const(-1.0, x), zero)
    return bindings.close(tirx.Select(gt(x, zero), _const(1.0, x), below))


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger; NaN if either is NaN."""
    bindings = Bindings()
    a, b = bindings.bind(a), bindings.bind(b)
    return bindings.close(tirx.Select(tirx.Or(gt(a, b), isnan(a)), a, b))


def minimum(a: Expr, b: Expr) -> Expr:
    """The smaller; NaN if either is NaN."""
    bindings = Bindings()
    a, b = bindings.bind(a), bindings.bind(b)
    return bindings.close(tirx.Select(tirx.Or(lt(a, b), isnan(a)), a, b))


# --- comparison -------------------------------------------------------------------------------------------------------


def eq(a: Expr, b: Expr) -> Expr:
    """a == b; false for NaN."""
    return _hidden(a == opaque(b))


def ne(a: Expr, b: Expr) -> Expr:
    """a != b; true for NaN."""
    return _hidden(a != opaque(b))


def lt(a: Expr, b: Expr) -> Expr:
    """a < b; false for NaN."""
    return _hidden(a < opaque(b))


def le(a: Expr, b: Expr) -> Expr:
    """a <= b; false for NaN."""
    return _hidden(a <= opaque(b))


def gt(a: Expr, b: Expr) -> Expr:
    """a > b; false for NaN."""
    return lt(b, a)


def ge(a: Expr, b: Expr) -> Expr:
    """a >= b; false for NaN."""
    return le(b, a)


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
    """The remainder with the sign of the divisor."""
    bindings = Bindings()
    b = bindings.bind(b)
    r = bindings.bind(fmod(a, b))
    return bindings.close(tirx.Select(_signs_differ(r, b), add(r, b), r))


def _signs_differ(r: Expr, b: Expr) -> Expr:
    """Whether a remainder that is not 0 has another sign than the divisor."""
    zero = _const(0.0, r)
    return tirx.And(ne(r, zero), lt(r, zero) != lt(b, zero))


def floor_div(a: Expr, b: Expr) -> Expr:
    """floor(a / b) by way of the exact remainder, as in Python and PyTorch; a / b where b is 0."""
    bindings = Bindings()
    a, b = bindings.bind(a), bindings.bind(b)
    r = bindings.bind(fmod(a, b))
    quotient = bindings.bind(div(sub(a, r), b))
    lower = bindings.bind(tirx.Select(_signs_differ(r, b), sub(quotient, _const(1.0, a)), quotient))
    whole = bindings.bind(floor(lower))
    # the quotient is whole but for its rounding
    nearest = tirx.Select(gt(sub(lower, whole), _const(0.5, a)), add(whole, _const(1.0, a)), whole)
    ratio = bindings.bind(div(a, b))
    signed_zero = mul(ratio, _const(0.0, a))
    exact = tirx.Select(eq(lower, _const(0.0, a)), signed_zero, nearest)
    return bindings.close(tirx.Select(eq(b, _const(0.0, a)), ratio, exact))


def trunc_div(a: Expr, b: Expr) -> Expr:
    """a / b, rounded toward 0."""
    return trunc(div(a, b))


# --- rounding and elementary functions --------------------------------------------------------------------------------


def floor(x: Expr) -> Expr:
    """Rounded down."""
    return tirx.floor(x)


def ceil(x: Expr) -> Expr:
    """Rounded up."""
    return tirx.ceil(x)


def round(x: Expr) -> Expr:
    """Rounded to the nearest whole number, halves to even."""
    return tirx.nearbyint(x)


def trunc(x: Expr) -> Expr:
    """Rounded toward 0."""
    return tirx.trunc(x)


def tan(x: Expr) -> Expr:
    """The tangent: a call of libm."""
    return tirx.call_pure_extern(_dtype(x), "tan" if _dtype(x) == "float64" else "tanf", x)


def atan2(a: Expr, b: Expr) -> Expr:
    """The angle of the point (b, a): a call of libm."""
    return tirx.call_pure_extern(_dtype(a), "atan2" if _dtype(a) == "float64" else "atan2f", a, b)


# By the names of the IR's primitives.
FUNCTIONS = {
    **{
        f.__name__: f
        for f in (
            *(add, sub, mul, div, neg, reciprocal, abs, sign, maximum, minimum, eq, ne, lt, le, gt, ge, isnan),
            *(fmod, remainder, floor_div, trunc_div, floor, ceil, round, trunc, tan, atan2),
        )
    },
    **vmath.FUNCTIONS,
    "pow": vmath.pow,
}
