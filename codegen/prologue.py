"""Products whose left operand is computed in their own kernel: a norm, a cast, an activation of the rows before them.

Such a program has stages over the rows before its DOT stage, the last of which, over rows and terms, is what the DOT
stage reads. It falls into two phases, each of which is a program that a kernel without prologue could have: the rows
are computed once each and held in memory, and the product reads them from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..ir.errors import UnsupportedError
from ..ir.node import Node, Trait
from ..ir.types import Dim, TensorType, contiguous_strides, product
from .lowering import Lowering, Rows, index_of, loops
from .program import (
    Axis,
    Expr,
    Index,
    Load,
    Param,
    Program,
    Ref,
    Role,
    Skeleton,
    Stage,
    Store,
    axis_symbol,
    dot_stage,
    postorder,
    program_roots,
    stage_roots,
    store_roots,
)
from .rewrite import map_expressions, with_operands

HELD = "held"  # the parameter in which a kernel holds rows that it stores nowhere else
HELD_ROW = axis_symbol("held_row")  # the row of the rows held at a time, counted from 0


# --- lowering ---------------------------------------------------------------------------------------------------------


def is_computed(lowering: Lowering, node: Node) -> bool:
    """Whether a region computes a value, rather than reading it through views."""
    while node.has(Trait.VIEW):
        node = node.inputs[0]
    return node not in lowering.region.inputs and not node.has(Trait.CREATION)


def rows_stage(lowering: Lowering, node: Node, axes: tuple[Axis, ...]) -> Ref:
    """Make the left operand of a product a stage over ``axes``, the rows of the product and its terms."""
    lowering.rows = Rows(node.shape, axes, (len(axes) - 1,))
    value = lowering.value(node, index_of(axes))
    stage = Stage(f"t{len(lowering.stages)}", loops(axes), value)
    lowering.stages.append(stage)
    ref = Ref(stage.name, tuple(a.symbol for a in stage.axes), stage.dtype)
    lowering.held[node] = (index_of(axes), ref)
    return ref


# --- the two phases ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phases:
    """A program in two phases, with rows between them.

    Attributes:
        rows: what computes and stores the rows. Its stages combine over ``terms``; no stage is a plain value.
        product: the sum of products and what follows it.
        axes: the axes that tell rows apart.
        terms: the axis of a row.
        held: where rows are held, a part of them at a time and addressed by ``HELD_ROW``; None where the kernel
            stores all of them, for others to read.
    """

    rows: Program
    product: Program
    axes: tuple[Axis, ...]
    terms: Axis
    held: Param | None

    @property
    def count(self) -> Dim:
        """How many rows there are."""
        return product(a.size for a in self.axes)


def phases(program: Program) -> Phases | None:
    """The phases of a program; None for one whose product reads memory only.

    Raises:
        UnsupportedError: what follows the product reads what comes before it.
    """
    dot = _product(program)
    rows = _rows_read(program, dot) if dot is not None else None
    if dot is None or rows is None:
        return None
    after = _after(program, dot)
    later = [s for s in program.stores if _names(store_roots(s)) & after]
    first = [s for s in program.stores if s not in later]
    *axes, terms = rows.axes
    here = next((s for s in first if _is_all_of(program, s, rows)), None)
    held = None if here else _held(rows)
    stored = first if held is None else [*first, _holding(rows)]
    stages = tuple(s for s in program.stages if s.name not in after and s is not rows)
    before = Program(Skeleton.ROWS, program.params, stages, tuple(stored), program.symbols)
    whole = replace(program, stages=tuple(s for s in program.stages if s.name in after), stores=tuple(later))
    where = Load(here.param, here.index, rows.dtype) if here else Load(HELD, (HELD_ROW, terms.symbol), rows.dtype)
    reading = _with(whole, rows, where, held)
    _check(reading)
    return Phases(_with(before, rows, rows.value, held), reading, tuple(axes), terms, held)


def _product(program: Program) -> Stage | None:
    """The sum of products of a MATMUL program."""
    if program.skeleton is not Skeleton.MATMUL:
        return None
    return dot_stage(program)


def _after(program: Program, dot: Stage) -> set[str]:
    """The names of a stage and of those that need it."""
    found = {dot.name}
    for stage in program.stages:
        if _names(stage_roots(stage)) & found:
            found.add(stage.name)
    return found


def _rows_read(program: Program, dot: Stage) -> Stage | None:
    """The stage that a sum of products reads."""
    found = [program.stage(name) for name in _names([dot.value])]
    return found[0] if found else None


def _names(roots: Sequence[Expr]) -> set[str]:
    return {e.stage for e in postorder(roots) if isinstance(e, Ref)}


def _is_all_of(program: Program, store: Store, rows: Stage) -> bool:
    """Whether a store keeps the rows as the product needs them."""
    value, param = store.value, program.param(store.param)
    return isinstance(value, Ref) and value.stage == rows.name and param.type.dtype == rows.dtype


def _held(rows: Stage) -> Param:
    """Rows side by side; how many there are at a time is for the schedule to say."""
    terms = rows.axes[-1].size
    shape = (product(a.size for a in rows.axes[:-1]), terms)
    return Param(HELD, TensorType(shape, rows.dtype), contiguous_strides(shape), Role.OUT)


def _holding(rows: Stage) -> Store:
    index: tuple[Index, ...] = (HELD_ROW, rows.axes[-1].symbol)
    return Store(HELD, rows.axes, index, Ref(rows.name, tuple(a.symbol for a in rows.axes), rows.dtype))


def _with(program: Program, rows: Stage, value: Expr, held: Param | None) -> Program:
    """The program with ``value`` for the rows."""

    def change(expr: Expr, args: tuple[Expr, ...]) -> Expr:
        if isinstance(expr, Ref) and expr.stage == rows.name:
            return value
        return with_operands(expr, args)

    params = program.params if held is None else (*program.params, held)
    return map_expressions(replace(program, params=params), change)


def _check(program: Program) -> None:
    known = {s.name for s in program.stages}
    if _names(program_roots(program)) - known:
        raise UnsupportedError("what follows a product reads the rows before it")
