"""Elementary functions for float32 as straight SIMD code.

``tirx.exp``, ``tanh``, ``erf`` and their like become one libm call per element inside a vectorised loop. The functions
here become arithmetic, selects and integer operations on bits: no call, no branch, no table. They take and return TIR
expressions, in which each is one opaque call (see ``intrinsic``), and may be nested at will. A float64 argument goes to
libm; any other dtype is a ``TypeError``.

Infinities, NaN, signed zeros, and subnormal arguments and results are treated as in IEEE 754 and PyTorch. ``MAX_ULP``
bounds the error against a float64 reference, in units in the last place of the float32 result.

Polynomials are minimax fits (Lawson's iteratively reweighted least squares; coefficients rounded to float32 one by one
from the lowest, the rest fitted again each time), constant term first. The error quoted is that of the fit, before the
rounding errors of its evaluation. Argument reductions follow W. J. Cody and W. Waite, "Software Manual for the
Elementary Functions" (1980), and M. H. Payne and R. N. Hanek, "Radian Reduction for Trigonometric Functions" (1983).
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

from tvm import tirx

from .intrinsic import Expr, Function, intrinsic
from .llvm import Operand, Value, fma, select, square_root, truncate

_LN2_HIGH: Final = 0.693147182464599609  # ln 2 rounded to float32
_LN2_LOW: Final = -1.90465429995776804e-9  # ln 2 - _LN2_HIGH
_LOG2_E: Final = 1.44269504088896341
# Adding one of these rounds to an integer, which then stands in the low bits of the sum.
_ROUND_F32: Final = 1.5 * 2.0**23
_ROUND_F64: Final = 1.5 * 2.0**52
_ROUND_F32_BITS: Final = 0x4B400000
_TINY: Final = 2.0**-25  # f(x) = x + O(x^2) rounds to x, or its neighbour, below this
_INF: Final = math.inf
_LEAST_WEIGHT: Final = -87.33654  # e^x is a normal number from here on


def _libm(name: str) -> Function:
    """A float64 function of libm that TVM has no operator for."""
    return lambda x: tirx.call_pure_extern("float64", name, x)


def _horner(x: Value, coefficients: Sequence[float]) -> Value:
    """The polynomial in x with these coefficients, constant term first."""
    result: Operand = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        result = fma(x, result, coefficient)
    return x.lift(result)


def pairwise(x: Value, coefficients: Sequence[float]) -> Value:
    """As ``_horner`` in half as many steps that wait for each other: of pairs of terms, in x^2."""
    pairs = [
        fma(x, pair[1], pair[0]) if len(pair) > 1 else x.lift(pair[0])
        for pair in (coefficients[i : i + 2] for i in range(0, len(coefficients), 2))
    ]
    square, result = x * x, pairs[-1]
    for pair in reversed(pairs[:-1]):
        result = fma(square, result, pair)
    return result


def _bits(x: Value) -> Value:
    return x.convert("bitcast", "i32")


def _float(bits: Value) -> Value:
    return bits.convert("bitcast", "float")


def absolute(x: Value) -> Value:
    """|x|."""
    return _float(_bits(x) & 0x7FFFFFFF)


def _sign_bit(x: Value) -> Value:
    return _bits(x) & -0x80000000


def _with_sign(magnitude: Value, sign: Value) -> Value:
    """``magnitude``, whose own sign is ignored, with the sign of ``sign``."""
    return _float((_bits(magnitude) & 0x7FFFFFFF) | _sign_bit(sign))


def at_most(x: Value, high: float) -> Value:
    """x or ``high``, the lesser; NaN stays NaN."""
    return select(x > high, high, x)


def _clamp(x: Value, low: float, high: float) -> Value:
    """x within [low, high]; NaN stays NaN."""
    return select(x < low, low, at_most(x, high))


# Exponentials ---------------------------------------------------------------------------------------------------------

# e^r - 1 = r + r^2 q(r) for |r| <= ln(2) / 2, relative error 2^-26.1
_EXPM1: Final = (0.49999997, 0.166665465, 0.0416674353, 0.00836626161, 0.00138706574)


def _rounded_int(rounded: Value, offset: int) -> Value:
    """n + offset, for rounded = _ROUND_F32 + n."""
    return _bits(rounded) - (_ROUND_F32_BITS - offset)


def _power_of_two(biased: Value) -> Value:
    """2^(biased - 127) for 0 < biased < 255."""
    return _float(biased << 23)


def _reduce_exp(x: Value) -> tuple[Value, Value]:
    """Cody and Waite: x = n ln 2 + r with |r| <= ln(2) / 2, as _ROUND_F32 + n and r."""
    rounded = fma(x, _LOG2_E, _ROUND_F32)
    n = rounded - _ROUND_F32
    return rounded, fma(n, -_LN2_LOW, fma(n, -_LN2_HIGH, x))


def _expm1_reduced(r: Value) -> Value:
    return fma(r * r, _horner(r, _EXPM1), r)


def _scaled_exp(rounded: Value, r: Value) -> Value:
    """2^n e^r. In two steps, so that subnormal results round once and 2^128 is never formed."""
    n = _rounded_int(rounded, 0)
    half = n >> 1
    return (_expm1_reduced(r) + 1.0) * _power_of_two(half + 127) * _power_of_two(n - half + 127)


def _exp(x: Value) -> Value:
    # e^89 overflows and e^-104 is less than half the least subnormal. Below it the scaling is given 1 and its result
    # dropped, since a product that underflows takes several times as long, and masked attention scores all would.
    zero = x < -104.0
    argument = select(zero, 0.0, at_most(x, 89.0))
    return select(zero, 0.0, _scaled_exp(*_reduce_exp(argument)))


@intrinsic(tirx.exp)
def exp(x: Value) -> Value:
    """e^x: Cody and Waite's reduction, then a polynomial of degree 6."""
    return _exp(x)


