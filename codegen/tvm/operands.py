"""The operands of a matmul kernel as text: read where they lie, or copied block by block to local memory."""

from __future__ import annotations

import sympy

from ..contraction import Contraction, contraction, panel_load
from ..dot import is_row_major
from ..program import Axis, Program, dot_stage
from ..prologue import HELD_ROW
from ..schedule import MatmulSchedule
from .contraction import Strided, flat_size, panel_text, strided_load, unflatten
from .expression import Scope, compute_type, index_text, scalar
from .nest import LINE, Nest
from .prefetch import AHEAD, prefetch_text
from .source import Source

CACHED = 256 << 10  # bytes of a weight that a core's cache holds from call to call
HELD = 640 << 10  # bytes of a weight that stay in a core's cache while they are computed with


class Operands(Nest):
    """What a task reads. The task names its ``first`` and ``last`` row and ``column``, and ``start`` and ``terms``."""

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
            self.left = strided_load(program, self.c.left, self.c.reduced[0])
        self.pack_left = self.left is None
        self.pack_right = schedule.pack_right or self.panel is None
        self.terms = flat_size(self.c.reduced)
        self.columns = flat_size(self.c.columns)
        self.shared: tuple[str, str] | None = None  # where tiles of rows ask ahead together, and their step for a term
        self.base = ""  # the first row of this pass, where not all rows are taken at once

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
        """The offset of each row of the left operand, so that the loop over terms only adds to it."""
        assert self.left is not None
        bases = self.registers("bases", rows, "int64")
        with self.loop("r", rows, "T.unroll") as r:
            row = self.let("m", f"T.min({self['row']} + {r}, {self['last']} - 1)")
            scope = self.scope.at(self.row_axes(row))
            self.line(f"{bases}[{r}] = {index_text(self.left.base, scope)}")

    def left_text(self, r: str, k: str) -> str:
        """The left operand at row ``r`` of the tile and term ``k`` of the block."""
        if self.left is None:
            first = f"({self['row']} - {self['first']} + {r})"
            return f"{self['left']}[{first} * {self.schedule.block_k} + {k}]"
        step = index_text(self.left.step, self.scope)
        return f"{self.left.param.name}[{self['bases']}[{r}] + ({self['start']} + {k}) * {step}]"

    def right_text(self, k: str, e: str) -> str:
        """The right operand at term ``k`` of the block and column ``e`` of the panel."""
        if self.pack_right:
            return f"{self['right']}[{k} * {self.schedule.tile_n} + {e}]"
        return self.panel_element(k, e, self.scope)

    def panel_element(self, k: str, e: str, scope: Scope) -> str:
        """The packed weight at term ``k`` of the block and column ``e`` of the panel."""
        assert self.panel is not None
        named = scope.at(unflatten(self.c.reduced, f"({self['start']} + {k})", scope))
        return panel_text(self.c.right, self.panel, self.panel_place(k, e, scope), named)

    def panel_place(self, k: str, e: str, scope: Scope) -> str:
        """Where the packed weight at term ``k`` of the block and column ``e`` of the panel lies in memory."""
        assert self.panel is not None
        term = f"({self['start']} + {k})"
        index = self.panel.index[0]
        assert isinstance(index, sympy.Expr | int)
        if not is_row_major(self.c.reduced, index):
            term = index_text(index, scope.at(unflatten(self.c.reduced, term, scope)))
        size = index_text(self.terms, scope)
        return f"{self.panel.param}[({self['panel']} * {size} + {term}) * {self.schedule.tile_n} + {e}]"

    @property
    def panel_itemsize(self) -> int:
        """The bytes of what the loops read as an element of the packed weight."""
        assert self.panel is not None
        return self.program.param(self.panel.param).type.dtype.itemsize

    @property
    def is_streamed(self) -> bool:
        """Whether the packed weight comes from memory in each call, so that it pays to ask for it ahead."""
        if self.pack_right or self.panel is None:
            return False
        nbytes = self.terms * self.columns * self.panel_itemsize
        return not isinstance(nbytes, int) or nbytes > CACHED

    def share_prefetch(self, tile: str, tiles: str) -> None:
        """Let each tile of rows ask for an equal part of what all of them take next.

        The first tile alone reads memory: the others find the panel in the cache, and while they computed, memory
        would rest. So together they ask for the next panel, if the cache holds two.
        """
        rows = flat_size(self.c.rows)
        several = not isinstance(rows, int) or rows > self.schedule.tile_m
        if not several or not self.is_streamed or not isinstance(self.terms, int):
            return
        elements = self.terms * self.schedule.tile_n
        if 2 * elements * self.panel_itemsize > HELD:
            return
        alone = f"T.int64({AHEAD // self.panel_itemsize})"
        ahead = self.let("ahead", f"T.Select({tiles} == 1, {alone}, T.int64({elements}))")
        stride = self.let("stride", f"{self.schedule.tile_n} // {tiles}")
        self.shared = f"{ahead} + {tile} * {self.terms} * {stride}", stride

    def prefetch_right(self, k: str) -> None:
        """Ask for what the loop over terms reads of a panel some time after term ``k``; past the end it asks in vain.

        The processor's own prefetching stops at the end of each page of memory.
        """
        if not self.is_streamed:
            return
        itemsize, tile_n = self.panel_itemsize, self.schedule.tile_n
        first = str(AHEAD // itemsize)
        if self.shared is not None:  # of the panel, not of the row at term k
            base, stride = self.shared
            first = f"({base} + ({self['start']} + {k}) * ({stride} - {tile_n}))"
        for line in range(-(-tile_n * itemsize // LINE)):
            self.line(prefetch_text(self.panel_place(k, f"{first} + {line * LINE // itemsize}", self.scope)))

    def multiply_add(self, total: str, left: str, right: str) -> str:
        """A sum with one more product."""
        return f"{total} + {left} * {right}"

    def clear(self, rows: str) -> None:
        """What sums start from, for some rows of the panel."""
        with self.vectors(f"{rows} * {self.schedule.tile_n // self.schedule.vector}", "range") as e:
            self.line(f"{self['part']}[{e}] = T.{self.acc}(0)")

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
        along = strided_load(self.program, self.c.right, self.c.reduced[-1])
        return along is not None and along.step == 1

    def right_element(self, k: str, base: str, n: str, *, scalar_columns: bool) -> str:
        """The right operand at term ``k`` of the block and column ``base + n``."""
        scope = self.scope.at(unflatten(self.c.reduced, f"({self['start']} + {k})", self.scope))
        return scalar(self.c.right, scope.at(self.column_axes(base, n, scalar_columns)))

    def copy_left(self) -> None:
        """``left[row, k]`` for the rows of this task."""
        n, terms = self.vector, self["terms"]
        with self.loop("r", f"{self['last']} - {self['first']}") as r:
            scope = self.scope.at(self.row_axes(f"({self['first']} + {r})"))
            with self.vectors(f"{terms} // {n}", "range") as e:
                self._copy_left_element(r, e, scope)
            with self.loop("v", f"{terms} % {n}") as v:
                self._copy_left_element(r, f"({terms} // {n} * {n} + {v})", scope)

    def _copy_left_element(self, r: str, k: str, scope: Scope) -> None:
        at = scope.at(unflatten(self.c.reduced, f"({self['start']} + {k})", scope))
        self.line(f"{self['left']}[{r} * {self.schedule.block_k} + {k}] = {scalar(self.c.left, at)}")
