"""Elementary functions for float32 that TVM's vectoriser and LLVM turn into straight SIMD code.

``tirx.exp``, ``tanh``, ``erf`` and their like become one libm call per element inside a vectorised loop. The functions
here take a scalar float32 expression, evaluate it once, and return one made of arithmetic, selects and integer
operations on bits: no call, no branch, no table. A float64 argument goes to libm; any other dtype is a ``TypeError``.

Infinities, NaN, signed zeros, and subnormal arguments and results are treated as in IEEE 754 and PyTorch. ``MAX_ULP``
bounds the error against a float64 reference, in units in the last place of the float32 result.

Polynomials are minimax fits (Lawson's iteratively reweighted least squares; coefficients rounded to float32 one by one
from the lowest, the rest fitted again each time), constant term first. The error quoted is that of the fit, before the
rounding errors of its evaluation. Argument reductions follow W. J. Cody and W. Waite, "Software Manual for the
Elementary Functions" (1980), and M. H. Payne and R. N. Hanek, "Radian Reduction for Trigonometric Functions" (1983).
"""

import math
from collections.abc import Callable
from typing import Final

from tvm import tirx

from .scalar import (
    INF,
    NAN,
    Bindings,
    Expr,
    absolute,
    at_most,
    bits,
    clamp,
    f32,
    f64,
    fma,
    from_bits,
    horner,
    i32,
    i64,
    sign_bit,
    subtract,
    with_sign,
)

Bind = Callable[[Expr], Expr]
Function = Callable[..., Expr]

_LN2_HIGH: Final = 0.693147182464599609  # ln 2 rounded to float32
_LN2_LOW: Final = -1.90465429995776804e-9  # ln 2 - _LN2_HIGH
_LOG2_E: Final = 1.44269504088896341
# Adding one of these rounds to an integer, which then stands in the low bits of the sum.
_ROUND_F32: Final = 1.5 * 2.0**23
_ROUND_F64: Final = 1.5 * 2.0**52
_ROUND_F32_BITS: Final = 0x4B400000
_TINY: Final = 2.0**-25  # f(x) = x + O(x^2) rounds to x, or its neighbour, below this


def _elementary(libm: Function) -> Callable[[Function], Function]:
    """Make a float32 body, whose first argument binds shared values, a function; ``libm`` is its float64 form."""

    def decorate(body: Function) -> Function:
        def function(*arguments: Expr) -> Expr:
            dtypes = {str(argument.ty.dtype) for argument in arguments}
            if dtypes == {"float64"}:
                return libm(*arguments)
            if dtypes != {"float32"}:
                raise TypeError(f"{body.__name__} takes float32 or float64, not {sorted(dtypes)}: cast first")
            bindings = Bindings()
            return bindings.close(body(bindings.bind, *map(bindings.bind, arguments)))

        function.__name__, function.__doc__ = body.__name__, body.__doc__
        return function

    return decorate


def _libm(name: str) -> Function:
    """A float64 function of libm that TVM has no operator for."""
    return lambda x: tirx.call_pure_extern("float64", name, x)


# Exponentials ---------------------------------------------------------------------------------------------------------

# e^r - 1 = r + r^2 q(r) for |r| <= ln(2) / 2, relative error 2^-26.1
_EXPM1: Final = (0.49999997, 0.166665465, 0.0416674353, 0.00836626161, 0.00138706574)


def _rounded_int(rounded: Expr, offset: int) -> Expr:
    """n + offset, for rounded = _ROUND_F32 + n."""
    return bits(rounded) - i32(_ROUND_F32_BITS - offset)


def _power_of_two(biased: Expr) -> Expr:
    """2^(biased - 127) for 0 < biased < 255."""
    return from_bits(biased << i32(23))


def _reduce_exp(bind: Bind, x: Expr) -> tuple[Expr, Expr]:
    """Cody and Waite: x = n ln 2 + r with |r| <= ln(2) / 2, as _ROUND_F32 + n and r."""
    rounded = bind(fma(x, f32(_LOG2_E), f32(_ROUND_F32)))
    n = bind(subtract(rounded, _ROUND_F32))
    return rounded, bind(fma(n, f32(-_LN2_LOW), fma(n, f32(-_LN2_HIGH), x)))


def _expm1_reduced(bind: Bind, r: Expr) -> Expr:
    return fma(bind(r * r), horner(r, _EXPM1), r)


