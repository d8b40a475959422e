"""The bits of float8_e4m3fn as floats, in registers.

A half has one bit of exponent more and a mantissa that begins alike, so that the bits but the sign, moved up by seven,
are a half of a 256th of the number, subnormal numbers included. Where the processor makes floats of halves that is an
instruction, which treats subnormal halves as any other, whatever the floating-point mode. Of NaN all those bits are 1:
one more carries into the highest bit of the half's exponent, which makes it a NaN. Elsewhere the exponent of a float is
computed, and subnormal numbers are whole ones times 2^-9.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from .intrinsic import register, target_has

Expr = Any  # tvm has no type stubs


def float8_value(bits: Expr) -> Expr:
    """The number that the bits (uint8) stand for, as float32: exactly; NaN for those of NaN."""
    return tirx.call_intrin("float32", _FLOAT8, bits)


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


_FLOAT8 = register("float8_value", "The number whose bits in float8_e4m3fn a uint8 is, as float32.", _definition)
