"""What a sum of products multiplies: its axes sorted by the operands that read them, and its operands as TIR text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy
import torch

from ...ir.types import Dim, product
from ..program import (
    Apply,
    Axis,
    Combiner,
    Expr,
    Format,
    Load,
    Param,
    Program,
    Ref,
    Stage,
    postorder,
)
from .expression import HALF, Scope, from_storage, index_text, scalar

_PANEL = "panel"  # the name under which an element of a packed weight stands in an expression


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


def panel_text(expr: Expr, load: Load, element: str, scope: Scope) -> str:
    """The text of an operand around ``load`` where the packed element is ``element``."""
    param = scope.program.param(load.param)
    named = scope.knowing({_PANEL: from_storage(element, param.type.dtype)})
    return scalar(_replaced(expr, load), named)


def _replaced(expr: Expr, load: Load) -> Expr:
    if expr is load:
        return Ref(_PANEL, (), load.dtype)
    if isinstance(expr, Apply):
        return Apply(expr.op, tuple(_replaced(a, load) for a in expr.args), expr.dtype)
    return expr


# --- axes as one flat index -------------------------------------------------------------------------------------------


def flat_size(axes: Sequence[Axis]) -> Dim:
    """How many points some axes have."""
    return product(a.size for a in axes)


def unflatten(axes: Sequence[Axis], flat: str, scope: Scope) -> dict[sympy.Symbol, str]:
    """The text of each axis, given that of the row-major index over all of them."""
    found: dict[sympy.Symbol, str] = {}
    for axis in reversed(axes[1:]):
        size = index_text(axis.size, scope)
        found[axis.symbol] = f"({flat} % {size})"
        flat = f"({flat} // {size})"
    if axes:
        found[axes[0].symbol] = flat
    return found


def offset_of(param: Param, index: Sequence[sympy.Expr | int]) -> sympy.Expr:
    """An element's offset in its flat buffer."""
    products = (sympy.sympify(i) * stride for i, stride in zip(index, param.strides, strict=True))
    return sympy.expand(sum(products, sympy.Integer(0)))


@dataclass(frozen=True)
class Strided:
    """A load at ``base + step * k``: ``step`` depends on no axis."""

    param: Param
    base: sympy.Expr
    step: sympy.Expr


def strided_load(program: Program, expr: Expr, axis: Axis) -> Strided | None:
    """The expression as a plain float load whose offset is affine in ``axis``, or None."""
    if not isinstance(expr, Load) or not all(isinstance(i, sympy.Expr | int) for i in expr.index):
        return None
    param = program.param(expr.param)
    if param.format is Format.PANELS or param.type.dtype in HALF:
        return None
    offset = offset_of(param, [i for i in expr.index if isinstance(i, sympy.Expr | int)])
    step = sympy.expand(offset.coeff(axis.symbol, 1))
    base = sympy.expand(offset - step * axis.symbol)
    if axis.symbol in base.free_symbols or any(str(s).startswith("_") for s in step.free_symbols):
        return None
    return Strided(param, base, step)


def dot_stage(program: Program) -> Stage:
    """The first stage that is a sum of products."""
    return next(s for s in program.stages if s.combine is not None and s.combine.kind is Combiner.DOT)
