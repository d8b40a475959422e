"""Matrix products: a register tile over packed panels of the right operand, with everything after it fused.

A task is a panel (``tile_n`` columns) of a chunk of rows. Inside it tiles of rows go over the terms of the sum: the
accumulators are a local buffer that is indexed by constants only, so that LLVM keeps it in registers. Sums leave the
registers every ``block_k`` terms for a buffer that the epilogue then reads row by row, full vectors first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from ...ir.types import Dim, product
from ..program import Program
from ..prologue import HELD_ROW, phases
from ..schedule import MatmulSchedule
from .behind import Behind
from .contraction import flat_size, unflatten
from .expression import Scope, index_text, scalar, store_line
from .loops import hoisted
from .operands import Operands
from .prologue import RowsPhase
from .source import Source


def emit_with(kind: type[Matmul], program: Program, schedule: MatmulSchedule, src: Source) -> None:
    """Write the loops of a MATMUL kernel, its product as ``kind`` writes it."""
    computed = phases(program)
    if computed is None:
        kind(program, schedule, src).emit()
    else:
        rows = RowsPhase(computed, schedule, src)
        with rows.passes() as (base, count):
            rows.emit(base, count)
            kind(computed.product, schedule, src).emit(base, count)


def tile_heights(tile_m: int, rows: Dim) -> tuple[int, ...]:
    """The rows of the register tiles in a kernel, tallest first: the full one, half of it, and one row.

    Where fewer rows than a full tile are known, only the smallest that holds them.
    """
    heights = tuple(dict.fromkeys(h for h in (tile_m, (tile_m + 1) // 2, 1) if h > 0))
    if isinstance(rows, int) and rows < tile_m:
        return (min(h for h in heights if h >= rows),)
    return heights


class Matmul(Operands):
    """The loops: tasks, blocks of terms, tiles of rows, the epilogue."""

    def __init__(self, program: Program, schedule: MatmulSchedule, src: Source) -> None:
        super().__init__(program, schedule, src)
        self.behind = Behind(self)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def emit(self, base: str = "", some: str = "") -> None:
        """Write the kernel's loops: over all rows, or over ``some`` from the row ``base`` on."""
        s = self.schedule
        self.base = base
        rows = self.let("rows", some or index_text(flat_size(self.c.rows), self.scope))
        self.panels = panels = self._panels()
        blocks = self.let("blocks", f"({rows} + {s.tile_m - 1}) // {s.tile_m}")
        wanted = self._wanted(panels)
        whole = f"T.min({blocks}, T.max(({blocks} + {s.block_m // 2}) // {s.block_m}, 1))"  # none for a few rows more
        chunks = self.let("chunks", f"T.max({whole}, T.min({blocks}, {wanted}))")
        batch = index_text(flat_size(self.c.batch), self.scope)
        tasks = f"{batch} * {chunks} * {panels}"
        work, count = product((self.terms, self.columns, flat_size(self.c.batch))), flat_size(self.c.rows)
        least = work * (count if isinstance(count, int) else 1)
        if not isinstance(least, int) or least > s.alone or work > s.alone_weights:
            self._tasks(tasks, "T.parallel")
        elif isinstance(count, int):
            self._tasks(tasks, "range")
        else:
            with self.src.block(f"if {rows} * {work} <= {s.alone}"):
                self._tasks(tasks, "range")
            with self.src.block("else"):
                self._tasks(tasks, "T.parallel")

    def _tasks(self, tasks: str, kind: str) -> None:
        """All tasks; in parallel as many shares of them as there are, which differ by one task at most.

        A loop of tasks would be cut into shares of as many as there are in the largest: 15 shares of 8 and one of 1
        where there are 121.
        """
        outside = self.scope
        if kind == "range":
            with self.loop("task", tasks) as task:
                self._task(task)
        else:
            total = self.let("total", tasks)
            shares = self.let("shares", f"T.min({total}, T.int64({self.schedule.shares}))")
            with self.loop("share", shares, kind) as share:
                begin = self.var("begin", f"{total} * {share} // {shares}")
                with self.loop("task", f"{total} * ({share} + 1) // {shares} - {begin}") as task:
                    self._task(f"({begin} + {task})")
        self.scope = outside

    def _task(self, task: str) -> None:
        s, panels, chunks, blocks = self.schedule, self.panels, self["chunks"], self["blocks"]
        panel = self.var("panel", f"{task} % {panels}")
        chunk = self.var("chunk", f"{task} // {panels} % {chunks}")
        self._name_batch(f"({task} // ({panels} * {chunks}))")
        # a matrix that data chooses is looked up once
        self.scope = hoisted([self.c.right], (*self.c.rows, *self.c.columns, *self.c.reduced), self.scope)
        first = self.var("first", f"{blocks} * {chunk} // {chunks} * {s.tile_m}")
        self.var("last", f"T.min({blocks} * ({chunk} + 1) // {chunks} * {s.tile_m}, {self['rows']})")
        self.let("column", f"{panel} * {s.tile_n}")
        self.let("tiles", f"({self['last']} - {first} + {s.tile_m - 1}) // {s.tile_m}")
        self.name_right()
        if self.pack_left or self.pack_right or (s.blocked and not self.is_one_tile):
            self._blocked()
        else:
            self._streamed()

    def _panels(self) -> str:
        width = self.schedule.tile_n
        if isinstance(self.columns, int):
            return f"T.int64({-(-self.columns // width)})"
        return self.let("panels", f"({index_text(self.columns, self.scope)} + {width - 1}) // {width}")

    def _wanted(self, panels: str) -> str:
        """Into how many parts to cut the rows so that there are tasks enough."""
        batch, tasks = flat_size(self.c.batch), self.schedule.tasks
        if isinstance(self.columns, int) and isinstance(batch, int):
            count = -(-self.columns // self.schedule.tile_n) * batch
            return f"T.int64({-(-tasks // max(count, 1))})"
        count_text = f"{index_text(batch, self.scope)} * {panels}"
        return f"({tasks} + {count_text}) // ({count_text} + 1)"

    def _name_batch(self, flat: str) -> None:
        texts = unflatten(self.c.batch, flat, self.scope)
        named = {symbol: self.var(f"b{i}_", text) for i, (symbol, text) in enumerate(texts.items())}
        self.scope = self.scope.at(named)

    # --- order of loops -----------------------------------------------------------------------------------------------

    def _streamed(self) -> None:
        """Both operands in place: each tile of rows runs over all terms."""
        s = self.schedule
        self.buffer("part", s.tile_m * s.tile_n, self.acc)
        with self.loop("tile", self["tiles"]) as tile:
            row = self.let("row", f"{self['first']} + {tile} * {s.tile_m}")
            count = self.let("count", f"T.min({self['last']} - {row}, {s.tile_m})")
            self.plan_prefetch(tile, "T.int64(0)", index_text(self.terms, self.scope))
            if self.behind.loads:
                with self.src.block(f"if {tile} == 0"), self.loop("r", count) as r:
                    self.behind.ask(f"({row} + {r})")
            self._dispatch(self._all_terms)
            with self.loop("r", count) as r:
                if self.behind.loads:
                    self.behind.ask(f"T.min({row} + {r} + {s.tile_m}, {self['last']} - 1)")
                self._epilogue(f"({row} + {r})", f"{r} * {s.tile_n}")

    def _all_terms(self, rows: int) -> None:
        """The sums of a register tile over all terms, in ``part``.

        Where registers have room for them beside those of a block, they stay there until the end: memory that is
        written and read again after every block kept a core from reading ahead for as long as memory is away.
        """
        width = self.schedule.tile_n // self.schedule.vector
        part = self["part"]
        if not self.holds_sums(rows):
            self.clear(part, str(rows))
            with self._term_blocks():
                self._microkernel(rows, part, "0")
            return
        total = self.registers("total", rows * self.schedule.tile_n, self.acc)
        self.clear(total, str(rows), "T.unroll")
        with self._term_blocks(whole=self.acc == "int32"):  # sums of integers need no blocks to be exact
            self._microkernel(rows, total, "0")
        with self.vectors(rows * width) as e:
            self.line(f"{part}[{e}] = {total}[{e}]")

    def holds_sums(self, rows: int) -> bool:
        """Whether registers hold the sums of a tile of so many rows twice."""
        return 2 * rows <= self.schedule.tile_m

    def _blocked(self) -> None:
        """An operand is copied: block of terms by block of terms, all tiles of rows."""
        s = self.schedule
        most = s.block_m + s.block_m // 2 + 1  # tiles of rows in a task
        self.buffer("part", most * s.tile_m * s.tile_n, self.acc)
        if self.pack_right:
            self.buffer("right", s.block_k * s.tile_n, self.element)
        if self.pack_left:
            self.buffer("left", most * s.tile_m * s.block_k, self.element)
        self.clear(self["part"], f"{self['tiles']} * {s.tile_m}")
        with self._term_blocks():
            if self.pack_right:
                self.copy_right()
            if self.pack_left:
                self.copy_left()
            with self.loop("tile", self["tiles"]) as tile:
                row = self.let("row", f"{self['first']} + {tile} * {s.tile_m}")
                self.let("count", f"T.min({self['last']} - {row}, {s.tile_m})")
                self.plan_prefetch(tile, self["start"], self["terms"])
                if self.behind.loads:
                    is_last = f"{self['start']} + {self['terms']} == {index_text(self.terms, self.scope)}"
                    with self.src.block(f"if {is_last}"), self.loop("r", self["count"]) as r:
                        self.behind.ask(f"({row} + {r})")
                first = f"{tile} * {s.tile_m * s.tile_n}"
                self._dispatch(partial(self._microkernel, to=self["part"], first=first))
        with self.loop("r", f"{self['last']} - {self['first']}") as r:
            self._epilogue(f"({self['first']} + {r})", f"{r} * {s.tile_n}")

    @contextmanager
    def _term_blocks(self, *, whole: bool = False) -> Iterator[None]:
        """A loop over blocks of terms, or over one ``whole`` block, that names ``start`` and ``terms``."""
        block, total = self.schedule.block_k, index_text(self.terms, self.scope)
        if whole or (isinstance(self.terms, int) and self.terms <= block):
            self.let("start", "T.int64(0)")
            self.let("terms", total)
            yield
            return
        with self.loop("kb", f"({total} + {block - 1}) // {block}") as kb:
            start = self.let("start", f"{kb} * {block}")
            self.let("terms", f"T.min({total} - {start}, {block})")
            yield

    # --- the register tile --------------------------------------------------------------------------------------------

    def _dispatch(self, tile: Callable[[int], None]) -> None:
        """The smallest register tile that holds the ``count`` rows; rows past the last repeat it."""
        heights = tile_heights(self.schedule.tile_m, flat_size(self.c.rows))
        if len(heights) == 1:
            tile(heights[0])
            return
        for i, height in enumerate(heights):
            below = heights[i + 1] if i + 1 < len(heights) else 0
            head = "if" if i == 0 else "elif"
            with self.src.block(f"{head} {self['count']} > {below}" if below or i == 0 else "else"):
                tile(height)

    def _microkernel(self, rows: int, to: str, first: str) -> None:
        """Add the sums of a block of terms to those in ``to``, from ``first`` on."""
        s = self.schedule
        width = s.tile_n // s.vector
        acc = self.registers("acc", rows * s.tile_n, self.acc)
        if self.left is not None:
            self.row_bases(rows)
        self.fill(acc, rows * s.tile_n, f"T.{self.acc}(0)", "T.unroll")
        with self.term_loop() as k:
            if rows == s.tile_m:
                self.line("helpers.rolled()")
            self.prefetch_right(k)
            with self.loop("r", rows, "T.unroll") as r, self.vectors(width) as e:
                sum_ = f"{acc}[{r} * {s.tile_n} + {e}]"
                self.line(f"{sum_} = {self.multiply_add(sum_, self.left_text(r, k), self.right_text(k, e))}")
        with self.vectors(rows * width) as e:
            total = f"{to}[{first} + {e}]"
            self.line(f"{total} = {total} + {acc}[{e}]")

    # --- the epilogue -------------------------------------------------------------------------------------------------

    def _epilogue(self, row: str, part: str) -> None:
        """Stages and stores after the sum, for one row of the panel."""
        s, total = self.schedule, self.columns
        scope = self._row_scope(row)
        whole = isinstance(total, int) and total % s.vector == 0
        even = isinstance(total, int) and total % s.tile_n == 0
        left = f"T.min({index_text(total, self.scope)} - {self['column']}, {s.tile_n})"
        if not self.vectorisable():
            with self.loop("e", left) as e:
                self._store("T.int64(0)", e, part, scope, scalar_columns=True)
            return
        count = str(s.tile_n // s.vector) if even else f"{left} // {s.vector}"
        with self.loop("j", count) as j, self.lanes() as v:
            self._store(f"{j} * {s.vector}", v, part, scope, scalar_columns=False)
        if not whole:
            done = f"{left} // {s.vector} * {s.vector}"
            with self.loop("v", f"{left} % {s.vector}") as v:
                self._store(done, v, part, scope, scalar_columns=True)

    def _row_scope(self, row: str) -> Scope:
        """The scope at a row, its axes in variables."""
        axes = {symbol: text for symbol, text in self.row_axes(row).items() if symbol != HELD_ROW}
        return self.scope.at({symbol: self.var(f"a{i}_", text) for i, (symbol, text) in enumerate(axes.items())})

    def _store(self, offset: str, lane: str, part: str, scope: Scope, *, scalar_columns: bool) -> None:
        base = f"({self['column']} + {offset})"
        scope = scope.at(self.column_axes(base, lane, scalar_columns))
        scope = scope.knowing({self.c.stage.name: f"{self['part']}[{part} + {offset} + {lane}]"})
        for stage in self.program.stages:
            if stage.combine is None:
                name = self.src.fresh("s")
                self.line(f"{name}: T.let = {scalar(stage.value, scope)}")
                scope = scope.knowing({stage.name: name})
        for store in self.program.stores:
            param = self.program.param(store.param)
            self.line(store_line(param, store.index, scalar(store.value, scope), scope))
