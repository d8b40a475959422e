"""The bits of float8_e4m3fn as floats, in registers, and floats as such bits.

A half has one bit of exponent more and a mantissa that begins alike, so that the bits but the sign, moved up by seven,
are a half of a 256th of the number, subnormal numbers included. Where the processor makes floats of halves that is an
instruction, which treats subnormal halves as any other, whatever the floating-point mode. Of NaN all those bits are 1:
one more carries into the highest bit of the half's exponent, which makes it a NaN. Elsewhere the exponent of a float is
computed, and subnormal numbers are whole ones times 2^-9.

The other way, a normal float8 is a float's exponent and upper mantissa after half of a last place was added, and one
more where that place is odd, so that halves go to even. A subnormal one is a multiple of 2^-9, which the sum with 2^14
is rounded to.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from .intrinsic import register, target_has

Expr = Any  # tvm has no type stubs


def float8_value(bits: Expr) -> Expr:
    """The number that the bits (uint8) stand for, as float32: exactly; NaN for those of NaN."""
    return tirx.call_intrin("float32", _FLOAT8, bits)


def float8_of(x: Expr) -> Expr:
    """The bits (uint8) of the number nearest to a float32, half to even; at most the largest, and NaN for NaN."""
    return tirx.call_intrin("uint8", _FLOAT8_OF, x)


def _definition(symbol: str, lanes: int) -> tuple[str, set[str]]:
    """LLVM text for a number of lanes."""

    def of(kind: str) -> str:
        return kind if lanes == 1 else f"<{lanes} x {kind}>"

    def each(kind: str, value: str) -> str:
        return value if lanes == 1 else f"splat ({kind} {value})"

    body = (_by_halves if target_has("f16c") else _by_exponents)(of, each)
    lines = "\n".join(f"  {line}" for line in body)
    return f"define {of('float')} @{symbol}({of('i8')} %bits) alwaysinline {{\n{lines}\n}}", set()


_NAN = "0x7FF8000000000000"


def _by_halves(of: Any, each: Any) -> list[str]:
    return [
        f"%wide = sext {of('i8')} %bits to {of('i16')}",
        f"%moved = shl {of('i16')} %wide, {each('i16', '7')}",
        f"%kept = and {of('i16')} %moved, {each('i16', str(0xBF80 - 0x10000))}",
        f"%more = add {of('i16')} %kept, {each('i16', '128')}",
        f"%none = and {of('i16')} %more, {each('i16', str(0x4000))}",
        f"%marked = or {of('i16')} %kept, %none",
        f"%half = bitcast {of('i16')} %marked to {of('half')}",
        f"%part = fpext {of('half')} %half to {of('float')}",
        f"%number = fmul {of('float')} %part, {each('float', '256.0')}",
        f"ret {of('float')} %number",
    ]


def _by_exponents(of: Any, each: Any) -> list[str]:
    return [
        f"%wide = zext {of('i8')} %bits to {of('i32')}",
        f"%size = and {of('i32')} %wide, {each('i32', '127')}",
        f"%moved = shl {of('i32')} %size, {each('i32', '20')}",
        f"%biased = add {of('i32')} %moved, {each('i32', str(120 << 23))}",
        f"%normal = bitcast {of('i32')} %biased to {of('float')}",
        f"%whole = sitofp {of('i32')} %size to {of('float')}",
        f"%small = fmul {of('float')} %whole, {each('float', str(2.0**-9))}",
        f"%few = icmp ult {of('i32')} %size, {each('i32', '8')}",
        f"%number = select {of('i1')} %few, {of('float')} %small, {of('float')} %normal",
        f"%none = icmp eq {of('i32')} %size, {each('i32', '127')}",
        f"%some = select {of('i1')} %none, {of('float')} {each('float', _NAN)}, {of('float')} %number",
        f"%plain = bitcast {of('float')} %some to {of('i32')}",
        f"%high = and {of('i32')} %wide, {each('i32', '128')}",
        f"%sign = shl {of('i32')} %high, {each('i32', '24')}",
        f"%signed = or {of('i32')} %plain, %sign",
        f"%result = bitcast {of('i32')} %signed to {of('float')}",
        f"ret {of('float')} %result",
    ]


def _rounded(symbol: str, lanes: int) -> tuple[str, set[str]]:
    """LLVM text of :func:`float8_of` for a number of lanes."""

    def of(kind: str) -> str:
        return kind if lanes == 1 else f"<{lanes} x {kind}>"

    def each(kind: str, value: str) -> str:
        return value if lanes == 1 else f"splat ({kind} {value})"

    def whole(value: int) -> str:
        return each("i32", str(value))

    i1, i32, real = of("i1"), of("i32"), of("float")
    body = [
        f"%bits = bitcast {real} %x to {i32}",
        f"%size = and {i32} %bits, {whole(0x7FFFFFFF)}",
        f"%large = icmp ugt {i32} %size, {whole(_BITS_OF_448)}",
        f"%most = select {i1} %large, {i32} {whole(_BITS_OF_448)}, {i32} %size",
        f"%moved = lshr {i32} %most, {whole(20)}",
        f"%odd = and {i32} %moved, {whole(1)}",
        f"%more = add {i32} %most, {whole(0x7FFFF)}",
        f"%tied = add {i32} %more, %odd",
        f"%upper = lshr {i32} %tied, {whole(20)}",
        f"%normal = sub {i32} %upper, {whole(120 << 3)}",
        f"%number = bitcast {i32} %most to {real}",
        f"%sum = fadd {real} %number, {each('float', '16384.0')}",
        f"%places = bitcast {real} %sum to {i32}",
        f"%small = sub {i32} %places, {whole(141 << 23)}",
        f"%few = icmp ult {i32} %most, {whole(121 << 23)}",
        f"%found = select {i1} %few, {i32} %small, {i32} %normal",
        f"%none = icmp ugt {i32} %size, {whole(0x7F800000)}",
        f"%some = select {i1} %none, {i32} {whole(0x7F)}, {i32} %found",
        f"%high = lshr {i32} %bits, {whole(24)}",
        f"%sign = and {i32} %high, {whole(0x80)}",
        f"%signed = or {i32} %some, %sign",
        f"%result = trunc {i32} %signed to {of('i8')}",
        f"ret {of('i8')} %result",
    ]
    lines = "\n".join(f"  {line}" for line in body)
    return f"define {of('i8')} @{symbol}({real} %x) alwaysinline {{\n{lines}\n}}", set()


_BITS_OF_448 = 0x43E00000
_FLOAT8_OF = register("float8_of", "The bits of float8_e4m3fn nearest to a float32, as uint8.", _rounded)
_FLOAT8 = register("float8_value", "The number whose bits in float8_e4m3fn a uint8 is, as float32.", _definition)
