"""Program to equal program with fewer axes: dims that always go together become one.

A pair of axes that every parameter holds side by side in memory is one loop; an index (f // c, f % c) into two dims
that lie side by side is the index f into one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import sympy

from ..ir.types import Dim, canonical_dim
from .program import (
    Apply,
    Axis,
    Checked,
    Combine,
    Combiner,
    Const,
    Expr,
    Format,
    Guard,
    Index,
    IndexValue,
    Load,
    Param,
    Program,
    Ref,
    Skeleton,
    Stage,
    operands,
    postorder,
)


def simplify_program(program: Program) -> Program:
    """The program with dims in memory order and merged, and adjacent axes that allow it collapsed."""
    if program.skeleton is Skeleton.RECURRENCE:
        return program
    for param in program.params:
        if param.format is Format.STRIDED:
            program = _merge_dims(_sort_dims(program, param.name), param.name)
    if program.skeleton is not Skeleton.ATTENTION:
        program = _collapse_axes(program)
    return program


# --- dims of parameters -----------------------------------------------------------------------------------------------


def _sort_dims(program: Program, name: str) -> Program:
    """Order a parameter's dims as they lie in memory; dims of size 1 go away."""
    param = program.param(name)
    keep = [d for d, size in enumerate(param.type.shape) if size != 1]
    order = sorted(keep, key=lambda d: _memory_rank(param, d))
    return _reindex(program, name, lambda index: tuple(index[d] for d in order), *_picked(param, order))


def _memory_rank(param: Param, d: int) -> tuple[int, int]:
    """How many other dims step over this one: the slowest dim first."""
    stride = param.strides[d]
    slower = sum(1 for other in param.strides if other != stride and _multiple(other, stride))
    return (slower, d)


def _multiple(a: Dim, b: Dim) -> bool:
    if a == 0 or b == 0:
        return b == 0
    return bool(sympy.fraction(sympy.cancel(sympy.sympify(a) / b))[1] == 1)


def _picked(param: Param, order: list[int]) -> tuple[tuple[Dim, ...], tuple[Dim, ...]]:
    return tuple(param.type.shape[d] for d in order), tuple(param.strides[d] for d in order)


def _merge_dims(program: Program, name: str) -> Program:
    """Make (f // c, f % c) into two adjacent dims one index f, wherever all uses are of that form."""
    position = 0
    while position + 1 < len(program.param(name).type.shape):
        param = program.param(name)
        size = param.type.shape[position + 1]
        adjacent = canonical_dim(param.strides[position + 1] * size) == param.strides[position]
        uses = _indices(program, name)
        merged = [_rejoined(u[position], u[position + 1], size) for u in uses]
        if adjacent and uses and all(m is not None for m in merged):
            program = _join(program, name, position, lambda a, b, size=size: _rejoined(a, b, size))
        else:
            position += 1
    return program


def _rejoined(high: Index, low: Index, size: Dim) -> Index | None:
    """f for the pair (f // size + a, f % size), None for another pair."""
    if not isinstance(high, sympy.Expr | int) or not isinstance(low, sympy.Expr):
        return None
    if not isinstance(low, sympy.Mod) or low.args[1] != size:
        return None
    f = low.args[0]
    rest = sympy.expand(high - sympy.floor(f / size))
    return canonical_dim(rest * size + f) if not rest.has(sympy.floor, sympy.Mod) else None


def _indices(program: Program, name: str) -> list[tuple[Index, ...]]:
    loads = [e.index for e in postorder(_roots(program)) if isinstance(e, Load) and e.param == name]
    return loads + [s.index for s in program.stores if s.param == name]


def _join(program: Program, name: str, position: int, joined: Callable[[Index, Index], Index | None]) -> Program:
    param = program.param(name)
    shape, strides = param.type.shape, param.strides
    merged = canonical_dim(shape[position] * shape[position + 1])

    def index(old: tuple[Index, ...]) -> tuple[Index, ...]:
        new = joined(old[position], old[position + 1])
        assert new is not None
        return (*old[:position], new, *old[position + 2 :])

    return _reindex(
        program,
        name,
        index,
        (*shape[:position], merged, *shape[position + 2 :]),
        (*strides[:position], strides[position + 1], *strides[position + 2 :]),
    )


def _reindex(
    program: Program,
    name: str,
    index: Callable[[tuple[Index, ...]], tuple[Index, ...]],
    shape: tuple[Dim, ...],
    strides: tuple[Dim, ...],
) -> Program:
    params = tuple(
        replace(p, type=p.type.with_shape(shape), strides=strides) if p.name == name else p for p in program.params
    )

    def change(expr: Expr, args: tuple[Expr, ...]) -> Expr:
        rebuilt = _with_operands(expr, args)
        if isinstance(rebuilt, Load) and rebuilt.param == name:
            return Load(name, index(rebuilt.index), rebuilt.dtype)
        return rebuilt

    changed = _map_expressions(replace(program, params=params), change)
    stores = tuple(
        replace(s, index=index(s.index)) if s.param == name else s  # type: ignore[arg-type]
        for s in changed.stores
    )
    return replace(changed, stores=stores)


# --- axes -------------------------------------------------------------------------------------------------------------


def _collapse_axes(program: Program) -> Program:
    """Collapse adjacent axes as long as a pair allows it."""
    changed = True
    while changed:
        changed = False
        for high, low in _adjacent(program):
            collapsed = _collapse(program, high, low)
            if collapsed is not None:
                program, changed = collapsed, True
                break
    return program


