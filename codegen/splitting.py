"""Program to equal program without divisions in index maps: an axis that is divided becomes two."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import sympy

from ..ir.types import Dim, canonical_dim
from .bounds import Bounds
from .indexing import divides, split
from .program import (
    Affine,
    Axis,
    Combiner,
    Expr,
    Guard,
    Index,
    IndexValue,
    Load,
    Program,
    Ref,
    Skeleton,
    as_fraction,
    postorder,
    program_axes,
    program_roots,
)
from .rewrite import map_expressions, with_operands


def split_axes(program: Program, among: Collection[Axis] | None = None) -> Program:
    """The program with each axis i, or each ``among`` some, that is read as i // c and i % c as these two axes.

    Loads then run along one of them without a break, so that they can be vectors.
    """
    if program.skeleton not in (Skeleton.MAP, Skeleton.ROWS):
        return program
    wanted = None if among is None else set(among)
    while True:
        for axis in program_axes(program):
            divisor = _divisor(program, axis) if wanted is None or axis in wanted else None
            if divisor is not None:
                high, low = _halves(axis, divisor)
                program = _split(program, axis, high, low)
                if wanted is not None:
                    wanted |= {high, low}
                break
        else:
            return program


def _divisor(program: Program, axis: Axis) -> Dim | None:
    """The largest divisor of an axis by which it is divided."""
    if _is_positional(program, axis):
        return None
    found = [d for index in _indices(program) for d in _divisors(index, axis)]
    whole = [d for d in found if _splits(d, axis.size)]
    return max(whole, key=lambda d: (isinstance(d, int), d if isinstance(d, int) else 0)) if whole else None


def _is_positional(program: Program, axis: Axis) -> bool:
    """Whether a combination needs the axis as one: its points have an order."""
    kinds = (Combiner.CUMSUM, Combiner.ARGMAX, Combiner.ARGMIN)
    return any(s.combine and s.combine.kind in kinds and axis in s.combine.axes for s in program.stages)


def _indices(program: Program) -> list[sympy.Expr]:
    """Every affine index in the program."""
    found: list[Index] = [i for store in program.stores for i in store.index]
    for expr in postorder(program_roots(program)):
        if isinstance(expr, Load | Ref):
            found += expr.index
        elif isinstance(expr, IndexValue | Guard):
            found.append(expr.index)
    return [i for i in found if isinstance(i, sympy.Expr)]


def _divisors(index: sympy.Expr, axis: Axis) -> list[Dim]:
    pairs = [part.args for part in index.atoms(sympy.Mod)]
    pairs += [as_fraction(part.args[0]) for part in index.atoms(sympy.floor)]
    return [canonical_dim(divisor) for dividend, divisor in pairs if _runs_with(dividend, axis)]


def _runs_with(dividend: sympy.Expr, axis: Axis) -> bool:
    """Whether a dividend is the axis, counted up or down from some size."""
    rests = (sympy.expand(dividend - axis.symbol), sympy.expand(dividend + axis.symbol))
    return any(rest.is_Integer or rest.is_zero for rest in rests)


def _splits(divisor: Dim, size: Dim) -> bool:
    """Whether an axis of a size falls into several parts of ``divisor`` points."""
    return divisor not in (0, 1) and divisor != size and divides(divisor, size)


def _halves(axis: Axis, divisor: Dim) -> tuple[Axis, Axis]:
    """The axes of an axis' quotients and remainders."""
    quotients = canonical_dim(sympy.cancel(sympy.sympify(axis.size) / divisor))
    return Axis(f"{axis.name}h", quotients), Axis(f"{axis.name}l", divisor)


def _split(program: Program, axis: Axis, high: Axis, low: Axis) -> Program:
    index = _substitution(axis, high, low, program)

    def change(expr: Expr, args: tuple[Expr, ...]) -> Expr:
        match expr:
            case Load():
                rebuilt = with_operands(expr, args)
                assert isinstance(rebuilt, Load)
                return Load(rebuilt.param, tuple(map(index, rebuilt.index)), rebuilt.dtype)
            case Ref():
                return Ref(expr.stage, _both(expr.index, axis, high, low, index), expr.dtype)
            case IndexValue():
                return IndexValue(_affine(index(expr.index)), expr.dtype)
            case Guard():
                return Guard(_affine(index(expr.index)), expr.size, args[0], args[1])
            case _:
                return with_operands(expr, args)

    def axes(old: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(x for a in old for x in ((high, low) if a == axis else (a,)))

    program = map_expressions(program, change)
    stages = tuple(
        replace(s, axes=axes(s.axes), combine=s.combine and replace(s.combine, axes=axes(s.combine.axes)))
        for s in program.stages
    )
    stores = tuple(replace(s, axes=axes(s.axes), index=tuple(map(index, s.index))) for s in program.stores)
    return replace(program, stages=stages, stores=stores)


def _affine(index: Index) -> Affine:
    assert not isinstance(index, Expr)
    return index


def _both(
    index: tuple[Affine, ...], axis: Axis, high: Axis, low: Axis, change: Callable[[Index], Index]
) -> tuple[Affine, ...]:
    """The index of a stage, which has the two axes where it had the one."""
    found: list[Affine] = []
    for i in index:
        found += [high.symbol, low.symbol] if i == axis.symbol else [_affine(change(i))]
    return tuple(found)


def _substitution(axis: Axis, high: Axis, low: Axis, program: Program) -> Callable[[Index], Index]:
    """What an index becomes when the axis is ``low.size * high + low``."""
    bounds = Bounds()
    for known in (*program_axes(program), high, low):
        bounds.add(known)
    whole = low.size * high.symbol + low.symbol

    def quotient(dividend: sympy.Expr) -> sympy.Expr:
        over, under = as_fraction(dividend)
        return split(over.subs(axis.symbol, whole), canonical_dim(under), bounds)[0]

    def remainder(dividend: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr:
        return split(dividend.subs(axis.symbol, whole), canonical_dim(divisor), bounds)[1]

    def change(index: Index) -> Index:
        if isinstance(index, Expr) or not isinstance(index, sympy.Expr) or axis.symbol not in index.free_symbols:
            return index
        changed = index.replace(sympy.Mod, remainder).replace(sympy.floor, quotient)
        return canonical_dim(sympy.expand(changed.subs(axis.symbol, whole)))

    return change