def _scaled_exp(bind: Bind, rounded: Expr, r: Expr) -> Expr:
    """2^n e^r. In two steps, so that subnormal results round once and 2^128 is never formed."""
    n = bind(_rounded_int(rounded, 0))
    half = bind(n >> i32(1))
    return (_expm1_reduced(bind, r) + f32(1.0)) * _power_of_two(half + i32(127)) * _power_of_two(n - half + i32(127))


def _exp(bind: Bind, x: Expr) -> Expr:
    # e^89 overflows and e^-104 is less than half the least subnormal. Below it the scaling is given 1 and its result
    # dropped, since a product that underflows takes several times as long, and masked attention scores all would.
    zero = x < f32(-104.0)
    argument = bind(tirx.Select(zero, f32(0.0), at_most(x, 89.0)))
    return tirx.Select(zero, f32(0.0), _scaled_exp(bind, *_reduce_exp(bind, argument)))


@_elementary(tirx.exp)
def exp(bind: Bind, x: Expr) -> Expr:
    """e^x: Cody and Waite's reduction, then a polynomial of degree 6."""
    return _exp(bind, x)


@_elementary(tirx.exp2)
def exp2(bind: Bind, x: Expr) -> Expr:
    """2^x: an exact reduction, then e^(r ln 2) as in ``exp``."""
    x = bind(clamp(x, -151.0, 129.0))
    rounded = bind(fma(x, f32(1.0), f32(_ROUND_F32)))
    return _scaled_exp(bind, rounded, bind(f32(_LN2_HIGH) * (x - subtract(rounded, _ROUND_F32))))


def _halved_expm1(bind: Bind, x: Expr) -> Expr:
    """(e^x - 1) / 2 for -86 < x < 89: 2^(n-1) (e^r - 1) + (2^(n-1) - 1/2). So 2^128 is never formed."""
    rounded, r = _reduce_exp(bind, x)
    power = bind(_power_of_two(_rounded_int(rounded, 126)))
    return fma(power, _expm1_reduced(bind, r), subtract(power, 0.5))


@_elementary(_libm("expm1"))
def expm1(bind: Bind, x: Expr) -> Expr:
    """e^x - 1 to full relative accuracy near 0."""
    result = f32(2.0) * _halved_expm1(bind, bind(clamp(x, -64.0, 89.0)))
    return tirx.Select(absolute(x) < f32(_TINY), x, result)


@_elementary(tirx.tanh)
def tanh(bind: Bind, x: Expr) -> Expr:
    """tanh |x| = t / (t + 2) with t = e^(2|x|) - 1, which rounds to 1 from |x| = 9.02 on."""
    magnitude = bind(absolute(x))
    half = bind(_halved_expm1(bind, bind(at_most(bind(f32(2.0) * magnitude), 19.0))))
    return with_sign(tirx.Select(magnitude < f32(_TINY), x, half / (half + f32(1.0))), x)


@_elementary(tirx.sigmoid)
def sigmoid(bind: Bind, x: Expr) -> Expr:
    """1 / (1 + e^-x), by e^-|x|: no overflow, and small results keep their relative accuracy."""
    power = bind(_exp(bind, bind(-absolute(x))))
    return tirx.Select(x < f32(0.0), power, f32(1.0)) / (power + f32(1.0))


# Logarithms -----------------------------------------------------------------------------------------------------------

# ln(1 + f) = f + f^2 q(f) for |f| <= 1/3, relative error 2^-27.7
_LOG1P: Final = (
    *(-0.5, 0.333332151, -0.249998048, 0.200104386, -0.166802078),
    *(0.140054762, -0.121877491, 0.139859602, -0.128776997),
)
_TWO_THIRDS_BITS: Final = 0x3F2AAAAB


def _exponent(pattern: Expr) -> Expr:
    """k * 2^23, for the bits of 2^k m with 2/3 <= m < 4/3."""
    return (pattern - i32(_TWO_THIRDS_BITS)) & i32(-0x800000)


def _split(bind: Bind, x: Expr) -> tuple[Expr, Expr]:
    """x = 2^k (1 + f) with |f| <= 1/3, for 0 < x < inf: k and f. Subnormals are scaled up first."""
    subnormal = x < f32(2.0**-126)
    pattern = bind(bits(tirx.Select(subnormal, x * f32(2.0**23), x)))
    exponent = bind(_exponent(pattern))
    k = tirx.Cast("float32", exponent >> i32(23)) - tirx.Select(subnormal, f32(23.0), f32(0.0))
    return bind(k), bind(from_bits(pattern - exponent) - f32(1.0))


def _log1p_reduced(bind: Bind, f: Expr) -> Expr:
    return fma(bind(f * f), horner(f, _LOG1P), f)