@intrinsic(tirx.exp)
def exp_weight(x: Value) -> Value:
    """e^x for x <= 0, as a softmax needs it: 0 below 2^-126, in two thirds of the instructions of ``exp``.

    ln 2 is one float32 number here: the error is 1.1 ulp down to x = -10, 1.4 to -20, and 4.5 at the end.
    """
    rounded = fma(x, _LOG2_E, _ROUND_F32)
    r = fma(rounded - _ROUND_F32, -_LN2_HIGH, x)
    result = fma(r * r, pairwise(r, _EXPM1), r + 1.0) * _power_of_two(_bits(rounded) + 127)
    # what is formed for a smaller x has no meaning, and is dropped; NaN stays NaN
    return select(x < _LEAST_WEIGHT, 0.0, result)


@intrinsic(tirx.exp2)
def exp2(x: Value) -> Value:
    """2^x: an exact reduction, then e^(r ln 2) as in ``exp``."""
    x = _clamp(x, -151.0, 129.0)
    rounded = x + _ROUND_F32
    return _scaled_exp(rounded, _LN2_HIGH * (x - (rounded - _ROUND_F32)))


def _halved_expm1(x: Value) -> Value:
    """(e^x - 1) / 2 for -86 < x < 89: 2^(n-1) (e^r - 1) + (2^(n-1) - 1/2). So 2^128 is never formed."""
    rounded, r = _reduce_exp(x)
    power = _power_of_two(_rounded_int(rounded, 126))
    return fma(power, _expm1_reduced(r), power - 0.5)


@intrinsic(_libm("expm1"))
def expm1(x: Value) -> Value:
    """e^x - 1 to full relative accuracy near 0."""
    result = 2.0 * _halved_expm1(_clamp(x, -64.0, 89.0))
    return select(absolute(x) < _TINY, x, result)


@intrinsic(_libm("tanh"))
def tanh(x: Value) -> Value:
    """tanh |x| = t / (t + 2) with t = e^(2|x|) - 1, which rounds to 1 from |x| = 9.02 on."""
    magnitude = absolute(x)
    half = _halved_expm1(at_most(2.0 * magnitude, 19.0))
    return _with_sign(select(magnitude < _TINY, x, half / (half + 1.0)), x)


@intrinsic(tirx.sigmoid)
def sigmoid(x: Value) -> Value:
    """1 / (1 + e^-x), by e^-|x|: no overflow, and small results keep their relative accuracy."""
    power = _exp(-absolute(x))
    return select(x < 0.0, power, 1.0) / (power + 1.0)


# Logarithms -----------------------------------------------------------------------------------------------------------

# ln(1 + f) = f + f^2 q(f) for |f| <= 1/3, relative error 2^-27.7
_LOG1P: Final = (
    *(-0.5, 0.333332151, -0.249998048, 0.200104386, -0.166802078),
    *(0.140054762, -0.121877491, 0.139859602, -0.128776997),
)
_TWO_THIRDS_BITS: Final = 0x3F2AAAAB


def _exponent(pattern: Value) -> Value:
    """k * 2^23, for the bits of 2^k m with 2/3 <= m < 4/3."""
    return (pattern - _TWO_THIRDS_BITS) & -0x800000


def _split(x: Value) -> tuple[Value, Value]:
    """x = 2^k (1 + f) with |f| <= 1/3, for 0 < x < inf: k and f. Subnormals are scaled up first."""
    subnormal = x < 2.0**-126
    pattern = _bits(select(subnormal, x * 2.0**23, x))
    exponent = _exponent(pattern)
    k = (exponent >> 23).convert("sitofp", "float") - select(subnormal, x.lift(23.0), 0.0)
    return k, _float(pattern - exponent) - 1.0


