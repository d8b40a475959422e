"""The rows skeleton: rows in parallel; within a row each stage combines in vectors, then the results are stored.

Where a combined axis is the contiguous one, lanes run along it and are combined at the end. Where an axis of the rows
is contiguous instead (a mean over the sequence of [B, S, D]), lanes run along that axis and never meet.
"""

from __future__ import annotations

from collections import Counter

from ...ir.errors import UnsupportedError
from ...ir.types import product
from ..program import Axis, Load, Program, Stage, postorder, program_roots
from ..schedule import RowsSchedule
from .expression import Scope, index_text
from .loops import hoisted, lanes_along, parallel_axes, parallel_tasks, runs_along
from .source import Source
from .sweep import ColumnSweep, RowSet, RowSweep, wide


def emit_rows(program: Program, schedule: RowsSchedule, src: Source) -> None:
    """Write the loops of a rows program.

    Raises:
        UnsupportedError: its stages do not share their rows.
    """
    rows = _row_set(program)
    inner = _contiguous_axis(program, (*rows.combined, *rows.rows))
    scope = Scope(program, src)
    if inner in rows.rows:
        _emit_columns(rows, inner, schedule.vector, scope)
    else:
        _emit_rows(rows, inner or rows.combined[-1], schedule.vector, scope)


def _row_set(program: Program) -> RowSet:
    first, *rest = (_axes(stage) for stage in program.stages)
    if any(other != first for other in rest):
        raise UnsupportedError("TVM: stages over different rows in one kernel")
    return RowSet(program, *first)


def _axes(stage: Stage) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
    """The axes that a stage keeps, and those that it combines."""
    combined = stage.combine.axes if stage.combine else ()
    return tuple(a for a in stage.axes if a not in combined), combined


def _contiguous_axis(program: Program, axes: tuple[Axis, ...]) -> Axis | None:
    """The axis along which most loads are contiguous; of equals, the first of those that lanes can run along.

    The indices of rows that are gathered and added up are contiguous along the sum; lanes are of the rows' elements.
    """
    votes: Counter[Axis] = Counter()
    roots = program_roots(program)
    for expr in postorder(roots):
        if isinstance(expr, Load):
            votes.update(a for a in axes if runs_along(program.param(expr.param), expr.index, a))
    return max(votes, key=lambda a: (votes[a], lanes_along(a, 2, roots), -axes.index(a))) if votes else None


def _emit_rows(rows: RowSet, inner: Axis, lanes: int, scope: Scope) -> None:
    """Lanes along a combined axis."""
    work = product(a.size for a in (*rows.rows, *rows.combined))
    sweep = RowSweep(rows, inner, lanes)
    loops = parallel_tasks(rows.rows, scope, work, sweep.allocate) if sweep.keeps_values else None
    with loops or parallel_axes(rows.rows, scope, work) as row:
        sweep.run(hoisted(program_roots(rows.program), rows.combined, row))


def _emit_columns(rows: RowSet, inner: Axis, lanes: int, scope: Scope) -> None:
    """Lanes along an axis of the rows: a task is a block of them, of which the last may not be full."""
    src, size = scope.src, index_text(inner.size, scope)
    exprs = program_roots(rows.program)
    width = lanes_along(inner, wide(inner, lanes), exprs)
    blocks = Axis("block", (inner.size + width - 1) // width)
    others = [a for a in rows.rows if a != inner]
    work = product(a.size for a in (*rows.rows, *rows.combined))
    with parallel_axes([*others, blocks], scope, work) as point:
        at = hoisted(exprs, (*rows.combined, inner), point)
        start = src.cell("start", "int64")
        src.line(f"{start} = {at.axes[blocks.symbol]} * T.int64({width})")
        if isinstance(inner.size, int) and inner.size % width == 0:
            _emit_block(ColumnSweep(rows, inner, start, width), at)
            return
        with src.block(f"if {start} + T.int64({width}) <= {size}"):
            _emit_block(ColumnSweep(rows, inner, start, width), at)
        with src.block("else"):
            one = src.fresh("j")
            with src.block(f"for {one} in T.serial({size} - {start})"):
                _emit_block(ColumnSweep(rows, inner, f"({start} + {one})", 1), at)


def _emit_block(sweep: ColumnSweep, at: Scope) -> None:
    sweep.allocate(at)
    sweep.run(at)
