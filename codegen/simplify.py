"""Program to equal program with fewer dims and axes: what always goes together becomes one.

Dims of a parameter stand in the order in which they lie in memory. An index (f // c, f % c) into two dims that lie side
by side is the index f into one. A pair of axes that every parameter holds side by side is one loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import sympy

from ..ir.types import Dim, canonical_dim
from .indexing import divides
from .program import (
    Affine,
    Axis,
    Combiner,
    Expr,
    Format,
    Guard,
    Index,
    IndexValue,
    Param,
    Program,
    Ref,
    Skeleton,
    postorder,
    program_roots,
)
from .rewrite import indices_of, map_expressions, reindexed, with_operands
from .splitting import split_axes

Joined = Callable[[Index, Index], Index | None]


def simplify_program(program: Program) -> Program:
    """The program with dims in memory order and merged, and adjacent axes that allow it collapsed."""
    if program.skeleton is Skeleton.RECURRENCE:
        return program
    for param in program.params:
        if param.format is Format.STRIDED:
            program = _merge_dims(_sort_dims(program, param), param.name)
    if program.skeleton is not Skeleton.ATTENTION:
        program = _collapse_axes(split_axes(program))
    return program


# --- dims of parameters -----------------------------------------------------------------------------------------------


def _sort_dims(program: Program, param: Param) -> Program:
    """Order a parameter's dims as they lie in memory; dims of size 1 go away unless data chooses along them."""
    uses = indices_of(program, param.name)
    checked = {d for use in uses for d, i in enumerate(use) if isinstance(i, Expr)}
    keep = [d for d, size in enumerate(param.type.shape) if size != 1 or d in checked]
    order = sorted(keep, key=lambda d: _memory_rank(param, d))
    return reindexed(program, _with_dims(param, order), lambda index: tuple(index[d] for d in order))


def _with_dims(param: Param, order: Sequence[int]) -> Param:
    shape, strides = (tuple(values[d] for d in order) for values in (param.type.shape, param.strides))
    return replace(param, type=param.type.with_shape(shape), strides=strides)


def _memory_rank(param: Param, d: int) -> tuple[int, int]:
    """How many other dims step over this one: the slowest dim first."""
    stride = param.strides[d]
    slower = sum(1 for other in param.strides if other != stride and _multiple(other, stride))
    return (slower, d)


def _multiple(a: Dim, b: Dim) -> bool:
    return b == 0 if a == 0 or b == 0 else divides(b, a)


def _merge_dims(program: Program, name: str) -> Program:
    """Make (f // c, f % c) into two adjacent dims one index f, wherever all uses are of that form."""
    position = 0
    while position + 1 < len(program.param(name).type.shape):
        param = program.param(name)
        size = param.type.shape[position + 1]
        uses = indices_of(program, name)
        joined = [_rejoined(use[position], use[position + 1], size) for use in uses]
        if _adjacent_dims(param, position) and uses and all(j is not None for j in joined):
            program = _join(program, name, position, lambda a, b, size=size: _rejoined(a, b, size))  # type: ignore[misc]
        else:
            position += 1
    return program


def _adjacent_dims(param: Param, position: int) -> bool:
    """Whether a dim's elements follow one another where the next dim's end."""
    shape, strides = param.type.shape, param.strides
    return bool(canonical_dim(strides[position + 1] * shape[position + 1]) == strides[position])


def _rejoined(high: Index, low: Index, size: Dim) -> Affine | None:
    """f for the pair (f // size + a, f % size), None for another pair."""
    if isinstance(high, Expr) or isinstance(low, Expr) or not isinstance(low, sympy.Mod) or low.args[1] != size:
        return None
    f = low.args[0]
    rest = sympy.expand(high - sympy.floor(f / size))
    return canonical_dim(rest * size + f) if not rest.has(sympy.floor, sympy.Mod) else None


def _join(program: Program, name: str, position: int, joined: Joined) -> Program:
    """The program with two adjacent dims of a parameter as one."""
    param = program.param(name)
    shape, strides = param.type.shape, param.strides

    def index(old: tuple[Index, ...]) -> tuple[Index, ...]:
        new = joined(old[position], old[position + 1])
        assert new is not None
        return (*old[:position], new, *old[position + 2 :])

    merged = canonical_dim(shape[position] * shape[position + 1])
    dims = (*shape[:position], merged, *shape[position + 2 :])
    steps = (*strides[:position], strides[position + 1], *strides[position + 2 :])
    return reindexed(program, replace(param, type=param.type.with_shape(dims), strides=steps), index)


# --- axes -------------------------------------------------------------------------------------------------------------


def _collapse_axes(program: Program) -> Program:
    """Collapse adjacent axes as long as a pair allows it."""
    while True:
        for high, low in _adjacent_axes(program):
            if _together(program, high, low):
                program = _collapsed(program, high, low)
                break
        else:
            return program


def _axis_lists(program: Program) -> list[tuple[Axis, ...]]:
    lists = [axes for s in program.stages for axes in (s.axes, s.combine.axes if s.combine else ())]
    return lists + [s.axes for s in program.stores]


def _adjacent_axes(program: Program) -> list[tuple[Axis, Axis]]:
    return list(dict.fromkeys(pair for axes in _axis_lists(program) for pair in pairwise(axes)))


