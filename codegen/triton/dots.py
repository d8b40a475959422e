"""Products of two blocks: the dtype of their operands, and the call."""

from __future__ import annotations

import torch

from ..program import Expr
from .storage import HALF


def dot_dtype(left: Expr, right: Expr) -> torch.dtype:
    """The dtype that operands of ``tl.dot`` have: their own where it is one half type, float32 otherwise."""
    return left.dtype if left.dtype == right.dtype and left.dtype in HALF else torch.float32


def dot(a: str, b: str, acc: str, dtype: torch.dtype, tf32: bool) -> str:
    """``a @ b + acc`` in float32, whose operands are rounded first only where ``tf32`` is asked for."""
    if dtype.itemsize == 2:
        return f"lib.dot({a}, {b}, {acc})"
    return f'tl.dot({a}, {b}, {acc}, input_precision="{"tf32" if tf32 else "ieee"}")'


def float8_dot(a: str, b: str, acc: str, most: int) -> str:
    """``a @ b + acc`` of the bits of float8, whose sums leave the tensor cores after ``most`` terms."""
    return f"lib.float8_dot({a}, {b}, {acc}, {most})"


def int_dot(a: str, b: str, acc: str) -> str:
    """``a @ b + acc`` of int8 in int32."""
    return f"tl.dot({a}, {b}, {acc}, out_dtype=tl.int32)"