def _log1p_reduced(f: Value) -> Value:
    return fma(f * f, _horner(f, _LOG1P), f)


def _log_domain(x: Value, least: float, inside: Value) -> Value:
    """``inside`` for least < x < inf, with the limits at both ends and NaN for the rest."""
    beyond = select(x.equals(least), x.lift(-_INF), math.nan)
    return select(x > least, select(x < _INF, inside, _INF), beyond)


@intrinsic(tirx.log)
def log(x: Value) -> Value:
    """ln x: exponent and mantissa from the bits, then a polynomial of degree 10."""
    k, f = _split(x)
    # k * _LN2_LOW, left out here and in log1p, is below a tenth of an ulp of the sum.
    return _log_domain(x, 0.0, fma(k, _LN2_HIGH, _log1p_reduced(f)))


@intrinsic(tirx.log2)
def log2(x: Value) -> Value:
    """log2 x, as ``log``: exact for powers of two."""
    k, f = _split(x)
    return _log_domain(x, 0.0, fma(_log1p_reduced(f), _LOG2_E, k))


@intrinsic(tirx.log1p)
def log1p(x: Value) -> Value:
    """ln(1 + x). 1 + x = 2^k (1 + f) with k from the rounded sum but f from x itself, so that no bit of x is lost."""
    exponent = _exponent(_bits(x + 1.0))
    power = _float(((127 + 2) << 23) - exponent)  # 2^(2-k), since 2^-128 would be subnormal
    f = _float(_bits(x) - exponent) + fma(power, 0.25, -1.0)
    k = (exponent >> 23).convert("sitofp", "float")
    result = fma(k, _LN2_HIGH, _log1p_reduced(f))
    return _log_domain(x, -1.0, select(absolute(x) < _TINY, x, result))


# Error function -------------------------------------------------------------------------------------------------------

# erf(x) = x + x p(x^2) for |x| <= 1, relative error 2^-29.4
_ERF: Final = (0.128379166, -0.37612626, 0.112835787, -0.0268533472, 0.0051871622, -0.00079978531, 7.80690316e-05)
# erfc(t) = p(t - 2)^4 for 1 <= t <= 4, absolute error 2^-26.8
_ERFC: Final = (
    *(0.261522323, -0.288861662, 0.0991393477, 0.00690153055, -0.0122490646),
    *(0.0015321438, 0.00077281578, -0.000178239003, -2.2126031e-05),
)


@intrinsic(tirx.erf)
def erf(x: Value) -> Value:
    """erf x: an odd polynomial up to |x| = 1, then 1 - p^4 with p a polynomial for the fourth root of erfc."""
    magnitude = absolute(x)
    t = at_most(magnitude, 4.0)
    root = _horner(t - 2.0, _ERFC)
    square = root * root
    large = fma(square, -square, 1.0)
    small = fma(t, _horner(t * t, _ERF), t)
    return _with_sign(select(t > 1.0, large, small), x)


# Sine and cosine ------------------------------------------------------------------------------------------------------

# sin(r) = r + r^3 p(r^2) and cos(r) = 1 - r^2 / 2 + r^4 p(r^2) for |r| <= pi / 4, relative errors 2^-27.9 and 2^-33.0
_SIN: Final = (-0.166666552, 0.00833218824, -0.000195180997)
_COS: Final = (0.0416666456, -0.00138873106, 2.44325529e-05)
_TWO_OVER_PI: Final = 0xA2F9836E4E441529FC2757D1F534DDC0DB6295993C439041FE5163ABDEBBC561  # times 2^-256


def _two_over_pi(dropped: int) -> tuple[float, float]:
    """2 / pi without its first ``dropped`` binary places, as the sum of two float64 numbers."""
    fraction = _TWO_OVER_PI & ((1 << (256 - dropped)) - 1)
    high = float(fraction)
    return math.ldexp(high, -256), math.ldexp(float(fraction - int(high)), -256)


def _reduce_quarter(x: Value, phase: int) -> tuple[Value, Value]:
    """x = (q + s) pi / 2 for x >= 0: an integer with the low bits of q + phase, and s pi / 2 in [-pi / 4, pi / 4].

    Payne and Hanek's idea in float64: an x of at least 2^(24+21j) is a multiple of 2^(1+21j), so the bits of 2 / pi
    down to 2^(1-21j) only add whole turns. Without them x * high is below 2^46 and x * low below 2^-6.
    """
    wide = x.convert("fpext", "double")
    high, low = map(wide.lift, _two_over_pi(0))
    for j in (1, 2, 3, 4):
        large = wide >= 2.0 ** (24 + 21 * j)
        next_high, next_low = _two_over_pi(21 * j - 1)
        high, low = select(large, next_high, high), select(large, next_low, low)
    rounded = fma(wide, high, _ROUND_F64 + phase)
    rest = fma(wide, low, fma(wide, high, (_ROUND_F64 + phase) - rounded))
    quarters = rounded.convert("bitcast", "i64").convert("trunc", "i32")
    return quarters, (rest * (math.pi / 2)).convert("fptrunc", "float")