def _together(program: Program, high: Axis, low: Axis) -> bool:
    """Whether two axes are used as one everywhere: in loops, in index maps, in combinations."""
    return (
        not _is_kept_apart(program, low)
        and all(_side_by_side(axes, high, low) for axes in _axis_lists(program))
        and not _told_apart(program, {high.symbol, low.symbol})
        and all(_may_join(program, param, high, low) for param in program.params)
    )


def _is_kept_apart(program: Program, axis: Axis) -> bool:
    """Whether an axis must stay as it is: the columns of a product, an axis whose positions a combination needs."""
    for stage in program.stages:
        kind = stage.combine.kind if stage.combine else None
        if kind is Combiner.DOT and program.skeleton is Skeleton.MATMUL and axis in stage.axes[-1:]:
            return True
        positional = kind in (Combiner.CUMSUM, Combiner.ARGMAX, Combiner.ARGMIN)
        if positional and stage.combine and axis in stage.combine.axes:
            return True
    return False


def _side_by_side(axes: tuple[Axis, ...], high: Axis, low: Axis) -> bool:
    if high in axes and low in axes:
        return axes.index(low) == axes.index(high) + 1
    return high not in axes and low not in axes


def _told_apart(program: Program, symbols: set[sympy.Symbol]) -> bool:
    """Whether a value, a guard or a bound reads one of the axes."""
    exprs = postorder(program_roots(program))
    read: list[Affine | None] = [e.index for e in exprs if isinstance(e, IndexValue | Guard)]
    read += [s.combine.bound for s in program.stages if s.combine]
    return any(isinstance(i, sympy.Expr) and symbols & i.free_symbols for i in read)


def _may_join(program: Program, param: Param, high: Axis, low: Axis) -> bool:
    """Whether a parameter is used at (a + high, low) in two adjacent dims, or at a + low.size * high + low in one."""
    uses = indices_of(program, param.name)
    if all(_linear(use, high, low) is not None for use in uses):
        return True
    positions = {d for use in uses for d in _positions(use, high, low)}
    first = min(positions)
    if positions != {first, first + 1} or param.format is not Format.STRIDED or not _adjacent_dims(param, first):
        return False
    return param.type.shape[first + 1] == low.size and all(
        _is_pair(use[first], use[first + 1], high, low) for use in uses
    )


def _positions(use: tuple[Index, ...], high: Axis, low: Axis) -> list[int]:
    return [d for d, i in enumerate(use) if _has(i, high.symbol) or _has(i, low.symbol)]


def _linear(use: tuple[Index, ...], high: Axis, low: Axis) -> tuple[Index, ...] | None:
    """The index with ``low`` for low.size * high + low, where it has the two axes in no other way."""
    changed = list(use)
    for d in _positions(use, high, low):
        rest = sympy.expand(use[d] - low.size * high.symbol - low.symbol)
        if _has(rest, high.symbol) or _has(rest, low.symbol):
            return None
        changed[d] = canonical_dim(rest + low.symbol)
    return tuple(changed)


def _is_pair(a: Index, b: Index, high: Axis, low: Axis) -> bool:
    """Whether a pair of indices is (offset + high, low), or has neither of the axes."""
    if isinstance(a, Expr) or isinstance(b, Expr):
        return False
    if not any(_has(i, axis.symbol) for i in (a, b) for axis in (high, low)):
        return True
    offset = sympy.expand(a - high.symbol)
    return b == low.symbol and not _has(offset, high.symbol) and not _has(offset, low.symbol)


def _collapsed(program: Program, high: Axis, low: Axis) -> Program:
    """The program with two axes as one, of the second's name."""
    for param in program.params:
        program = _joined_param(program, param, high, low)
    one = Axis(low.name, canonical_dim(high.size * low.size))

    def axes(old: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(one if a == low else a for a in old if a != high)

    stages = tuple(
        replace(s, axes=axes(s.axes), combine=s.combine and replace(s.combine, axes=axes(s.combine.axes)))
        for s in program.stages
    )
    stores = tuple(replace(s, axes=axes(s.axes)) for s in program.stores)

    def change(expr: Expr, args: tuple[Expr, ...]) -> Expr:
        if isinstance(expr, Ref):
            return Ref(expr.stage, tuple(i for i in expr.index if i != high.symbol), expr.dtype)
        return with_operands(expr, args)

    return map_expressions(replace(program, stages=stages, stores=stores), change)


def _joined_param(program: Program, param: Param, high: Axis, low: Axis) -> Program:
    uses = indices_of(program, param.name)
    positions = [d for use in uses for d in _positions(use, high, low)]
    if not positions:
        return program
    if all(_linear(use, high, low) is not None for use in uses):
        return reindexed(program, param, lambda use: _linear(use, high, low) or use)
    return _join(program, param.name, min(positions), _one_dim(high, low))


def _has(index: Index, symbol: sympy.Symbol) -> bool:
    return isinstance(index, sympy.Expr) and symbol in index.free_symbols


def _one_dim(high: Axis, low: Axis) -> Joined:
    """How a pair of indices into two dims becomes one into both: the pair of axes as the new axis."""

    def joined(a: Index, b: Index) -> Index:
        assert not isinstance(a, Expr)
        assert not isinstance(b, Expr)
        if _has(a, high.symbol):
            return canonical_dim(low.symbol + sympy.expand(a - high.symbol) * low.size)
        return canonical_dim(a * low.size + b)

    return joined
