"""The operands of a sum of products as TIR text, and axes as one flat index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from ...ir.types import Dim, product
from ..program import (
    Apply,
    Axis,
    Expr,
    Format,
    Load,
    Param,
    Program,
    Ref,
)
from ..runs import Runs, runs_along
from .expression import Scope, from_storage, index_text, scalar
from .storage import NARROW

_PANEL = "panel"  # the name under which an element of a packed weight stands in an expression


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


@dataclass(frozen=True)
class Strided(Runs):
    """A load of a parameter whose terms lie in runs."""

    param: Param


def strided_load(
    program: Program, expr: Expr, axis: Axis, *, half: bool = False, in_runs: bool = False
) -> Strided | None:
    """The expression as a plain load whose offset is affine in ``axis``, or None.

    Of fewer bytes only with ``half``, of terms in several runs only with ``in_runs``.
    """
    if not isinstance(expr, Load):
        return None
    param = program.param(expr.param)
    if param.format is Format.PANELS or (param.type.dtype in NARROW and not half):
        return None
    found = runs_along(param, expr.index, axis)
    if found is None or (found.length and not in_runs):
        return None
    return Strided(**vars(found), param=param)
