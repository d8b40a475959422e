"""Elements in memory and values in registers: Triton types, conversions, constants."""

from __future__ import annotations

import math

import torch

from ...ir.errors import UnsupportedError
from ...ir.types import DTYPE_NAMES

HALF = (torch.float16, torch.bfloat16)

# Triton's type of elements, and how signatures spell it
TYPES: dict[torch.dtype, tuple[str, str]] = {
    torch.float64: ("tl.float64", "fp64"),
    torch.float32: ("tl.float32", "fp32"),
    torch.float16: ("tl.float16", "fp16"),
    torch.bfloat16: ("tl.bfloat16", "bf16"),
    torch.int64: ("tl.int64", "i64"),
    torch.int32: ("tl.int32", "i32"),
    torch.int16: ("tl.int16", "i16"),
    torch.int8: ("tl.int8", "i8"),
    torch.uint8: ("tl.uint8", "u8"),
    torch.bool: ("tl.int1", "i1"),
}


def storage_type(dtype: torch.dtype) -> str:
    """The Triton type of elements in memory.

    Raises:
        UnsupportedError: kernels do not handle elements of this dtype.
    """
    if dtype not in TYPES:
        raise UnsupportedError(f"Triton: no code for elements of {DTYPE_NAMES.get(dtype, str(dtype))}")
    return TYPES[dtype][0]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that values of a dtype are computed in: float32 for half types."""
    return torch.float32 if dtype in HALF else dtype


def compute_type(dtype: torch.dtype) -> str:
    """The Triton type that values of a dtype are computed in."""
    return storage_type(compute_dtype(dtype))


def from_storage(text: str, dtype: torch.dtype) -> str:
    """An element as loaded, as a value. Triton keeps bool as bytes and loads them as such."""
    if dtype == torch.bool:
        return f"({text} != 0)"
    return f"{text}.to(tl.float32)" if dtype in HALF else text


def to_storage(text: str, dtype: torch.dtype) -> str:
    """A value as it is stored."""
    return f"({text}).to({storage_type(dtype)})" if dtype in HALF else text


def number_text(value: float | int | bool, dtype: torch.dtype) -> str:
    """A constant as a literal of Python."""
    if dtype == torch.bool:
        return "True" if value else "False"
    if not dtype.is_floating_point:
        return str(int(value))
    value = float(value)
    return f'float("{value}")' if math.isnan(value) or math.isinf(value) else repr(value)


def const_text(value: float | int | bool, dtype: torch.dtype) -> str:
    """A constant as a value of its dtype, wherever it stands."""
    return f"tl.full((), {number_text(value, dtype)}, {compute_type(dtype)})"


def has_literals(dtype: torch.dtype) -> bool:
    """Whether a literal beside a value of this dtype is taken as a number of it, unrounded."""
    return compute_dtype(dtype) in (torch.float32, torch.int32, torch.int64)


def cast_text(text: str, source: torch.dtype, target: torch.dtype) -> str:
    """A value of one dtype as a value of another; rounded where the target is a half type."""
    if target == torch.bool:
        return text if source == torch.bool else f"({text} != 0)"
    if target in HALF:
        wide = text if compute_dtype(source) == torch.float32 else f"{text}.to(tl.float32)"
        return f"{wide}.to({storage_type(target)}).to(tl.float32)"
    if compute_dtype(source) == compute_dtype(target):
        return text
    if source.is_floating_point and not target.is_floating_point and target != torch.int64:
        narrow = "" if target == torch.int32 else f".to({storage_type(target)})"
        # narrow integers are the low bits of an int32, as on the CPU
        return f"{text}.to(tl.int32){narrow}"
    return f"{text}.to({compute_type(target)})"