def _sin_quarter(quarters: Value, r: Value) -> Value:
    """sin(quarters * pi / 2 + r)."""
    square = r * r
    sine = fma(square * r, _horner(square, _SIN), r)
    cosine = fma(square * square, _horner(square, _COS), fma(square, -0.5, 1.0))
    odd = (quarters & 1).equals(1)
    return _float(_bits(select(odd, cosine, sine)) ^ ((quarters & 2) << 30))


@intrinsic(tirx.sin)
def sin(x: Value) -> Value:
    """sin x, accurate for every finite x; NaN for infinities."""
    magnitude = _sin_quarter(*_reduce_quarter(absolute(x), phase=0))
    return _float(_bits(magnitude) ^ _sign_bit(x))


@intrinsic(tirx.cos)
def cos(x: Value) -> Value:
    """cos x, accurate for every finite x; NaN for infinities."""
    return _sin_quarter(*_reduce_quarter(absolute(x), phase=1))


# Roots and powers -----------------------------------------------------------------------------------------------------


@intrinsic(tirx.sqrt)
def sqrt(x: Value) -> Value:
    """The square root, correctly rounded: a SIMD instruction."""
    return square_root(x)


@intrinsic(tirx.rsqrt)
def rsqrt(x: Value) -> Value:
    """1 / sqrt(x), by a square root and a division."""
    return 1.0 / square_root(x)


# log2(1 + f) = s p(s^2) with s = f / (2 + f) for |f| <= 1/3, relative error 2^-42; 2^r = p(r) for |r| <= 1/2, 2^-29
_LOG2: Final = (2.885390081777364, 0.9617966949, 0.57707773477, 0.412227821868, 0.31923259658, 0.29140795244)
_EXP2: Final = (
    *(1.0000000005541667, 0.6931472057372603, 0.2402264689062327, 0.05550328776975),
    *(0.00961848895830732, 0.0013399931215462952, 0.00015345811671689),
)


def _log2_wide(x: Value) -> Value:
    """log2(x) in float64 for x >= 0, with +-1e300 for its infinities, so that a product with 0 is 0."""
    k, f = (part.convert("fpext", "double") for part in _split(x))
    s = f / (f + 2.0)
    finite = fma(s, _horner(s * s, _LOG2), k)
    nonzero = select(x > 0.0, finite, -1e300)
    return select(x < _INF, nonzero, select(x.equals(_INF), 1e300, x.convert("fpext", "double")))


def _exp2_wide(x: Value) -> Value:
    """2^x for a float64 x, rounded once to float32."""
    x = _clamp(x, -160.0, 130.0)
    rounded = x + _ROUND_F64
    fraction = x - (rounded - _ROUND_F64)
    power = ((rounded.convert("bitcast", "i64") + 1023) << 52).convert("bitcast", "double")
    return (_horner(fraction, _EXP2) * power).convert("fptrunc", "float")


@intrinsic(tirx.pow)
def pow(x: Value, y: Value) -> Value:
    """x^y as 2^(y log2 |x|) in float64, with the sign and the exceptions of IEEE 754's pow."""
    magnitude = absolute(x)
    finite_y = _clamp(y, -3e38, 3e38).convert("fpext", "double")
    result = _exp2_wide(finite_y * _log2_wide(magnitude))
    whole, half = truncate(y).equals(y), y * 0.5
    odd_sign = select(truncate(half).equals(half), 0, select(whole, _sign_bit(x), 0))
    signed = _float(_bits(result) ^ odd_sign)
    # -0 and -inf have powers with fractional exponents; the other negative numbers do not.
    negative = select(x < 0.0, select(magnitude < _INF, math.nan, signed), signed)
    return select(y.equals(0.0), 1.0, select(x.equals(1.0), 1.0, select(whole, signed, negative)))


# The functions of one argument, by name; ``pow`` has two.
FUNCTIONS: Final[dict[str, Callable[[Expr], Expr]]] = {
    function.__name__: function
    for function in (exp, exp2, expm1, log, log2, log1p, tanh, erf, sigmoid, sin, cos, sqrt, rsqrt)
}
# The largest error over all float32 arguments (pow: over 30 million pairs), rounded up.
MAX_ULP: Final = {
    "exp": 1.1,
    "exp2": 1.1,
    "expm1": 1.6,
    "log": 1.0,
    "log2": 1.8,
    "log1p": 1.6,
    "tanh": 2.6,
    "erf": 1.5,
    "sigmoid": 2.5,
    "sin": 1.6,
    "cos": 1.6,
    "sqrt": 0.5,
    "rsqrt": 1.5,
    "pow": 0.6,
}
