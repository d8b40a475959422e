"""The first phase of a product that computes its left operand: each row once, held for the product that follows.

A few rows are computed by the thread that starts the kernel, which takes less time than waking the others; many by all
threads, who meet before the product begins. Rows that the kernel stores nowhere are held in memory of its own, as many
at a time as stay in cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sympy

from ..program import Axis, program_axes, program_roots
from ..prologue import HELD_ROW, Phases
from ..schedule import MatmulSchedule
from ..splitting import split_axes
from .contraction import unflatten
from .expression import Scope, index_text
from .loops import hoisted, parallel_tasks, serial_axes
from .source import Source
from .sweep import RowSet, RowSweep

ALONE = 16384  # elements that one thread computes sooner than others are woken


class RowsPhase:
    """The rows of a product."""

    def __init__(self, computed: Phases, schedule: MatmulSchedule, src: Source) -> None:
        self.phases, self.schedule, self.src = computed, schedule, src
        self.scope = Scope(computed.rows, src)
        self.rows = _gathered(computed) or RowSet(computed.rows, computed.axes, (computed.terms,))

    @contextmanager
    def passes(self) -> Iterator[tuple[str, str]]:
        """The passes over all rows: gives the texts of a pass's first row and of how many it takes."""
        total, some = self.phases.count, self.schedule.held_rows
        if self.phases.held is None or (isinstance(total, int) and total <= some):
            yield "", ""
            return
        count, name, base, part = index_text(total, self.scope), *map(self.src.fresh, ("pass", "base", "some"))
        with self.src.block(f"for {name} in T.serial(T.truncdiv({count} + T.int64({some - 1}), T.int64({some})))"):
            self.src.line(f"{base}: T.let = {name} * T.int64({some})")
            self.src.line(f"{part}: T.let = T.min({count} - {base}, T.int64({some}))")
            yield base, part

    def emit(self, base: str, some: str) -> None:
        """Write the loops of one pass."""
        count, terms = self.phases.count, self.phases.terms.size
        known = isinstance(count, int) and isinstance(terms, int)
        if known and not some:
            self._emit(Axis("row", count), base, parallel=count * terms > ALONE)
            return
        size = some or self._let("rows", index_text(count, self.scope))
        rows = Axis("row", sympy.Symbol(size, integer=True, nonnegative=True))
        with self.src.block(f"if {size} * {index_text(terms, self.scope)} <= T.int64({ALONE})"):
            self._emit(rows, base, parallel=False)
        with self.src.block("else"):
            self._emit(rows, base, parallel=True)

    def _let(self, prefix: str, text: str) -> str:
        name = self.src.fresh(prefix)
        self.src.line(f"{name}: T.let = {text}")
        return name

    def _emit(self, rows: Axis, base: str, *, parallel: bool) -> None:
        """The loop over the rows of one pass."""
        sweep = RowSweep(self.rows, self.rows.combined[-1], self.schedule.vector)
        if parallel:
            loops = parallel_tasks([rows], self.scope, rows.size * self.phases.terms.size, sweep.allocate)
        else:
            sweep.allocate(self.scope)
            loops = serial_axes([rows], self.scope)
        with loops as at:
            row = at.axes[rows.symbol]
            flat = f"({base} + {row})" if base else row
            names = {s: self._let("i", text) for s, text in unflatten(self.phases.axes, flat, self.scope).items()}
            here = at.at({**names, HELD_ROW: row})
            sweep.run(hoisted(program_roots(self.rows.program), self.rows.combined, here))


def _gathered(computed: Phases) -> RowSet | None:
    """Rows of which nothing is combined, so that their axis may fall into those along which memory runs."""
    if computed.rows.stages:
        return None
    program = split_axes(computed.rows, (computed.terms,))
    return RowSet(program, computed.axes, tuple(a for a in program_axes(program) if a not in computed.axes))
