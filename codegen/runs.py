"""Terms that lie in runs: what an offset is along an axis that views have put together of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from .program import Axis, Param, as_fraction

SHORTEST = 16  # terms of a run: shorter ones are brought together first


@dataclass(frozen=True)
class Runs:
    """The offset ``base + step * k + jump * (k // length)`` of term k; ``jump`` and ``length`` are 0 for one run.

    Windows that slide along [T, C] have runs: taps are C apart, and a tap has C terms. ``step`` and ``jump`` depend on
    no axis.
    """

    base: sympy.Expr
    step: sympy.Expr
    jump: sympy.Expr
    length: int


def runs_along(param: Param, index: Sequence[object], axis: Axis) -> Runs | None:
    """How an index into a parameter runs along an axis; None where its offset is of no such form."""
    if not all(isinstance(i, sympy.Expr | int) for i in index):
        return None
    products = (sympy.sympify(i) * stride for i, stride in zip(index, param.strides, strict=True))
    return runs_of(sympy.Add(*products), axis.symbol)


def runs_of(offset: sympy.Expr, k: sympy.Symbol) -> Runs | None:
    """An offset as :class:`Runs` of ``k``; None where it is none."""
    plain = sympy.expand(_as_quotients(offset, k))
    quotients = [q for q in plain.atoms(sympy.floor) if k in q.free_symbols]
    if len(quotients) > 1:
        return None
    jump, length = sympy.Integer(0), 0
    if quotients:
        over, under = as_fraction(quotients[0].args[0])
        if over != k or not under.is_Integer:
            return None
        jump, length = sympy.expand(plain.coeff(quotients[0], 1)), int(under)
        plain = sympy.expand(plain - jump * quotients[0])
    step = sympy.expand(plain.coeff(k, 1))
    base = sympy.expand(plain - step * k)
    moved = base.free_symbols | base.atoms(sympy.floor)
    if k in moved or any(str(s).startswith("_") for s in step.free_symbols | jump.free_symbols):
        return None
    return Runs(base, step, jump, length)


def _as_quotients(expr: sympy.Expr, k: sympy.Symbol) -> sympy.Expr:
    """The same number with remainders of ``k`` as what quotients leave, and quotients of quotients as one."""

    def remainder(dividend: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr:
        if k not in dividend.free_symbols:
            return sympy.Mod(dividend, divisor)
        return dividend - divisor * quotient(dividend / divisor)

    def quotient(fraction: sympy.Expr) -> sympy.Expr:
        over, under = as_fraction(fraction)
        if isinstance(over, sympy.floor) and under.is_Integer and under.is_positive:
            inner, by = as_fraction(over.args[0])
            if by.is_Integer and by.is_positive:
                return sympy.floor(inner / (by * under))
        return sympy.floor(fraction)

    return expr.replace(sympy.Mod, remainder).replace(sympy.floor, quotient)
