"""GELU in float32 as one function of its argument, in place of the formula with ``erf`` or ``tanh``.

x F(x), where F is the share of x that passes: F(-t) = p(t)^2 with a polynomial p for 0 <= t <= ``end``, from where on
nothing passes, and F(t) = 1 - F(-t). A square root is so much smoother than what it is the root of that one polynomial
reaches from end to end: two thirds of the multiplications that the formula takes by ``erf``, and no division.

The error is at most ``MAX_ERROR`` times |x|. That of the formula in float32, which PyTorch computes, is at most 3.5e-7
by ``erf`` and 1.1e-7 by ``tanh``. For negative x both have fewer and fewer digits, as far as that allows. Signs of
zeros, infinities and NaN are those of the formula; -inf gives NaN, as 0 times infinity does.

Polynomials are fitted as those of ``vmath`` are, so that the error of p(t)^2 is small; at the end they are below 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from tvm import tirx

from . import vmath
from .intrinsic import Expr, Function, intrinsic
from .llvm import Value, select

# p(t)^2 = erfc(t / sqrt 2) / 2 for 0 <= t <= 5.75, absolute error 2^-25.7
_ERF_END: Final = 5.75
_ERF_ROOT: Final = (
    *(0.707106769, -0.282094151, -0.0562747531, 0.0245759171, 0.00758669944, -0.00219889102, -0.000449732615),
    *(-4.9221886e-05, 0.000159039409, -5.40175643e-05, 8.49206936e-06, -6.72353053e-07, 2.17859402e-08),
)
# p(t)^2 = (1 - tanh u) / 2 with u = sqrt(2 / pi) (t + 0.044715 t^3) for 0 <= t <= 5.4, 2^-25.8
_TANH_END: Final = 5.4
_TANH_ROOT: Final = (
    *(0.707106769, -0.282094628, -0.0562648326, 0.0247331448, 0.00797568727, -0.00298934709, 0.000503029791),
    *(-0.000978598953, 0.000734330621, -0.000268929231, 5.74313672e-05, -7.36047696e-06, 5.27865495e-07),
    -1.63472844e-08,
)


def _passed(x: Value, root: Sequence[float], end: float) -> Value:
    magnitude = vmath.absolute(x)
    # beyond the end too the share is exactly 0: a tiny one of a huge number is not
    p = vmath.pairwise(vmath.at_most(magnitude, end), root)
    p = select(p > 0.0, p, 0.0)
    below = p * p
    return x * select(x > 0.0, 1.0 - below, below)


def _formula(inner: Function) -> Function:
    """What PyTorch computes, for float64."""
    return lambda x: tirx.FloatImm("float64", 0.5) * x * (inner(x) + tirx.FloatImm("float64", 1.0))


def _scaled(x: Expr) -> Expr:
    return tirx.erf(x * tirx.FloatImm("float64", math.sqrt(0.5)))


def _cubic(x: Expr) -> Expr:
    cubed = x * x * x * tirx.FloatImm("float64", 0.044715)
    return vmath.tanh(tirx.FloatImm("float64", math.sqrt(2 / math.pi)) * (x + cubed))


@intrinsic(_formula(_scaled))
def gelu(x: Value) -> Value:
    """0.5 x (1 + erf(x / sqrt 2))."""
    return _passed(x, _ERF_ROOT, _ERF_END)


@intrinsic(_formula(_cubic))
def gelu_tanh(x: Value) -> Value:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))."""
    return _passed(x, _TANH_ROOT, _TANH_END)


FUNCTIONS: Final[dict[str, Function]] = {"gelu": gelu, "gelu_tanh": gelu_tanh}
# The largest error over all float32 arguments as a part of |x|, rounded up.
MAX_ERROR: Final = 1.6e-7
