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


def strided_load(program: Program, expr: Expr, axis: Axis, *, half: bool = False) -> Strided | None:
    """The expression as a plain load whose offset is affine in ``axis``, or None; of fewer bytes only with ``half``."""
    if not isinstance(expr, Load) or not all(isinstance(i, sympy.Expr | int) for i in expr.index):
        return None
    param = program.param(expr.param)
    if param.format is Format.PANELS or (param.type.dtype in NARROW and not half):
        return None
    offset = offset_of(param, [i for i in expr.index if isinstance(i, sympy.Expr | int)])
    step = sympy.expand(offset.coeff(axis.symbol, 1))
    base = sympy.expand(offset - step * axis.symbol)
    if axis.symbol in base.free_symbols or any(str(s).startswith("_") for s in step.free_symbols):
        return None
    return Strided(param, base, step)
