"""What a sum of products is: its two operands, and which axes tell batches, rows and columns apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..gpu import dot_stage
from ..program import Apply, Axis, Expr, Format, Load, Program, Stage, postorder
from .expression import free_symbols
from .storage import HALF


@dataclass(frozen=True)
class Contraction:
    """A DOT stage: ``left[batch, rows, terms] * right[batch, terms, columns]`` summed over the terms."""

    stage: Stage
    left: Expr
    right: Expr
    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    terms: tuple[Axis, ...]


def contraction(program: Program, stage: Stage | None = None) -> Contraction:
    """Sort the axes of a DOT stage. The right operand is the weight, else the one that reads the last axis."""
    stage = stage or dot_stage(program)
    assert isinstance(stage.value, Apply)
    assert stage.combine is not None
    left, right = stage.value.args
    swapped = stage.axes and stage.axes[-1].symbol in free_symbols(left) - free_symbols(right)
    if _is_weight(program, left) or (not _is_weight(program, right) and swapped):
        left, right = right, left
    in_left, in_right = free_symbols(left), free_symbols(right)
    return Contraction(
        stage,
        left,
        right,
        batch=tuple(a for a in stage.axes if a.symbol in in_right & in_left),
        rows=tuple(a for a in stage.axes if a.symbol not in in_right),
        columns=tuple(a for a in stage.axes if a.symbol in in_right - in_left),
        terms=stage.combine.axes,
    )


def _is_weight(program: Program, expr: Expr) -> bool:
    loads = (e for e in postorder([expr]) if isinstance(e, Load))
    return any(program.param(e.param).format is Format.PANELS for e in loads)


def dot_dtype(left: Expr, right: Expr) -> torch.dtype:
    """The dtype that operands of ``tl.dot`` have: their own where it is one half type, float32 otherwise."""
    return left.dtype if left.dtype == right.dtype and left.dtype in HALF else torch.float32


def dot(a: str, b: str, acc: str, dtype: torch.dtype, tf32: bool) -> str:
    """``a @ b + acc`` in float32, whose operands are rounded first only where ``tf32`` is asked for."""
    if dtype.itemsize == 2:
        return f"lib.dot({a}, {b}, {acc})"
    return f'tl.dot({a}, {b}, {acc}, input_precision="{"tf32" if tf32 else "ieee"}")'
