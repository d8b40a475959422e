"""The operands of a matmul kernel as text: read where they lie, or copied block by block to local memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sympy

from ..contraction import Contraction, contraction, panel_load
from ..dot import is_row_major
from ..one_panel import is_one_panel
from ..program import Axis, Checked, Expr, Load, Program, dot_stage
from ..prologue import HELD_ROW
from ..schedule import MatmulSchedule
from .contraction import Strided, flat_size, panel_text, strided_load, unflatten
from .expression import Scope, compute_type, from_storage, index_text, scalar
from .nest import LINE, Nest
from .prefetch import AHEAD, prefetch_text
from .source import Source

CACHED = 256 << 10  # bytes of a weight that a core's cache holds from call to call


class Operands(Nest):
    """What a task reads. The task names its ``first`` and ``last`` row and ``column``, and ``start`` and ``terms``."""

    reads_runs = True  # whether the left operand may lie in several runs of terms where it is read in place

    def __init__(self, program: Program, schedule: MatmulSchedule, src: Source) -> None:
        super().__init__(src, schedule.vector)
        self.program = program
        self.schedule = schedule
        self.c: Contraction = contraction(program, dot_stage(program))
        self.scope = Scope(program, src)
        self.acc = self.element = compute_type(self.c.dtype)  # of sums, and of what local buffers hold
        self.panel = panel_load(program, self.c.right)
        self.left: Strided | None = None
        if len(self.c.reduced) == 1 and not schedule.pack_left:
            self.left = strided_load(program, self.c.left, self.c.reduced[0], in_runs=self.reads_runs)
        self.pack_left = self.left is None
        self.one_panel = self._one_panel() if not schedule.pack_right and self.panel is None else None
        self.pack_right = schedule.pack_right or (self.panel is None and self.one_panel is None)
        self.terms = flat_size(self.c.reduced)
        self.columns = flat_size(self.c.columns)
        self.asked: str | None = None  # the row of the panel from which on prefetching counts
        self.base = ""  # the first row of this pass, where not all rows are taken at once

    @property
    def is_one_tile(self) -> bool:
        """Whether all rows are known to be one tile."""
        rows = flat_size(self.c.rows)
        return isinstance(rows, int) and rows <= self.schedule.tile_m

    # --- axes ---------------------------------------------------------------------------------------------------------

    def row_axes(self, row: str) -> dict[sympy.Symbol, str]:
        """The text of the row axes at a row of this pass."""
        flat = f"({self.base} + {row})" if self.base else row
        return {**unflatten(self.c.rows, flat, self.scope), HELD_ROW: row}

    def vectorisable(self) -> bool:
        """Whether a vector of columns stays inside the innermost column axis."""
        inner = self.c.columns[1:]
        return all(isinstance(a.size, int) and a.size % self.schedule.vector == 0 for a in inner[-1:])

    def column_axes(self, base: str, lane: str, scalar_columns: bool) -> dict[sympy.Symbol, str]:
        """The text of the column axes at ``base + lane``; a vector of lanes never crosses the innermost axis."""
        columns: tuple[Axis, ...] = self.c.columns
        if scalar_columns or len(columns) < 2:
            return unflatten(columns, f"({base} + {lane})", self.scope)
        found = unflatten(columns, base, self.scope)
        found[columns[-1].symbol] = f"({found[columns[-1].symbol]} + {lane})"
        return found

    # --- elements -----------------------------------------------------------------------------------------------------

    def row_bases(self, rows: int) -> None:
        """The offset of each row of the left operand in the block, so that the loop over terms only adds to it.

        Were the start of the block added in the loop, LLVM would make a bitwise or of that sum where it is 0 or 512,
        and compute addresses anew in each turn.
        """
        assert self.left is not None
        bases = self.registers("bases", rows, "int64")
        start = f"{self['start']} * {index_text(self.left.step, self.scope)}"
        with self.loop("r", rows, "T.unroll") as r:
            row = self.let("m", f"T.min({self['row']} + {r}, {self['last']} - 1)")
            scope = self.scope.at(self.row_axes(row))
            self.line(f"{bases}[{r}] = {index_text(self.left.base, scope)} + {start}")

    def left_text(self, r: str, k: str) -> str:
        """The left operand at row ``r`` of the tile and term ``k`` of the block."""
        if self.left is None:
            first = f"({self['row']} - {self['first']} + {r})"
            return f"{self['left']}[{first} * {self.schedule.block_k} + {k}]"
        return f"{self.left.param.name}[{self['bases']}[{r}] + {self.along_left(k)}]"

    def along_left(self, k: str) -> str:
        """How far term ``k`` of the block is from the first of its row in the block."""
        assert self.left is not None
        far = f"{k} * {index_text(self.left.step, self.scope)}"
        return f"{far} + {self['jumped']}" if self.left.length else far

    @contextmanager
    def term_loop(self) -> Iterator[str]:
        """A loop over the terms of the block, run by run where the left operand is read in runs."""
        if self.left is None or not self.left.length:
            with self.loop("k", self["terms"]) as k:
                yield k
            return
        with self.runs(self.left) as (low, high), self.loop("k", f"{high} - {low}") as k:
            yield f"({low} + {k})"

    @contextmanager
    def runs(self, left: Strided) -> Iterator[tuple[str, str]]:
        """A loop over the runs of the block: gives where each starts and ends in it. ``jumped`` is what it adds."""
        n, start, terms = left.length, self["start"], self["terms"]
        before = self.var("before", f"{start} // {n}")
        with self.loop("run", f"({start} + {terms} + {n - 1}) // {n} - {before}") as run:
            number = self.let("number", f"{before} + {run}")
            low = self.let("low", f"T.max({number} * {n} - {start}, 0)")
            high = self.let("high", f"T.min(({number} + 1) * {n} - {start}, {terms})")
            self.let("jumped", f"{number} * {index_text(left.jump, self.scope)}")
            yield low, high

    def right_text(self, k: str, e: str) -> str:
        """The right operand at term ``k`` of the block and column ``e`` of the panel."""
        if self.pack_right:
            return f"{self['right']}[{k} * {self.schedule.tile_n} + {e}]"
        if self.one_panel is not None:
            return self.panel_row(f"({self['start']} + {k})", e)
        return self.panel_element(k, e, self.scope)

    def _one_panel(self) -> Strided | None:
        """The right operand where it lies in memory as one panel would."""
        if not is_one_panel(self.program, self.schedule.tile_n):
            return None
        return strided_load(self.program, self.c.right, self.c.reduced[0])

    def name_right(self) -> None:
        """The offset of the first term of the right operand, where it is read in place as one panel."""
        if self.one_panel is not None:
            zero = {a.symbol: "T.int64(0)" for a in self.c.columns}
            self.let("right_base", index_text(self.one_panel.base, self.scope.at(zero)))

    def panel_element(self, k: str, e: str, scope: Scope) -> str:
        """The packed weight at term ``k`` of the block and column ``e`` of the panel."""
        assert self.panel is not None
        named = scope.at(unflatten(self.c.reduced, f"({self['start']} + {k})", scope))
        return panel_text(self.c.right, self.panel, self._panel_element(k, e, scope), named)

    def _panel_element(self, k: str, e: str, scope: Scope) -> str:
        assert self.panel is not None
        term = f"({self['start']} + {k})"
        index = self.panel.index[0]
        assert isinstance(index, sympy.Expr | int)
        if not is_row_major(self.c.reduced, index):
            term = index_text(index, scope.at(unflatten(self.c.reduced, term, scope)))
        return self.panel_row(term, e)

    def panel_row(self, row: str, e: str) -> str:
        """Element ``e`` of a row of the panel, and past its end of the rows and panels behind it."""
        if self.one_panel is not None:
            return f"{self.one_panel.param.name}[{self['right_base']} + {row} * {self.schedule.tile_n} + {e}]"
        assert self.panel is not None
        size = index_text(self.terms, self.scope)
        return f"{self.panel.param}[({self['panel']} * {size} + {row}) * {self.schedule.tile_n} + {e}]"

    def panel_itemsize(self) -> int:
        """The bytes of what a panel counts as an element."""
        if self.one_panel is not None:
            return self.one_panel.param.type.dtype.itemsize
        assert self.panel is not None
        return self.program.param(self.panel.param).type.dtype.itemsize

    # --- asking ahead -------------------------------------------------------------------------------------------------

    def plan_prefetch(self, tile: str, first: str, terms: str) -> None:
        """Decide what a tile of rows asks for while it reads ``terms`` rows of the panel, from the row ``first`` on.

        A single tile streams the panel: it asks for what it reads itself a little later, since the processor's own
        prefetching stops at the end of each page of memory. Where more tiles read the same rows again, each asks for
        its share of the rows behind them, so that memory is read evenly while they compute.
        """
        self.asked = None
        if self.pack_right:
            return
        matrices = flat_size(self.c.batch) if self.one_panel is not None else 1
        nbytes = self.terms * self.columns * matrices * self.panel_itemsize()
        if isinstance(nbytes, int) and nbytes <= CACHED:
            return
        self.asked, width, tiles = first, self.schedule.tile_n, self["tiles"]
        if self.is_one_tile:
            self.texts |= {"step": f"T.int64({width})", "ahead": f"T.int64({AHEAD // self.panel_itemsize()})"}
            return
        step = self.let("step", f"T.Select({tiles} < 2, T.int64({width}), ({width - 1} + {tiles}) // {tiles})")
        share = f"{terms} * ({width} + {tile} * {step})"
        self.let("ahead", f"T.Select({tiles} < 2, T.int64({AHEAD // self.panel_itemsize()}), {share})")

    def prefetch_right(self, k: str) -> None:
        """Ask for what is planned at term ``k``; past the end of the weight it asks in vain."""
        if self.asked is None:
            return
        itemsize = self.panel_itemsize()
        term = k if self.asked == self["start"] else f"({self['start']} + {k})"
        at = f"{self['ahead']} + {term} * {self['step']}"
        for line in range(-(-self.schedule.tile_n * itemsize // LINE)):
            self.line(prefetch_text(self.panel_row(self.asked, f"{at} + {line * LINE // itemsize}")))

    def multiply_add(self, total: str, left: str, right: str) -> str:
        """A sum with one more product."""
        return f"{total} + {left} * {right}"

    def clear(self, to: str, rows: str, kind: str = "range") -> None:
        """What sums in ``to`` start from, for some rows of the panel, in loops of a kind."""
        with self.vectors(f"{rows} * {self.schedule.tile_n // self.schedule.vector}", kind) as e:
            self.line(f"{to}[{e}] = T.{self.acc}(0)")

    # --- copies of the operands ---------------------------------------------------------------------------------------

    def copy_right(self) -> None:
        """``right[k, n]``: a block of a panel of the right operand; columns past the last are zero."""
        s = self.schedule
        to = f"{self['right']}[{{}} * {s.tile_n} + {{}}]"
        with self.loop("j", s.tile_n // s.vector) as j:
            if self.panel is not None:
                with self.loop("k", self["terms"]) as k, self.lanes() as v:
                    e = f"{j} * {s.vector} + {v}"
                    self.line(f"{to.format(k, e)} = {self.panel_element(k, e, self.scope)}")
                return
            base = self.let("base", f"{self['column']} + {j} * {s.vector}")
            total = index_text(self.columns, self.scope)
            with self.src.block(f"if {base} + {s.vector} <= {total}"):
                self.copy_columns(base, to.format("{}", f"{j} * {s.vector} + {{}}"))
            with self.src.block("else"), self.loop("k", self["terms"]) as k, self.loop("n", s.vector) as n:
                at = to.format(k, f"{j} * {s.vector} + {n}")
                with self.src.block(f"if {base} + {n} < {total}"):
                    self.line(f"{at} = {self.right_element(k, base, n, scalar_columns=True)}")
                with self.src.block("else"):
                    self.line(f"{at} = T.{self.element}(0)")

    def copy_columns(self, base: str, to: str) -> None:
        """A vector of columns; where memory runs along the terms, squares are read so and transposed."""
        n, done = self.vector, "T.int64(0)"
        if self.runs_along_terms():
            done = f"{self['terms']} // {n} * {n}"
            with self.loop("ka", f"{self['terms']} // {n}") as ka:
                self.transpose(
                    self.element,
                    lambda i, v: self.right_element(f"({ka} * {n} + {v})", base, i, scalar_columns=True),
                    lambda i, v, x: self.line(f"{to.format(f'({ka} * {n} + {i})', v)} = {x}"),
                )
        with self.loop("k", f"{self['terms']} - {done}") as k, self.lanes() as v:
            term = f"({done} + {k})"
            value = self.right_element(term, base, v, scalar_columns=not self.vectorisable())
            self.line(f"{to.format(term, v)} = {value}")

    def runs_along_terms(self) -> bool:
        """Whether neighbours in memory of the right operand are terms."""
        along = strided_load(self.program, _one_matrix(self.c.right), self.c.reduced[-1])
        return along is not None and along.step == 1

    def right_element(self, k: str, base: str, n: str, *, scalar_columns: bool) -> str:
        """The right operand at term ``k`` of the block and column ``base + n``."""
        scope = self.scope.at(unflatten(self.c.reduced, f"({self['start']} + {k})", self.scope))
        return scalar(self.c.right, scope.at(self.column_axes(base, n, scalar_columns)))

    def copy_left(self) -> None:
        """``left[row, k]`` for the rows of this task."""
        n, terms = self.vector, self["terms"]
        in_runs = self._left_in_runs()
        if in_runs is not None:
            self._copy_runs(in_runs)
            return
        with self.loop("r", f"{self['last']} - {self['first']}") as r:
            scope = self.scope.at(self.row_axes(f"({self['first']} + {r})"))
            with self.vectors(f"{terms} // {n}", "range") as e:
                self._copy_left_element(r, e, scope)
            with self.loop("v", f"{terms} % {n}") as v:
                self._copy_left_element(r, f"({terms} // {n} * {n} + {v})", scope)

    def _left_in_runs(self) -> Strided | None:
        """The left operand where it lies in several runs of terms."""
        if len(self.c.reduced) != 1:
            return None
        found = strided_load(self.program, self.c.left, self.c.reduced[0], half=True, in_runs=True)
        return found if found is not None and found.length and self.element == self.acc else None

    def _copy_runs(self, left: Strided) -> None:
        """The same run by run: a vector of terms that crosses the end of one would be gathered one by one."""
        n, dtype, step = self.vector, left.param.type.dtype, index_text(left.step, self.scope)
        with self.loop("r", f"{self['last']} - {self['first']}") as r:
            base = self.var("base", index_text(left.base, self.scope.at(self.row_axes(f"({self['first']} + {r})"))))

            def copy(k: str) -> None:
                at = f"{base} + ({self['start']} + {k}) * {step} + {self['jumped']}"
                value = from_storage(f"{left.param.name}[{at}]", dtype)
                self.line(f"{self['left']}[{r} * {self.schedule.block_k} + {k}] = {value}")

            with self.runs(left) as (low, high):
                whole = self.let("whole", f"({high} - {low}) // {n}")
                with self.vectors(whole, "range") as e:
                    copy(f"({low} + {e})")
                with self.loop("v", f"{high} - {low} - {whole} * {n}") as v:
                    copy(f"({low} + {whole} * {n} + {v})")

    def _copy_left_element(self, r: str, k: str, scope: Scope) -> None:
        at = scope.at(unflatten(self.c.reduced, f"({self['start']} + {k})", scope))
        self.line(f"{self['left']}[{r} * {self.schedule.block_k} + {k}] = {scalar(self.c.left, at)}")


def _one_matrix(expr: Expr) -> Expr:
    """A load of the matrix that data chooses, as one of the first matrix: it runs through memory in the same way."""
    if not isinstance(expr, Load) or not expr.index or not isinstance(expr.index[0], Checked):
        return expr
    return Load(expr.param, (0, *expr.index[1:]), expr.dtype)