def _log_domain(x: Expr, least: float, inside: Expr) -> Expr:
    """``inside`` for least < x < inf, with the limits at both ends and NaN for the rest."""
    beyond = tirx.Select(x == f32(least), -INF, NAN)
    return tirx.Select(x > f32(least), tirx.Select(x < INF, inside, INF), beyond)


@_elementary(tirx.log)
def log(bind: Bind, x: Expr) -> Expr:
    """ln x: exponent and mantissa from the bits, then a polynomial of degree 10."""
    k, f = _split(bind, x)
    # k * _LN2_LOW, left out here and in log1p, is below a tenth of an ulp of the sum.
    return _log_domain(x, 0.0, fma(k, f32(_LN2_HIGH), _log1p_reduced(bind, f)))


@_elementary(tirx.log2)
def log2(bind: Bind, x: Expr) -> Expr:
    """log2 x, as ``log``: exact for powers of two."""
    k, f = _split(bind, x)
    return _log_domain(x, 0.0, fma(_log1p_reduced(bind, f), f32(_LOG2_E), k))


@_elementary(tirx.log1p)
def log1p(bind: Bind, x: Expr) -> Expr:
    """ln(1 + x). 1 + x = 2^k (1 + f) with k from the rounded sum but f from x itself, so that no bit of x is lost."""
    exponent = bind(_exponent(bits(x + f32(1.0))))
    power = from_bits(i32((127 + 2) << 23) - exponent)  # 2^(2-k), since 2^-128 would be subnormal
    f = bind(from_bits(bits(x) - exponent) + fma(power, f32(0.25), f32(-1.0)))
    k = tirx.Cast("float32", exponent >> i32(23))
    result = fma(k, f32(_LN2_HIGH), _log1p_reduced(bind, f))
    return _log_domain(x, -1.0, tirx.Select(absolute(x) < f32(_TINY), x, result))


# Error function -------------------------------------------------------------------------------------------------------

# erf(x) = x + x p(x^2) for |x| <= 1, relative error 2^-29.4
_ERF: Final = (0.128379166, -0.37612626, 0.112835787, -0.0268533472, 0.0051871622, -0.00079978531, 7.80690316e-05)
# erfc(t) = p(t - 2)^4 for 1 <= t <= 4, absolute error 2^-26.8
_ERFC: Final = (
    *(0.261522323, -0.288861662, 0.0991393477, 0.00690153055, -0.0122490646),
    *(0.0015321438, 0.00077281578, -0.000178239003, -2.2126031e-05),
)


@_elementary(tirx.erf)
def erf(bind: Bind, x: Expr) -> Expr:
    """erf x: an odd polynomial up to |x| = 1, then 1 - p^4 with p a polynomial for the fourth root of erfc.

    The exact GELU is 0.5 x (1 + erf(x / sqrt 2)), as in PyTorch.
    """
    magnitude = bind(absolute(x))
    t = bind(at_most(magnitude, 4.0))
    root = bind(horner(bind(t - f32(2.0)), _ERFC))
    square = bind(root * root)
    large = fma(square, -square, f32(1.0))
    small = fma(t, horner(bind(t * t), _ERF), t)
    return with_sign(tirx.Select(t > f32(1.0), large, small), x)


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


def _reduce_quarter(bind: Bind, x: Expr, phase: int) -> tuple[Expr, Expr]:
    """x = (q + s) pi / 2 for x >= 0: an integer with the low bits of q + phase, and s pi / 2 in [-pi / 4, pi / 4].

    Payne and Hanek's idea in float64: an x of at least 2^(24+21j) is a multiple of 2^(1+21j), so the bits of 2 / pi
    down to 2^(1-21j) only add whole turns. Without them x * high is below 2^46 and x * low below 2^-6.
    """
    wide = bind(tirx.Cast("float64", x))
    high, low = (f64(part) for part in _two_over_pi(0))
    for j in (1, 2, 3, 4):
        large = wide >= f64(2.0 ** (24 + 21 * j))
        next_high, next_low = (f64(part) for part in _two_over_pi(21 * j - 1))
        high, low = tirx.Select(large, next_high, high), tirx.Select(large, next_low, low)
    high = bind(high)
    rounded = bind(fma(wide, high, f64(_ROUND_F64 + phase)))
    rest = fma(wide, low, fma(wide, high, -subtract(rounded, _ROUND_F64 + phase)))
    quarters = tirx.Cast("int32", tirx.reinterpret("int64", rounded))
    return bind(quarters), bind(tirx.Cast("float32", rest * f64(math.pi / 2)))


