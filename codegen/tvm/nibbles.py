"""Numbers of four bits as floats, in registers.

Where a register holds sixteen floats, one is a table of them, which an instruction looks numbers up in: it takes the
low four bits of each lane, so that a number costs a shift and a permutation. Elsewhere its bits become the mantissa of
2^23.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from .intrinsic import register, target_has

Expr = Any  # tvm has no type stubs

TABLE = tuple(float(n) for n in range(-8, 8))
_TWO23 = 0x4B000000  # the bits of 2^23


def from_four_bits(word: Expr, place: Expr | int) -> Expr:
    """The number at a place of an int32 of eight of them, less 8, as float32, exactly."""
    by = tirx.const(4 * place, "int32") if isinstance(place, int) else place.astype("int32") * tirx.const(4, "int32")
    return tirx.call_intrin("float32", _LOW, word >> by)


def _low_four(symbol: str, lanes: int) -> tuple[str, set[str]]:
    """Low four bits less 8, other bits being anything."""
    if lanes == len(TABLE) and target_has("avx512f"):
        return _looked_up(symbol)
    words, floats = ("i32", "float") if lanes == 1 else (f"<{lanes} x i32>", f"<{lanes} x float>")

    def number(text: str) -> str:
        return text.split()[1] if lanes == 1 else f"splat ({text})"

    text = f"""define {floats} @{symbol}({words} %word) alwaysinline {{
  %low = and {words} %word, {number("i32 15")}
  %bits = or {words} %low, {number(f"i32 {_TWO23}")}
  %more = bitcast {words} %bits to {floats}
  %number = fsub {floats} %more, {number("float 8388616.0")}
  ret {floats} %number
}}"""
    return text, set()


def _looked_up(symbol: str) -> tuple[str, set[str]]:
    function = "<16 x float> @llvm.x86.avx512.permvar.sf.512"
    table = ", ".join(f"float {value}" for value in TABLE)
    text = f"""define <16 x float> @{symbol}(<16 x i32> %word) alwaysinline {{
  %number = call {function}(<16 x float> <{table}>, <16 x i32> %word)
  ret <16 x float> %number
}}"""
    return text, {f"declare {function}(<16 x float>, <16 x i32>)"}


_LOW = register("low_four_bits", "The low four bits of an int32 less 8, as float32.", _low_four)
