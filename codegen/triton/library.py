"""What generated kernels call: pointwise functions and reductions with PyTorch's rules for NaN, zeros and integers.

On a GPU the elementary functions are libdevice's, which PyTorch uses too. Triton's interpreter has none of them: there
``emulated`` stands in. Which of the two is fixed when this module is imported, as Triton fixes it.
"""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = triton.knobs.runtime.interpret

if INTERPRETED:
    from .emulated import (
        atan2,
        cos,
        dot,
        erf,
        exp,
        exp2,
        expm1,
        float8_dot,
        float8_half,
        fmod,
        log,
        log1p,
        log2,
        pow,
        product_of,
        round,
        rsqrt,
        sin,
        sqrt,
        tan,
        tanh,
        trunc,
    )
else:
    from .device import (
        atan2,
        cos,
        dot,
        erf,
        exp,
        exp2,
        expm1,
        float8_dot,
        float8_half,
        fmod,
        log,
        log1p,
        log2,
        pow,
        product_of,
        round,
        rsqrt,
        sin,
        sqrt,
        tan,
        tanh,
        trunc,
    )

__all__ = [
    "atan2",
    "cos",
    "dot",
    "erf",
    "exp",
    "exp2",
    "expm1",
    "float8_dot",
    "float8_half",
    "fmod",
    "log",
    "log1p",
    "log2",
    "pow",
    "product_of",
    "round",
    "rsqrt",
    "sin",
    "sqrt",
    "tan",
    "tanh",
    "trunc",
]


# --- numbers ----------------------------------------------------------------------------------------------------------


@triton.jit
def div(a, b):
    """a / b, rounded once."""
    if a.dtype == tl.float32:
        return tl.div_rn(a, b)
    return a / b


@triton.jit
def reciprocal(x):
    """1 / x, rounded once."""
    return div(tl.full((), 1.0, x.dtype), x)


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    one = tl.full((), 1.0, x.dtype)
    return div(one, one + exp(-x))


@triton.jit
def sign(x):
    """-1, 0 or 1; 0 for NaN."""
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


@triton.jit
def maximum(a, b):
    """The larger; NaN if either is NaN."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def minimum(a, b):
    """The smaller; NaN if either is NaN."""
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def trunc_div(a, b):
    """a / b, rounded toward 0."""
    return trunc(div(a, b))


@triton.jit
def remainder(a, b):
    """The remainder with the sign of the divisor."""
    r = fmod(a, b)
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)


@triton.jit
def floor_div(a, b):
    """floor(a / b) by way of the exact remainder, as in PyTorch; a / b where b is 0."""
    r = fmod(a, b)
    quotient = div(a - r, b)
    lower = tl.where((r != 0) & ((r < 0) != (b < 0)), quotient - 1, quotient)
    whole = tl.floor(lower)
    nearest = tl.where(lower - whole > 0.5, whole + 1, whole)
    ratio = div(a, b)
    exact = tl.where(lower == 0, ratio * 0, nearest)
    return tl.where(b == 0, ratio, exact)


# --- integers ---------------------------------------------------------------------------------------------------------


@triton.jit
def int_floor_div(a, b):
    """The quotient rounded down; Triton's own is rounded toward 0."""
    r = a % b
    return (a // b - ((r != 0) & ((r < 0) != (b < 0))).to(a.dtype)).to(a.dtype)


@triton.jit
def int_remainder(a, b):
    """The remainder with the sign of the divisor; Triton's own has that of the dividend."""
    r = a % b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r).to(a.dtype)


@triton.jit
def float8_value(bits):
    """The number whose bits in float8_e4m3fn these are, as float32; any half type holds it as well."""
    return float8_half(bits).to(tl.float32)


@triton.jit
def float8_of(x):
    """The bits of the float8_e4m3fn nearest to a float32, half to even; at most the largest, and NaN for NaN.

    On any GPU. A normal number is the exponent and the upper mantissa, rounded as whole numbers; a subnormal one is a
    multiple of 2^-9, to which the sum with 2^14 is rounded.
    """
    bits = x.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    most = tl.minimum(size, 0x43E00000)  # 448
    normal = ((most + 0x7FFFF + ((most >> 20) & 1)) >> 20) - 960
    small = (most.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    found = tl.where(most < 0x3C800000, small, normal)  # 2^-6
    found = tl.where(size > 0x7F800000, 0x7F, found)
    return (found | ((bits >> 24) & 0x80)).to(tl.uint8)


# --- reductions -------------------------------------------------------------------------------------------------------


@triton.jit
def isnan(x):
    """Whether x is NaN."""
    return x != x


@triton.jit
def max_of(x, axis: tl.constexpr):
    """The largest along an axis, which stays; NaN if any is NaN."""
    found = tl.max(x, axis=axis, keep_dims=True)
    if x.dtype.is_floating():
        nan = tl.max((x != x).to(tl.int32), axis=axis, keep_dims=True)
        return tl.where(nan != 0, float("nan"), found)
    return found


@triton.jit
def min_of(x, axis: tl.constexpr):
    """The smallest along an axis, which stays; NaN if any is NaN."""
    found = tl.min(x, axis=axis, keep_dims=True)
    if x.dtype.is_floating():
        nan = tl.max((x != x).to(tl.int32), axis=axis, keep_dims=True)
        return tl.where(nan != 0, float("nan"), found)
    return found


@triton.jit
def more(a, b):
    """Whether a comes before b in an argmax: NaN is largest, the first NaN wins."""
    if a.dtype.is_floating():
        return (a > b) | ((a != a) & (b == b))
    return a > b


@triton.jit
def less(a, b):
    """Whether a comes before b in an argmin: NaN is smallest, the first NaN wins."""
    if a.dtype.is_floating():
        return (a < b) | ((a != a) & (b == b))
    return a < b


@triton.jit
def first_of(x, best, position, axis: tl.constexpr):
    """The least position along an axis where x is ``best``, among those not negative; -1 where there is none."""
    hit = (x == best) & (position >= 0)
    if x.dtype.is_floating():
        hit = hit | ((x != x) & (best != best) & (position >= 0))
    found = tl.min(tl.where(hit, position, 0x7FFFFFFFFFFFFFFF), axis=axis, keep_dims=True)
    return tl.where(found == 0x7FFFFFFFFFFFFFFF, -1, found)


# --- indices from data ------------------------------------------------------------------------------------------------


@triton.jit
def report(cell, outside):
    """Note in the error cell that an index of a block is out of range."""
    tl.store(cell, 1, mask=tl.max(outside.to(tl.int32)) != 0)
