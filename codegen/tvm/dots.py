"""The dot instructions of x86 as TVM operators: groups of two bfloat16 or four int8 in lanes of 32 bits."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from .intrinsic import Definition, register

Expr = Any  # tvm has no type stubs

_FLIP = -0x7F7F7F80  # 0x80808080: a bit in each byte that makes a signed number an unsigned one, greater by 128


def bf16(total: Expr, left: Expr, right: Expr) -> Expr:
    """total + left[0] * right[0] + left[1] * right[1], the pairs as int32, in float32."""
    return tirx.call_intrin("float32", _BF16, total, left, right)


def pair(low: Expr, high: Expr) -> Expr:
    """Two float32 rounded to bfloat16, as an int32."""
    return tirx.call_intrin("int32", _PAIR, low, high)


def u8s8(total: Expr, left: Expr, right: Expr) -> Expr:
    """total + the products of the bytes of ``left``, unsigned, with those of ``right``, signed; modulo 2**32."""
    return tirx.call_intrin("int32", _U8S8, total, left, right)


def s8s8(total: Expr, left: Expr, right: Expr) -> Expr:
    """As :func:`u8s8` of signed bytes with 128 added to each on the left: 128 times those on the right too much."""
    return tirx.call_intrin("int32", _S8S8, total, left, right)


def _pairs(symbol: str, lanes: int) -> tuple[str, set[str]]:
    floats, whole, pairs = f"<{lanes} x float>", f"<{lanes} x i32>", f"<{2 * lanes} x bfloat>"
    function = f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}"
    text = f"""define {floats} @{symbol}({floats} %total, {whole} %left, {whole} %right) alwaysinline {{
  %a = bitcast {whole} %left to {pairs}
  %b = bitcast {whole} %right to {pairs}
  %sum = call {floats} @{function}({floats} %total, {pairs} %a, {pairs} %b)
  ret {floats} %sum
}}"""
    return text, {f"declare {floats} @{function}({floats}, {pairs}, {pairs})"}


def _rounded(symbol: str, lanes: int) -> tuple[str, set[str]]:
    floats, halves, whole = (f"<{lanes} x {kind}>" for kind in ("float", "bfloat", "i32"))
    text = f"""define {whole} @{symbol}({floats} %low, {floats} %high) alwaysinline {{
  %l = fptrunc {floats} %low to {halves}
  %h = fptrunc {floats} %high to {halves}
  %a = bitcast {halves} %l to <{lanes} x i16>
  %b = bitcast {halves} %h to <{lanes} x i16>
  %c = zext <{lanes} x i16> %a to {whole}
  %d = zext <{lanes} x i16> %b to {whole}
  %e = shl {whole} %d, splat (i32 16)
  %pair = or {whole} %c, %e
  ret {whole} %pair
}}"""
    return text, set()


def _quads(left: str, prepare: str) -> Definition:
    def define(symbol: str, lanes: int) -> tuple[str, set[str]]:
        whole, function = f"<{lanes} x i32>", f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
        text = f"""define {whole} @{symbol}({whole} %total, {whole} %left, {whole} %right) alwaysinline {{
{prepare.format(whole=whole)}  %sum = call {whole} @{function}({whole} %total, {whole} {left}, {whole} %right)
  ret {whole} %sum
}}"""
        return text, {f"declare {whole} @{function}({whole}, {whole}, {whole})"}

    return define


_BF16 = register("dot_bf16", bf16.__doc__ or "", _pairs)
_PAIR = register("pair_bf16", pair.__doc__ or "", _rounded)
_U8S8 = register("dot_u8s8", u8s8.__doc__ or "", _quads("%left", ""))
# As assembly, for LLVM's selection of instructions does not end on xor of what is read from memory for all lanes.
_UNSIGNED = f'  %a = call {{whole}} asm "vpxord $2, $1, $0", "=v,v,v"({{whole}} %left, {{whole}} splat (i32 {_FLIP}))\n'
_S8S8 = register("dot_s8s8", s8s8.__doc__ or "", _quads("%a", _UNSIGNED))
