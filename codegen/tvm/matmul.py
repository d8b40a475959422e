"""Matrix products: a register tile over packed panels of the right operand, with everything after it fused.

A task is a panel (``tile_n`` columns) of a chunk of rows. Inside it tiles of rows go over the terms of the sum: the
accumulators are a local buffer that is indexed by constants only, so that LLVM keeps it in registers. Sums leave the
registers every ``block_k`` terms for a buffer that the epilogue then reads row by row, full vectors first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sympy

from ...ir.types import product
from ..program import Axis, Program
from ..schedule import MatmulSchedule
from .contraction import (
    Contraction,
    Strided,
    contraction,
    dot_stage,
    flat_size,
    panel_load,
    panel_text,
    strided_load,
    unflatten,
)
from .expression import Scope, compute_type, index_text, scalar, store_line
from .nest import Nest
from .source import Source


def emit_matmul(program: Program, schedule: MatmulSchedule, src: Source) -> None:
    """Write the loops of a MATMUL kernel."""
    _Matmul(program, schedule, src).emit()


def tile_heights(tile_m: int) -> tuple[int, ...]:
    """The rows of the register tiles in a kernel, tallest first: the full one, half of it, and one row."""
    return tuple(dict.fromkeys(h for h in (tile_m, (tile_m + 1) // 2, 1) if h > 0))


class _Matmul(Nest):
    def __init__(self, program: Program, schedule: MatmulSchedule, src: Source) -> None:
        super().__init__(src, schedule.vector)
        self.program = program
        self.schedule = schedule
        self.c: Contraction = contraction(program, dot_stage(program))
        self.scope = Scope(program, src)
        self.acc = compute_type(self.c.dtype)
        self.panel = panel_load(program, self.c.right)
        self.left: Strided | None = None
        if len(self.c.reduced) == 1 and not schedule.pack_left:
            self.left = strided_load(program, self.c.left, self.c.reduced[0])
        self.pack_left = self.left is None
        self.pack_right = schedule.pack_right or self.panel is None
        self.terms = flat_size(self.c.reduced)
        self.columns = flat_size(self.c.columns)

    # --- tasks --------------------------------------------------------------------------------------------------------

    def emit(self) -> None:
        s = self.schedule
        rows = self.let("rows", index_text(flat_size(self.c.rows), self.scope))
        panels = self._panels()
        blocks = self.let("blocks", f"(rows + {s.tile_m - 1}) // {s.tile_m}".replace("rows", rows))
        wanted = self._wanted(panels)
        chunks = self.let("chunks", f"T.max(({blocks} + {s.block_m - 1}) // {s.block_m}, T.min({blocks}, {wanted}))")
        batch = index_text(flat_size(self.c.batch), self.scope)
        with self.loop("task", f"{batch} * {chunks} * {panels}", "T.parallel") as task:
            panel = self.var("panel", f"{task} % {panels}")
            chunk = self.var("chunk", f"{task} // {panels} % {chunks}")
            self._name_batch(f"({task} // ({panels} * {chunks}))")
            first = self.var("first", f"{blocks} * {chunk} // {chunks} * {s.tile_m}")
            self.var("last", f"T.min({blocks} * ({chunk} + 1) // {chunks} * {s.tile_m}, {rows})")
            self.let("column", f"{panel} * {s.tile_n}")
            self.let("tiles", f"({self['last']} - {first} + {s.tile_m - 1}) // {s.tile_m}")
            if self.schedule.blocked or self.pack_left or self.pack_right:
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
        count = product((flat_size(self.c.batch), -(-self.columns // self.schedule.tile_n) if isinstance(self.columns, int) else 1))
        if isinstance(count, int) and isinstance(self.columns, int):
            return f"T.int64({-(-self.schedule.tasks // max(count, 1))})"
        batch = index_text(flat_size(self.c.batch), self.scope)
        return f"({self.schedule.tasks} + {batch} * {panels}) // ({batch} * {panels} + 1)"

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
            self._clear(str(s.tile_m))
            with self._term_blocks():
                self._dispatch("0")
            with self.loop("r", count) as r:
                self._epilogue(f"({row} + {r})", f"{r} * {s.tile_n}")

    def _blocked(self) -> None:
        """An operand is copied: block of terms by block of terms, all tiles of rows."""
        s = self.schedule
        self.buffer("part", s.block_m * s.tile_m * s.tile_n, self.acc)
        if self.pack_right:
            self.buffer("right", s.block_k * s.tile_n, self.acc)
        if self.pack_left:
            self.buffer("left", s.block_m * s.tile_m * s.block_k, self.acc)
        self._clear(f"{self['tiles']} * {s.tile_m}")
        with self._term_blocks():
            if self.pack_right:
                self._pack_right()
            if self.pack_left:
                self._pack_left()
            with self.loop("tile", self["tiles"]) as tile:
                row = self.let("row", f"{self['first']} + {tile} * {s.tile_m}")
                self.let("count", f"T.min({self['last']} - {row}, {s.tile_m})")
                self._dispatch(f"{tile} * {s.tile_m * s.tile_n}")
        with self.loop("r", f"{self['last']} - {self['first']}") as r:
            self._epilogue(f"({self['first']} + {r})", f"{r} * {s.tile_n}")

    def _clear(self, rows: str) -> None:
        with self.vectors(f"{rows} * {self.schedule.tile_n // self.schedule.vector}", "range") as e:
            self.line(f"{self['part']}[{e}] = T.{self.acc}(0)")

    @contextmanager
    def _term_blocks(self) -> Iterator[None]:
        """A loop over blocks of terms that names ``start`` and ``terms``."""
        block, total = self.schedule.block_k, index_text(self.terms, self.scope)
        if isinstance(self.terms, int) and self.terms <= block:
            self.let("start", "T.int64(0)")
            self.let("terms", total)
            yield
            return
        with self.loop("kb", f"({total} + {block - 1}) // {block}") as kb:
            start = self.let("start", f"{kb} * {block}")
            self.let("terms", f"T.min({total} - {start}, {block})")
            yield

    # --- copies of the operands ---------------------------------------------------------------------------------------

    def _pack_right(self) -> None:
        """``right[k, n]``: a block of a panel of the right operand; columns past the last are zero."""
        s = self.schedule
        with self.loop("j", s.tile_n // s.vector) as j:
            if self.panel is not None:
                with self.loop("k", self["terms"]) as k, self.lanes() as v:
                    e = f"{j} * {s.vector} + {v}"
                    scope = self.scope.at(unflatten(self.c.reduced, f"({self['start']} + {k})", self.scope))
                    self.line(f"{self['right']}[{k} * {s.tile_n} + {e}] = {self._panel_text(k, e, scope)}")
                return
            base = self.let("base", f"{self['column']} + {j} * {s.vector}")
            total = index_text(self.columns, self.scope)
            to = f"{self['right']}[{{}} * {s.tile_n} + {j} * {s.vector} + {{}}]"
            with self.src.block(f"if {base} + {s.vector} <= {total}"):
                self._pack_columns(base, to)
            with self.src.block("else"), self.loop("k", self["terms"]) as k, self.loop("n", s.vector) as n:
                with self.src.block(f"if {base} + {n} < {total}"):
                    self.line(f"{to.format(k, n)} = {self._right_element(k, base, n, False)}")
                with self.src.block("else"):
                    self.line(f"{to.format(k, n)} = T.{self.acc}(0)")

    def _pack_columns(self, base: str, to: str) -> None:
        """A vector of columns; where memory runs along the terms, squares are read so and turned."""
        n, done = self.vector, "T.int64(0)"
        along = strided_load(self.program, self.c.right, self.c.reduced[-1])
        if along is not None and along.step == 1:
            done = f"{self['terms']} // {n} * {n}"
            with self.loop("ka", f"{self['terms']} // {n}") as ka:
                self.transpose(
                    self.acc,
                    lambda i, v: self._right_element(f"({ka} * {n} + {v})", base, i, False),
                    lambda i, v, x: self.line(f"{to.format(f'({ka} * {n} + {i})', v)} = {x}"),
                )
        with self.loop("k", f"{self['terms']} - {done}") as k, self.lanes() as v:
            self.line(f"{to.format(f'({done} + {k})', v)} = {self._right_element(f'({done} + {k})', base, v, True)}")

    def _right_element(self, k: str, base: str, n: str, vector: bool) -> str:
        scope = self.scope.at(unflatten(self.c.reduced, f"({self['start']} + {k})", self.scope))
        columns = self._column_axes(base, n, not (vector and self._vectorisable()))
        return scalar(self.c.right, scope.at(columns))

    def _pack_left(self) -> None:
        """``left[row, k]`` for the rows of this task."""
        s = self.schedule
        with self.loop("r", f"{self['last']} - {self['first']}") as r:
            scope = self.scope.at(unflatten(self.c.rows, f"({self['first']} + {r})", self.scope))
            with self.loop("j", f"{self['terms']} // {s.vector}") as j:
                with self.loop("v", str(s.vector), "T.vectorized") as v:
                    self._copy_left(f"({j} * {s.vector} + {v})", scope)
            with self.loop("v", f"{self['terms']} % {s.vector}") as v:
                self._copy_left(f"({self['terms']} // {s.vector} * {s.vector} + {v})", scope)

    def _copy_left(self, k: str, scope: Scope) -> None:
        at = scope.at(unflatten(self.c.reduced, f"({self['start']} + {k})", scope))
        self.line(f"{self['left']}[{self['r']} * {self.schedule.block_k} + {k}] = {scalar(self.c.left, at)}")

    # --- the register tile --------------------------------------------------------------------------------------------

    def _dispatch(self, part: str) -> None:
        """The smallest register tile that holds the ``count`` rows; rows past the last repeat it."""
        heights = tile_heights(self.schedule.tile_m)
        for i, height in enumerate(heights):
            below = heights[i + 1] if i + 1 < len(heights) else 0
            if len(heights) == 1:
                self._microkernel(height, part)
                return
            head = "if" if i == 0 else "elif"
            with self.src.block(f"{head} {self['count']} > {below}" if below else "else"):
                self._microkernel(height, part)

    def _microkernel(self, rows: int, part: str) -> None:
        s = self.schedule
        width = s.tile_n // s.vector
        # one buffer for each vector of columns: TVM puts buffers on the stack, and LLVM in registers, up to 1 KiB only
        accs = [self.registers(f"acc{j}_", rows * s.vector, self.acc) for j in range(width)]
        if self.left is not None:
            self._row_bases(rows)
        with self.vectors(rows) as e:
            for acc in accs:
                self.line(f"{acc}[{e}] = T.{self.acc}(0)")
        with self.loop("k", self["terms"]) as k, self.vectors(rows) as e:
            for j, acc in enumerate(accs):
                right = self._right_text(k, f"({j * s.vector} + {self['v']})")
                self.line(f"{acc}[{e}] = {acc}[{e}] + {self._left_text(self['i'], k)} * {right}")
        with self.vectors(rows) as e:
            for j, acc in enumerate(accs):
                to = f"{self['part']}[{part} + {self['i']} * {s.tile_n} + {j * s.vector} + {self['v']}]"
                self.line(f"{to} = {to} + {acc}[{e}]")

    def _row_bases(self, rows: int) -> None:
        """The offset of each row of the left operand, so that the loop over terms only adds to it."""
        assert self.left is not None
        bases = self.registers("bases", rows, "int64")
        with self.loop("r", str(rows), "T.unroll") as r:
            row = self.let("m", f"T.min({self['row']} + {r}, {self['last']} - 1)")
            scope = self.scope.at(unflatten(self.c.rows, row, self.scope))
            self.line(f"{bases}[{r}] = {index_text(self.left.base, scope)}")

    def _left_text(self, r: str, k: str) -> str:
        if self.left is None:
            first = f"({self['row']} - {self['first']} + {r})"
            return f"{self['left']}[{first} * {self.schedule.block_k} + {k}]"
        step = index_text(self.left.step, self.scope)
        return f"{self.left.param.name}[{self['bases']}[{r}] + ({self['start']} + {k}) * {step}]"

    def _right_text(self, k: str, e: str) -> str:
        if self.pack_right:
            return f"{self['right']}[{k} * {self.schedule.tile_n} + {e}]"
        return self._panel_text(k, e, self.scope)

    def _panel_text(self, k: str, e: str, scope: Scope) -> str:
        assert self.panel is not None
        term = f"({self['start']} + {k})"
        index = self.panel.index[0]
        assert isinstance(index, sympy.Expr | int)
        named = scope.at(unflatten(self.c.reduced, term, scope))
        if not _row_major(self.c.reduced, index):
            term = index_text(index, named)
        size = index_text(self.terms, scope)
        element = f"{self.panel.param}[({self['panel']} * {size} + {term}) * {self.schedule.tile_n} + {e}]"
        return panel_text(self.c.right, self.panel, element, named)

    # --- the epilogue -------------------------------------------------------------------------------------------------

    def _epilogue(self, row: str, part: str) -> None:
        """Stages and stores after the sum, for one row of the panel."""
        s, total = self.schedule, self.columns
        named = {symbol: self.var(f"a{i}_", text) for i, (symbol, text) in enumerate(self._row_axes(row).items())}
        scope = self.scope.at(named)
        whole = isinstance(total, int) and total % s.vector == 0
        even = isinstance(total, int) and total % s.tile_n == 0
        left = f"T.min({index_text(total, self.scope)} - {self['column']}, {s.tile_n})"
        if not self._vectorisable():
            with self.loop("e", left) as e:
                self._store("T.int64(0)", e, part, scope, scalar_columns=True)
            return
        count = str(s.tile_n // s.vector) if even else f"{left} // {s.vector}"
        with self.loop("j", count) as j, self.loop("v", str(s.vector), "T.vectorized") as v:
            self._store(f"{j} * {s.vector}", v, part, scope, scalar_columns=False)
        if not whole:
            done = f"{left} // {s.vector} * {s.vector}"
            with self.loop("v", f"{left} % {s.vector}") as v:
                self._store(done, v, part, scope, scalar_columns=True)

    def _row_axes(self, row: str) -> dict[sympy.Symbol, str]:
        return unflatten(self.c.rows, row, self.scope)

    def _vectorisable(self) -> bool:
        inner = self.c.columns[1:]
        return all(isinstance(a.size, int) and a.size % self.schedule.vector == 0 for a in inner[-1:])

    def _column_axes(self, base: str, lane: str, scalar_columns: bool) -> dict[sympy.Symbol, str]:
        """The text of the column axes at ``base + lane``; a vector of lanes never crosses the innermost axis."""
        columns: tuple[Axis, ...] = self.c.columns
        if scalar_columns or len(columns) < 2:
            return unflatten(columns, f"({base} + {lane})", self.scope)
        found = unflatten(columns, base, self.scope)
        found[columns[-1].symbol] = f"({found[columns[-1].symbol]} + {lane})"
        return found

    def _store(self, offset: str, lane: str, part: str, scope: Scope, *, scalar_columns: bool) -> None:
        base = f"({self['column']} + {offset})"
        scope = scope.at(self._column_axes(base, lane, scalar_columns))
        scope = scope.knowing({self.c.stage.name: f"{self['part']}[{part} + {offset} + {lane}]"})
        for stage in self.program.stages:
            if stage.combine is None:
                name = self.src.fresh("s")
                self.line(f"{name}: T.let = {scalar(stage.value, scope)}")
                scope = scope.knowing({stage.name: name})
        for store in self.program.stores:
            param = self.program.param(store.param)
            self.line(store_line(param, store.index, scalar(store.value, scope), scope))


def _row_major(axes: tuple[Axis, ...], index: sympy.Expr | int) -> bool:
    """Whether an index is the row-major one over some axes."""
    flat: sympy.Expr | int = 0
    for axis in axes:
        flat = flat * axis.size + axis.symbol
    return bool(sympy.expand(flat - index) == 0)