def _sin_quarter(bind: Bind, quarters: Expr, r: Expr) -> Expr:
    """sin(quarters * pi / 2 + r)."""
    square = bind(r * r)
    sine = fma(bind(square * r), horner(square, _SIN), r)
    cosine = fma(bind(square * square), horner(square, _COS), fma(square, f32(-0.5), f32(1.0)))
    odd = (quarters & i32(1)) == i32(1)
    return from_bits(bits(tirx.Select(odd, cosine, sine)) ^ ((quarters & i32(2)) << i32(30)))


@_elementary(tirx.sin)
def sin(bind: Bind, x: Expr) -> Expr:
    """sin x, accurate for every finite x; NaN for infinities."""
    magnitude = _sin_quarter(bind, *_reduce_quarter(bind, bind(absolute(x)), phase=0))
    return from_bits(bits(magnitude) ^ sign_bit(x))


@_elementary(tirx.cos)
def cos(bind: Bind, x: Expr) -> Expr:
    """cos x, accurate for every finite x; NaN for infinities."""
    return _sin_quarter(bind, *_reduce_quarter(bind, bind(absolute(x)), phase=1))


# Roots and powers -----------------------------------------------------------------------------------------------------


@_elementary(tirx.sqrt)
def sqrt(_: Bind, x: Expr) -> Expr:
    """The square root, correctly rounded: a SIMD instruction."""
    return tirx.sqrt(x)


@_elementary(tirx.rsqrt)
def rsqrt(_: Bind, x: Expr) -> Expr:
    """1 / sqrt(x), by a square root and a division."""
    return f32(1.0) / tirx.sqrt(x)


# log2(1 + f) = s p(s^2) with s = f / (2 + f) for |f| <= 1/3, relative error 2^-42; 2^r = p(r) for |r| <= 1/2, 2^-29
_LOG2: Final = (2.885390081777364, 0.9617966949, 0.57707773477, 0.412227821868, 0.31923259658, 0.29140795244)
_EXP2: Final = (
    *(1.0000000005541667, 0.6931472057372603, 0.2402264689062327, 0.05550328776975),
    *(0.00961848895830732, 0.0013399931215462952, 0.00015345811671689),
)


def _log2_wide(bind: Bind, x: Expr) -> Expr:
    """log2(x) in float64 for x >= 0, with +-1e300 for its infinities, so that a product with 0 is 0."""
    k, f = (bind(tirx.Cast("float64", part)) for part in _split(bind, x))
    s = bind(f / (f + f64(2.0)))
    finite = fma(s, horner(bind(s * s), _LOG2), k)
    nonzero = tirx.Select(x > f32(0.0), finite, f64(-1e300))
    return tirx.Select(x < INF, nonzero, tirx.Select(x == INF, f64(1e300), tirx.Cast("float64", x)))


def _exp2_wide(bind: Bind, x: Expr) -> Expr:
    """2^x for a float64 x, rounded once to float32."""
    x = bind(clamp(x, -160.0, 130.0))
    rounded = bind(fma(x, f64(1.0), f64(_ROUND_F64)))
    fraction = bind(x - subtract(rounded, _ROUND_F64))
    power = tirx.reinterpret("float64", (tirx.reinterpret("int64", rounded) + i64(1023)) << i64(52))
    return tirx.Cast("float32", horner(fraction, _EXP2) * power)


@_elementary(tirx.pow)
def pow(bind: Bind, x: Expr, y: Expr) -> Expr:
    """x^y as 2^(y log2 |x|) in float64, with the sign and the exceptions of IEEE 754's pow."""
    magnitude, whole = bind(absolute(x)), bind(tirx.trunc(y))
    finite_y = tirx.Cast("float64", bind(clamp(y, -3e38, 3e38)))
    result = _exp2_wide(bind, bind(finite_y * _log2_wide(bind, magnitude)))
    half = bind(y * f32(0.5))
    odd_sign = tirx.Select(tirx.trunc(half) == half, i32(0), tirx.Select(whole == y, sign_bit(x), i32(0)))
    signed = from_bits(bits(result) ^ odd_sign)
    negative_base = tirx.Select(x < f32(0.0), tirx.Select(magnitude < INF, NAN, signed), signed)
    real = tirx.Select(whole == y, signed, negative_base)
    return tirx.Select(y == f32(0.0), f32(1.0), tirx.Select(x == f32(1.0), f32(1.0), real))


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
