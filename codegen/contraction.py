"""What a sum of products multiplies: its two operands, and its axes sorted by which of them read them."""

from __future__ import annotations

from dataclasses import dataclass

import sympy
import torch

from .program import Apply, Axis, Expr, Format, Load, Program, Ref, Stage, postorder


def axes_of(expr: Expr) -> set[sympy.Symbol]:
    """The symbols in an expression's index maps."""
    found: set[sympy.Symbol] = set()
    for e in postorder([expr]):
        match e:
            case Load() | Ref():
                indices = [i for i in e.index if isinstance(i, sympy.Expr)]
            case _:
                indices = [i for i in (getattr(e, "index", 0), getattr(e, "size", 0)) if isinstance(i, sympy.Expr)]
        found.update(*(i.free_symbols for i in indices))
    return found


@dataclass(frozen=True)
class Contraction:
    """A DOT stage: ``left`` is read along ``rows``, ``right`` along ``columns``, both along ``batch``, ``reduced``."""

    stage: Stage
    left: Expr
    right: Expr
    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    columns: tuple[Axis, ...]
    reduced: tuple[Axis, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the product."""
        return self.stage.dtype


def contraction(program: Program, stage: Stage) -> Contraction:
    """Sort the axes of a DOT stage. The right operand is the packed one, else the one that reads the last axis."""
    assert isinstance(stage.value, Apply)
    assert stage.combine is not None
    left, right = stage.value.args
    if _reads_panels(program, left) or (
        not _reads_panels(program, right) and stage.axes and stage.axes[-1].symbol in axes_of(left) - axes_of(right)
    ):
        left, right = right, left
    in_left, in_right = axes_of(left), axes_of(right)
    columns = tuple(a for a in stage.axes if a.symbol in in_right - in_left)
    batch = tuple(a for a in stage.axes if a.symbol in in_right & in_left)
    rows = tuple(a for a in stage.axes if a.symbol not in in_right)
    return Contraction(stage, left, right, batch, rows, columns, stage.combine.axes)


def _reads_panels(program: Program, expr: Expr) -> bool:
    return panel_load(program, expr) is not None


def panel_load(program: Program, expr: Expr) -> Load | None:
    """The load of a packed weight in an expression: the first, which scales and zeros may follow."""
    loads = (e for e in postorder([expr]) if isinstance(e, Load))
    return next((e for e in loads if program.param(e.param).format is Format.PANELS), None)
