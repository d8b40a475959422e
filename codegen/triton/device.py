"""Elementary functions on a GPU: libdevice, on float32 and float64."""

# mypy: ignore-errors

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice


@triton.jit
def _times(a, b):
    return a * b


@triton.jit
def product_of(x, axis: tl.constexpr):
    """The product along an axis, which stays."""
    return tl.reduce(x, axis, _times, keep_dims=True)


@triton.jit
def cos(x):
    """The cosine."""
    return libdevice.cos(x)


@triton.jit
def erf(x):
    """The error function."""
    return libdevice.erf(x)


@triton.jit
def exp(x):
    """e to the x."""
    return libdevice.exp(x)


@triton.jit
def exp2(x):
    """2 to the x."""
    return libdevice.exp2(x)


@triton.jit
def expm1(x):
    """exp(x) - 1."""
    return libdevice.expm1(x)


@triton.jit
def log(x):
    """The natural logarithm."""
    return libdevice.log(x)


@triton.jit
def log1p(x):
    """log(1 + x)."""
    return libdevice.log1p(x)


@triton.jit
def log2(x):
    """The logarithm to base 2."""
    return libdevice.log2(x)


@triton.jit
def rsqrt(x):
    """1 / sqrt(x)."""
    return libdevice.rsqrt(x)


@triton.jit
def sin(x):
    """The sine."""
    return libdevice.sin(x)


@triton.jit
def tan(x):
    """The tangent."""
    return libdevice.tan(x)


@triton.jit
def tanh(x):
    """The hyperbolic tangent."""
    return libdevice.tanh(x)


@triton.jit
def trunc(x):
    """Rounded toward 0."""
    return libdevice.trunc(x)


@triton.jit
def round(x):
    """Rounded to the nearest whole number, halves to even."""
    return libdevice.rint(x)


@triton.jit
def sqrt(x):
    """The square root, rounded once."""
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    return tl.sqrt(x)


@triton.jit
def atan2(a, b):
    """The angle of the point (b, a)."""
    return libdevice.atan2(a, b)


@triton.jit
def fmod(a, b):
    """The remainder with the sign of the dividend: exact."""
    return libdevice.fmod(a, b)


@triton.jit
def pow(a, b):
    """a to the b."""
    return libdevice.pow(a, b)


@triton.jit
def float8_half(bits):
    """The number whose bits in float8_e4m3fn these are, as a half: in whole registers, on any GPU.

    Triton's own conversion needs sm_89. The bits but the sign, moved, are a half of a 256th of the number; where all of
    them are one, one more carries into the highest bit of the exponent, which makes a NaN.
    """
    return tl.inline_asm_elementwise(
        """
        {
            .reg .b32 first, second, size, more, by;
            mov.b32 by, 0x5C005C00;
            prmt.b32 first, $2, 0, 0x1404;
            prmt.b32 second, $2, 0, 0x3424;
            shr.b32 size, first, 1;
            and.b32 size, size, 0x3F803F80;
            add.u32 more, size, 0x00800080;
            lop3.b32 size, size, more, 0x40004000, 0xF8;
            lop3.b32 size, size, first, 0x80008000, 0xF8;
            mul.f16x2 $0, size, by;
            shr.b32 size, second, 1;
            and.b32 size, size, 0x3F803F80;
            add.u32 more, size, 0x00800080;
            lop3.b32 size, size, more, 0x40004000, 0xF8;
            lop3.b32 size, size, second, 0x80008000, 0xF8;
            mul.f16x2 $1, size, by;
        }
        """,
        "=r,=r,r",
        [bits],
        dtype=tl.float16,
        is_pure=True,
        pack=4,
    )


@triton.jit
def dot(a, b, acc):
    """a @ b + acc of half types, in float32."""
    return tl.dot(a, b, acc)


@triton.jit
def float8_dot(a, b, acc, most: tl.constexpr):
    """a @ b + acc of the bits of float8; sums of at most ``most`` terms leave the tensor cores to be added in float32.

    On sm_90 those have fewer bits than float32 (``docs/decisions/028-float8-activations.md``).
    """
    left, right = a.to(tl.float8e4nv, bitcast=True), b.to(tl.float8e4nv, bitcast=True)
    return tl.dot(left, right, acc, max_num_imprecise_acc=most)
