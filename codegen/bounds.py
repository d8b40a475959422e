"""What is known of index expressions: the least and the greatest value they take over their axes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce

import sympy

from ..ir.types import Dim, SymbolRange
from .program import Affine, Axis, as_fraction

Interval = tuple[sympy.Expr, sympy.Expr]


class Bounds:
    """Axes and their sizes, size symbols and their least values."""

    def __init__(self, ranges: Iterable[SymbolRange] = ()) -> None:
        self._sizes: dict[sympy.Symbol, Dim] = {}
        self._least = {r.symbol: r.low for r in ranges}

    def add(self, axis: Axis) -> Axis:
        """Take note of an axis; returns it."""
        self._sizes[axis.symbol] = axis.size
        return axis

    def inside(self, index: Affine, size: Dim) -> bool:
        """Whether 0 <= index < size is certain."""
        return self.never_negative(index) and self.never_negative(size - 1 - index)

    def outside(self, index: Affine, size: Dim) -> bool:
        """Whether index < 0 or index >= size is certain, the same of the two at every point."""
        return self.never_negative(index - size) or self.never_negative(-1 - index)

    def never_negative(self, index: Affine) -> bool:
        """Whether an expression is certainly at least 0 at every point of its axes."""
        expanded = sympy.expand(sympy.sympify(index))
        found = self._interval(expanded)
        return found is not None and self._nonnegative(found[0], expanded)

    def quotient(self, index: Affine, size: Dim) -> int | None:
        """The quotient of an index by a size where it is the same number at every point."""
        found = self._interval(sympy.expand(sympy.sympify(index)))
        least, most = (sympy.floor(end / size) for end in found) if found else (None, None)
        return int(least) if least is not None and least.is_Integer and least == most else None

    def _nonnegative(self, least: sympy.Expr, index: sympy.Expr) -> bool:
        """Whether an expression of sizes is at least 0, where the axes in ``index`` have points."""
        lows = dict(self._least)
        for symbol in index.free_symbols:
            size = sympy.sympify(self._sizes.get(symbol, 1))
            if size.is_Symbol or size.is_Mul:  # then each factor is at least 1
                lows.update((s, max(lows.get(s, 0), 1)) for s in size.free_symbols if s.is_Symbol)
        shifted = least.subs({s: s + low for s, low in lows.items() if low}, simultaneous=True)
        return bool(sympy.expand(shifted).is_nonnegative)

    def _interval(self, index: sympy.Expr) -> Interval | None:
        """The least and the greatest value, as expressions of sizes; None where they are not known."""
        if not index.free_symbols & self._sizes.keys():
            return index, index
        if index.is_Symbol:
            return sympy.Integer(0), sympy.sympify(self._sizes[index]) - 1
        if index.is_Add:
            return _combined(map(self._interval, index.args), lambda a, b: (a[0] + b[0], a[1] + b[1]))
        if index.is_Mul:
            return self._product(index)
        if isinstance(index, sympy.Mod):
            return self._remainder(*index.args)
        if isinstance(index, sympy.floor):
            return self._quotient(*as_fraction(index.args[0]))
        return None

    def _product(self, index: sympy.Expr) -> Interval | None:
        sign = -1 if index.could_extract_minus_sign() else 1
        factors = [self._interval(f) for f in sympy.Mul.make_args(sign * index)]
        if any(f is None or not self._nonnegative(f[0], index) for f in factors):
            return None
        found = _combined(factors, lambda a, b: (a[0] * b[0], a[1] * b[1]))
        return found if sign == 1 or found is None else (-found[1], -found[0])

    def _remainder(self, index: sympy.Expr, divisor: sympy.Expr) -> Interval | None:
        if self.inside(index, divisor):
            return self._interval(index)
        return (sympy.Integer(0), divisor - 1) if not divisor.free_symbols & self._sizes.keys() else None

    def _quotient(self, index: sympy.Expr, divisor: sympy.Expr) -> Interval | None:
        found = self._interval(sympy.expand(index))
        if found is None or divisor.free_symbols & self._sizes.keys() or not divisor.is_nonnegative:
            return None
        return sympy.floor(found[0] / divisor), sympy.floor(found[1] / divisor)


def _combined(parts: Iterable[Interval | None], combine: Callable[[Interval, Interval], Interval]) -> Interval | None:
    known = list(parts)
    found = [p for p in known if p is not None]
    return reduce(combine, found) if len(found) == len(known) else None