def _adjacent(program: Program) -> list[tuple[Axis, Axis]]:
    pairs: dict[tuple[Axis, Axis], None] = {}
    groups = [s.axes for s in program.stages] + [s.axes for s in program.stores]
    groups += [s.combine.axes for s in program.stages if s.combine]
    for axes in groups:
        for pair in zip(axes, axes[1:], strict=False):
            pairs[pair] = None
    return list(pairs)


def _collapse(program: Program, high: Axis, low: Axis) -> Program | None:
    """The program with two axes as one, or None where something tells them apart."""
    if not _always_together(program, high, low) or not _indices_together(program, high, low):
        return None
    for param in program.params:
        uses = _indices(program, param.name)
        for position in range(len(param.type.shape) - 1):
            if any(u[position] == high.symbol for u in uses):
                program = _join(program, param.name, position, lambda a, b: low.symbol if a == high.symbol else None)
                break
    one = Axis(low.name, canonical_dim(high.size * low.size))

    def axes(old: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(one if a == low else a for a in old if a != high)

    stages = tuple(
        replace(s, axes=axes(s.axes), combine=s.combine and replace(s.combine, axes=axes(s.combine.axes)))
        for s in program.stages
    )
    stores = tuple(replace(s, axes=axes(s.axes)) for s in program.stores)
    program = replace(program, stages=stages, stores=stores)

    def change(expr: Expr, args: tuple[Expr, ...]) -> Expr:
        if isinstance(expr, Ref):
            return Ref(expr.stage, tuple(i for i in expr.index if i != high.symbol), expr.dtype)
        return _with_operands(expr, args)

    return _map_expressions(program, change)


def _always_together(program: Program, high: Axis, low: Axis) -> bool:
    """Whether every list of axes has both, side by side, or neither."""
    matrix_column = program.skeleton is Skeleton.MATMUL and any(
        low == s.axes[-1] for s in program.stages if s.axes and s.combine and s.combine.kind is Combiner.DOT
    )
    scanned = any(s.combine and s.combine.kind is Combiner.CUMSUM and low in s.combine.axes for s in program.stages)
    picked = any(
        s.combine and s.combine.kind in (Combiner.ARGMAX, Combiner.ARGMIN) and low in s.combine.axes
        for s in program.stages
    )
    if matrix_column or scanned or picked:
        return False
    for axes in _axis_lists(program):
        both = (high in axes) + (low in axes)
        if both == 1 or (both == 2 and axes.index(low) != axes.index(high) + 1):
            return False
    return True


def _axis_lists(program: Program) -> list[tuple[Axis, ...]]:
    lists = []
    for stage in program.stages:
        lists.append(stage.axes)
        if stage.combine:
            lists.append(stage.combine.axes)
    return lists + [s.axes for s in program.stores]


def _indices_together(program: Program, high: Axis, low: Axis) -> bool:
    """Whether every index uses both axes as (high, low) into adjacent dims of their sizes, or neither."""
    symbols = {high.symbol, low.symbol}
    for expr in postorder(_roots(program)):
        if isinstance(expr, IndexValue | Guard) and symbols & _free(expr.index):
            return False
    for stage in program.stages:
        if stage.combine and stage.combine.bound is not None and symbols & _free(stage.combine.bound):
            return False
    return all(
        _pairwise(program.param(name), index, high, low)
        for name in (p.name for p in program.params)
        for index in _indices(program, name)
    )


def _pairwise(param: Param, index: tuple[Index, ...], high: Axis, low: Axis) -> bool:
    uses = [d for d, i in enumerate(index) if {high.symbol, low.symbol} & _free(i)]
    if not uses:
        return True
    if len(uses) != 2 or uses[1] != uses[0] + 1:
        return False
    first, second = uses
    plain = index[first] == high.symbol and index[second] == low.symbol
    shape, strides = param.type.shape, param.strides
    dense = param.format is Format.STRIDED and canonical_dim(strides[second] * shape[second]) == strides[first]
    return bool(plain and shape[second] == low.size and dense)


def _free(index: Index) -> set[sympy.Symbol]:
    return index.free_symbols if isinstance(index, sympy.Expr) else set()


# --- expressions ------------------------------------------------------------------------------------------------------


def _roots(program: Program) -> list[Expr]:
    roots = [s.value for s in program.stages] + [s.value for s in program.stores]
    return roots + [s.combine.score for s in program.stages if s.combine and s.combine.score is not None]


def _with_operands(expr: Expr, args: tuple[Expr, ...]) -> Expr:
    """The same expression on other operands, in the order of ``operands``."""
    match expr:
        case Apply():
            return Apply(expr.op, args, expr.dtype)
        case Guard():
            return Guard(expr.index, expr.size, args[0], args[1])
        case Checked():
            return Checked(args[0], expr.size, expr.wrap)
        case Load():
            rest = iter(args)
            index = tuple(i if isinstance(i, sympy.Expr | int) else next(rest) for i in expr.index)
            return Load(expr.param, index, expr.dtype)
        case Const() | IndexValue() | Ref():
            return expr


def _map_expressions(program: Program, change: Callable[[Expr, tuple[Expr, ...]], Expr]) -> Program:
    from_old: dict[Expr, Expr] = {}
    for expr in postorder(_roots(program)):
        args = tuple(from_old[x] for x in operands(expr))
        from_old[expr] = change(expr, args)

    def combine(old: Combine | None) -> Combine | None:
        return replace(old, score=from_old[old.score]) if old and old.score is not None else old

    stages = tuple(replace(s, value=from_old[s.value], combine=combine(s.combine)) for s in program.stages)
    stores = tuple(replace(s, value=from_old[s.value]) for s in program.stores)
    return replace(program, stages=stages, stores=stores)
