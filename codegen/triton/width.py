"""Whether the offsets of a kernel fit 32 bits: decided before it is written, in Python's integers.

Every number that index arithmetic can form is bounded by sums of absolute values, so that neither a subtraction nor the
order of additions matters. A size without an upper bound makes the kernel a 64-bit one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sympy

from ...ir.types import Dim, SymbolRange, product
from ..program import (
    Affine,
    Axis,
    Checked,
    Expr,
    Format,
    Guard,
    Index,
    IndexValue,
    Load,
    Param,
    Program,
    as_fraction,
    postorder,
    program_axes,
    program_roots,
)

NARROW_LIMIT = 2**31 - 1
SPARE = 2**20  # what blocks may reach past the last point: more than any block holds


class Magnitudes:
    """Upper bounds of the absolute values of index expressions; None where there is none."""

    def __init__(self, axes: Iterable[Axis], ranges: Iterable[SymbolRange]) -> None:
        self._most: dict[sympy.Symbol, int | None] = {r.symbol: r.high for r in ranges}
        self._axes: Mapping[sympy.Symbol, Dim] = {a.symbol: a.size for a in axes}
        self.largest: int | None = 0

    def note(self, index: Affine) -> int | None:
        """The bound of an expression, its parts taken note of."""
        found = self._of(index)
        self.largest = None if found is None or self.largest is None else max(self.largest, found)
        return found

    def _of(self, index: Affine) -> int | None:
        if isinstance(index, int) or index.is_Integer:
            return abs(int(index))
        if index.is_Symbol:
            # an axis is less than its size
            return self.note(self._axes[index]) if index in self._axes else self._most.get(index)
        if isinstance(index, sympy.floor | sympy.ceiling):
            return self._quotient(*as_fraction(index.args[0]))
        numerator, denominator = as_fraction(index)
        if denominator != 1:
            return self._quotient(numerator, denominator)
        if isinstance(index, sympy.Pow):
            base = self._of(index.base)
            return None if base is None else base ** int(index.exp)
        parts = [self.note(a) for a in index.args]
        known = [p for p in parts if p is not None]
        if isinstance(index, sympy.Mul) and 0 in known:
            return 0
        if len(known) < len(parts):
            return None
        if isinstance(index, sympy.Add):
            return sum(known)
        if isinstance(index, sympy.Mul):
            most = 1
            for part in known:
                most *= max(part, 1)  # a factor of 0 leaves others as they are
            return most
        return max(known)  # Mod, Min, Max

    def _quotient(self, numerator: sympy.Expr, denominator: sympy.Expr) -> int | None:
        self.note(denominator)
        most = self.note(numerator)
        return most if most is None or not denominator.is_Integer else -(-most // int(denominator))


class Sizes(Magnitudes):
    """The same bounds as expressions of the size symbols, of which none is negative: what launches are decided by."""

    def __init__(self, axes: Iterable[Axis]) -> None:
        super().__init__(axes, ())
        self.found: set[sympy.Expr] = set()

    def note(self, index: Affine) -> Any:
        """The bound of an expression, its parts taken note of."""
        bound = self._bound(sympy.sympify(index))
        if bound.free_symbols or bound > NARROW_LIMIT - SPARE:
            self.found.add(bound)
        return bound

    def _bound(self, index: sympy.Expr) -> sympy.Expr:
        if index.is_Number:
            return abs(index)
        if index.is_Symbol:
            return self.note(self._axes[index]) if index in self._axes else index
        if isinstance(index, sympy.floor | sympy.ceiling):
            return self._quotient_bound(*as_fraction(index.args[0]))
        if isinstance(index, sympy.Pow) and index.exp.is_Integer and index.exp > 0:
            return self.note(index.base) ** index.exp
        above, below = as_fraction(index)
        if below != 1:
            return self._quotient_bound(above, below)
        parts = [self.note(a) for a in index.args]
        return sympy.expand(sympy.Mul(*parts) if isinstance(index, sympy.Mul) else sympy.Add(*parts))

    def _quotient_bound(self, above: sympy.Expr, below: sympy.Expr) -> sympy.Expr:
        self.note(below)
        most = self.note(above)
        return sympy.floor((most + below - 1) / below) if below.is_Integer else most


def index_bits(program: Program, ranges: Iterable[SymbolRange]) -> int:
    """32 where every index, offset and count of a program fits, 64 otherwise.

    Args:
        program: any program.
        ranges: the sizes that its symbols may have; a symbol that is not there may have any.
    """
    found = Magnitudes(program_axes(program), ranges)
    _note_program(found, program)
    largest = found.largest
    return 32 if largest is not None and largest + SPARE <= NARROW_LIMIT else 64


def bounds_of(program: Program, scratch: Iterable[Param]) -> tuple[sympy.Expr, ...]:
    """What must be at most ``NARROW_LIMIT - SPARE`` at the sizes of a launch, so that its offsets fit 32 bits."""
    found = Sizes(program_axes(program))
    _note_program(found, program)
    for param in scratch:
        found.note(product(param.type.shape))
    return tuple(sorted(found.found, key=str))


def _note_program(found: Magnitudes, program: Program) -> None:
    """Take note of every index, offset and count of a program."""
    for param in program.params:
        _note_param(found, param)
    for axis in program_axes(program):
        found.note(axis.size)
    for axes in _nests(program):
        found.note(product(a.size for a in axes))
    for expr in postorder(program_roots(program)):
        _note_expression(found, program, expr)
    for store in program.stores:
        found.note(_offset(program.param(store.param), store.index))


def fits(shape: Iterable[Dim], ranges: Iterable[SymbolRange]) -> bool:
    """Whether every offset into dense memory of a shape fits 32 bits."""
    found = Magnitudes((), ranges)
    count: Dim = 1
    for size in shape:
        count = count * size
    found.note(count)
    return found.largest is not None and found.largest + SPARE <= NARROW_LIMIT


def _nests(program: Program) -> list[tuple[Axis, ...]]:
    """The axes that kernels count together: those of results, and those that are combined, each by themselves."""
    found = []
    for stage in program.stages:
        combined = stage.combine.axes if stage.combine else ()
        found += [tuple(a for a in stage.axes if a not in combined), combined]
    if program.recurrence is not None:
        r = program.recurrence
        found.append((r.time, r.batch, r.hidden))
    return [*found, *(s.axes for s in program.stores)]


def _note_param(found: Magnitudes, param: Param) -> None:
    for size, stride in zip(param.type.shape, strides_of(param), strict=True):
        found.note(sympy.sympify(size) * stride)


def _note_expression(found: Magnitudes, program: Program, expr: Expr) -> None:
    match expr:
        case Load():
            found.note(_offset(program.param(expr.param), expr.index))
            for i in expr.index:
                if not isinstance(i, Expr):
                    found.note(i)
        case Guard():
            found.note(expr.index)
            found.note(expr.size)
        case Checked():
            found.note(expr.size)
        case IndexValue():
            found.note(expr.index)


def _offset(param: Param, index: Iterable[Index]) -> sympy.Expr:
    """An offset, with the size of a dim for an index from data."""
    total = sympy.Integer(0)
    for i, size, stride in zip(index, param.type.shape, strides_of(param), strict=True):
        total += sympy.sympify(size if isinstance(i, Expr) else i) * stride
    return sympy.expand(total)


def strides_of(param: Param) -> tuple[Dim, ...]:
    """The strides that kernels read a parameter with: a weight that the CPU packs is read as the model holds it."""
    if param.format is not Format.PANELS:
        return param.strides
    k, n = param.type.shape
    return (1, k) if param.transposed else (n, 1)
