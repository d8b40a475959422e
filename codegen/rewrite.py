"""Programs with their expressions or index maps changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .program import (
    Apply,
    Checked,
    Combine,
    Const,
    Expr,
    Guard,
    Index,
    IndexValue,
    Load,
    Param,
    Program,
    Ref,
    operands,
    postorder,
    program_roots,
)

IndexMap = Callable[[tuple[Index, ...]], tuple[Index, ...]]


def with_operands(expr: Expr, args: tuple[Expr, ...]) -> Expr:
    """The same expression on other operands, in the order of ``operands``."""
    match expr:
        case Apply():
            return Apply(expr.op, args, expr.dtype)
        case Guard():
            return Guard(expr.index, expr.size, args[0], args[1])
        case Checked():
            return Checked(args[0], expr.size, expr.wrap)
        case Load():
            return Load(expr.param, _with_computed(expr.index, args), expr.dtype)
        case Const() | IndexValue() | Ref():
            return expr


def _with_computed(index: tuple[Index, ...], computed: tuple[Expr, ...]) -> tuple[Index, ...]:
    rest = iter(computed)
    return tuple(next(rest) if isinstance(i, Expr) else i for i in index)


def map_expressions(program: Program, change: Callable[[Expr, tuple[Expr, ...]], Expr]) -> Program:
    """The program with each expression replaced by ``change(expression, new operands)``, operands first."""
    new: dict[Expr, Expr] = {}
    for expr in postorder(program_roots(program)):
        new[expr] = change(expr, tuple(new[x] for x in operands(expr)))

    def combine(old: Combine | None) -> Combine | None:
        if old is None:
            return None
        score, offset = (x if x is None else new[x] for x in (old.score, old.offset))
        return replace(old, score=score, offset=offset)

    stages = tuple(replace(s, value=new[s.value], combine=combine(s.combine)) for s in program.stages)
    stores = tuple(
        replace(s, value=new[s.value], index=tuple(new[i] if isinstance(i, Expr) else i for i in s.index))
        for s in program.stores
    )
    return replace(program, stages=stages, stores=stores)


def indices_of(program: Program, name: str) -> list[tuple[Index, ...]]:
    """Every index at which a parameter is read or written."""
    loads = [e.index for e in postorder(program_roots(program)) if isinstance(e, Load) and e.param == name]
    return loads + [s.index for s in program.stores if s.param == name]


def reindexed(program: Program, param: Param, index: IndexMap) -> Program:
    """The program with a parameter in other dims: ``param`` is the new one, ``index`` maps old indices to new ones."""

    def change(expr: Expr, args: tuple[Expr, ...]) -> Expr:
        rebuilt = with_operands(expr, args)
        if isinstance(rebuilt, Load) and rebuilt.param == param.name:
            return Load(param.name, index(rebuilt.index), rebuilt.dtype)
        return rebuilt

    changed = map_expressions(program, change)
    params = tuple(param if p.name == param.name else p for p in program.params)
    stores = tuple(replace(s, index=index(s.index)) if s.param == param.name else s for s in changed.stores)
    return replace(changed, params=params, stores=stores)
