"""Products of few rows in which every program computes the statistics of the rows itself: a norm without a launch.

The rows are few and read by all programs, so they come from cache. Nothing is held in memory: the left operand is
computed from the statistics where it is read. Every program sums in the same order, so all have the same statistics;
what the kernel stores of the rows for others is stored by the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...ir.types import product
from ..contraction import contraction
from ..gpu import GpuMatmulSchedule, GpuRowsSchedule
from ..gpu_schedule import OWN_ELEMENTS, power_of_two
from ..program import (
    Axis,
    Combiner,
    Expr,
    Load,
    Program,
    Stage,
    dot_stage,
    postorder,
    program_roots,
    stage_roots,
    store_roots,
)
from ..prologue import HELD, Phases
from ..rewrite import map_expressions, with_operands
from .rows import row_writer
from .scope import Scope, Value


@dataclass(frozen=True)
class OwnRows:
    """A product that computes its rows.

    Attributes:
        rows: the statistics of the rows, and what is stored of the rows for others.
        product: the product, its left operand where it is read.
        axes: the axes that tell rows apart.
        terms: the axis of a row.
    """

    rows: Program
    product: Program
    axes: tuple[Axis, ...]
    terms: Axis

    @property
    def roots(self) -> tuple[Expr, ...]:
        """All that is evaluated."""
        return (*program_roots(self.rows), *program_roots(self.product))

    @property
    def written(self) -> list[str]:
        """The parameters that are stored."""
        return [s.param for s in (*self.rows.stores, *self.product.stores)]

    def emit(self, number: str, schedule: GpuMatmulSchedule, scope: Scope) -> Scope:
        """Write the statistics, and the stores of the rows for program ``number`` of 0.

        Returns:
            the scope of the product, with the statistics as blocks of [rows, 1, 1], or of [rows, 1] for ``tl.dot``.
        """
        src = scope.src
        writer = row_writer(
            self.rows, self._schedule(schedule), (self.axes, (self.terms,)), replace(scope, program=self.rows), True
        )
        here = writer.statistics()
        if self.rows.stores:
            with src.block(f"if {number} == 0"):
                writer.finish(here.inner())
        wide = "" if schedule.dot else "[:, :, None]"
        values = {s.name: src.let(s.name, f"({here.refs[s.name].typed}){wide}") for s in self.rows.stages}
        known = {name: Value(text, frozenset({0})) for name, text in values.items()}
        return replace(scope, program=self.product).knowing(known)

    def _schedule(self, s: GpuMatmulSchedule) -> GpuRowsSchedule:
        """All rows, whole where the registers of a program hold them."""
        most = max(OWN_ELEMENTS * 32 * s.warps // s.block_m, 32)
        size = self.terms.size
        if isinstance(size, int) and power_of_two(size) <= most:
            return GpuRowsSchedule(s.block_m, power_of_two(size), True, s.warps)
        return GpuRowsSchedule(s.block_m, most, False, s.warps)


def own_rows(computed: Phases, schedule: GpuMatmulSchedule) -> OwnRows | None:
    """A product in which every program computes its rows; None where rows are many, or are computed first.

    Args:
        computed: the product in two phases.
        schedule: that of the product: whole tiles, each with all rows; of sums one by one, or by ``tl.dot`` where it
            asks for the statistics.
    """
    count = product(a.size for a in computed.axes)
    if (schedule.dot and not schedule.statistics) or schedule.splits > 1 or schedule.streams:
        return None
    if not isinstance(count, int):
        return None
    if count > schedule.block_m or not all(_is_of_rows(s) for s in computed.rows.stages):
        return None
    found = _where_read(computed)
    if found is None:
        return None
    c = contraction(found, dot_stage(found))
    if c.batch or c.rows != computed.axes or c.reduced != (computed.terms,):
        return None
    stored = tuple(s for s in computed.rows.stores if s.param != HELD)
    columns = product(a.size for a in c.columns)
    if stored and not (isinstance(columns, int) and columns > 0):
        return None  # there may be no program to store them
    return OwnRows(_without_held(replace(computed.rows, stores=stored)), found, computed.axes, computed.terms)


def _is_of_rows(stage: Stage) -> bool:
    """Whether a stage has one value for each row."""
    return stage.combine is not None and stage.combine.kind is not Combiner.CUMSUM


def _where_read(computed: Phases) -> Program | None:
    """The product with its left operand where it is read; None where something else of it reads the rows."""
    whole, dot = computed.product, dot_stage(computed.product)
    values = {(s.param, s.index): s.value for s in computed.rows.stores}
    written = {s.param for s in computed.rows.stores}
    others = [x for s in whole.stages if s is not dot for x in stage_roots(s)]
    others += [x for s in whole.stores for x in store_roots(s)]
    if _reads(others, written):
        return None

    def change(expr: Expr, args: tuple[Expr, ...]) -> Expr:
        value = values.get((expr.param, expr.index)) if isinstance(expr, Load) else None
        return with_operands(expr, args) if value is None else value

    found = map_expressions(whole, change)
    return None if _reads(program_roots(found), written) else _without_held(found)


def _without_held(program: Program) -> Program:
    return replace(program, params=tuple(p for p in program.params if p.name != HELD))


def _reads(roots: Sequence[Expr], params: set[str]) -> bool:
    return any(isinstance(e, Load) and e.param in params for e in postorder(roots))
