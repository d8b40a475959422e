"""Elements in memory and values in registers: TIR types, conversions, constants."""

from __future__ import annotations

import math

import torch

from ...ir.errors import UnsupportedError
from ...ir.types import DTYPE_NAMES

HALF = (torch.float16, torch.bfloat16)
NARROW = (*HALF, torch.int8)  # what becomes float32 where it is read

# how elements lie in memory; bool as bytes and bfloat16 as its bits, for TIR has no vectors of them in memory
STORAGE: dict[torch.dtype, str] = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "uint16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "int8",
}


def storage_type(dtype: torch.dtype) -> str:
    """The TIR type of elements in memory.

    Raises:
        UnsupportedError: kernels do not handle elements of this dtype.
    """
    if dtype not in STORAGE:
        raise UnsupportedError(f"TVM: no code for elements of {DTYPE_NAMES.get(dtype, str(dtype))}")
    return STORAGE[dtype]


def compute_type(dtype: torch.dtype) -> str:
    """The TIR type that values of a dtype are computed in: half types in float32."""
    if dtype == torch.bool:
        return "bool"
    return "float32" if dtype in HALF else storage_type(dtype)


def from_storage(text: str, dtype: torch.dtype) -> str:
    """An element as stored, as a value."""
    if dtype == torch.bool:
        return f"({text} != T.int8(0))"
    if dtype == torch.bfloat16:
        return f"helpers.from_bf16({text})"
    return f'T.Cast("float32", {text})' if dtype == torch.float16 else text


def to_storage(text: str, dtype: torch.dtype) -> str:
    """A value as it is stored."""
    if dtype == torch.bool:
        return f'T.Cast("int8", {text})'
    if dtype == torch.bfloat16:
        return f"helpers.to_bf16({text})"
    return f'T.Cast("float16", {text})' if dtype == torch.float16 else text


def const_text(value: float | int | bool, dtype: torch.dtype) -> str:
    """The TIR text of a constant."""
    kind = compute_type(dtype)
    if kind == "bool":
        return "T.bool(True)" if value else "T.bool(False)"
    if not kind.startswith("float"):
        return f"T.{kind}({int(value)})"
    value = float(value)
    return f'T.{kind}("{value}")' if math.isnan(value) or math.isinf(value) else f"T.{kind}({value!r})"


def cast_text(text: str, source: torch.dtype, target: torch.dtype) -> str:
    """A value of one dtype as a value of another; rounded where the target is a half type."""
    if target == torch.bool:
        return text if source == torch.bool else f"helpers.nonzero({text})"
    if target in HALF:
        wide = text if compute_type(source) == "float32" else f'T.Cast("float32", {text})'
        return from_storage(to_storage(wide, target), target)
    if compute_type(source) == compute_type(target):
        return text
    if source.is_floating_point and not target.is_floating_point:
        return f'helpers.float_to_int({text}, "{storage_type(target)}")'
    return f'T.Cast("{compute_type(target)}", {text})'
