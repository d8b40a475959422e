"""The matmul skeleton: a tile of the product in each program, in an order that keeps operands in cache.

A left operand that needs whole rows (a norm) is computed by a function of its own first; one that is computed element
by element is computed where it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...ir.types import Dim, canonical_dim, product
from ..contraction import Contraction, contraction
from ..gpu import GpuMatmulSchedule, rows_schedule
from ..program import Expr, Load, Program, dot_stage, program_roots
from ..prologue import HELD, HELD_ROW, Phases, phases
from ..rewrite import map_expressions, with_operands
from .dots import dot, dot_dtype
from .expression import element, hoist, value_of
from .file import FileWriter, ceil_div, program_id
from .indexing import decode, dim_text
from .map import emit_stores
from .rows import emit_row_function
from .scope import Scope, Value, lanes
from .storage import compute_type, storage_type


def emit_matmul(file: FileWriter, schedule: GpuMatmulSchedule) -> None:
    """Write the functions of a matmul program."""
    computed = phases(file.program)
    if computed is None:
        emit_product(file, "", file.program, schedule)
    elif _is_elementwise(computed):
        emit_product(file, "", _inlined(computed), schedule)
    else:
        if computed.held is not None:
            file.lend(computed.held)
        axes = (computed.axes, (computed.terms,))
        emit_row_function(file, "rows", computed.rows, rows_schedule(computed.rows, *axes), axes)
        emit_product(file, "product", computed.product, schedule, computed)


def _is_elementwise(computed: Phases) -> bool:
    """Whether the rows need nothing of one another, and are not stored."""
    return not computed.rows.stages and all(s.param == HELD for s in computed.rows.stores)


def _inlined(computed: Phases) -> Program:
    """The product with the left operand where it is read."""
    (store,) = computed.rows.stores

    def change(expr: Expr, args: tuple[Expr, ...]) -> Expr:
        return store.value if isinstance(expr, Load) and expr.param == HELD else with_operands(expr, args)

    program = map_expressions(computed.product, change)
    return replace(program, params=tuple(p for p in program.params if p.name != HELD))


def emit_product(
    file: FileWriter, suffix: str, program: Program, schedule: GpuMatmulSchedule, computed: Phases | None = None
) -> None:
    """Write a function that multiplies and stores."""
    c, s = contraction(program, dot_stage(program)), schedule
    tiles_m, tiles_n = ceil_div(product(a.size for a in c.rows), s.block_m), ceil_div(_columns(c), s.block_n)
    programs = canonical_dim(product(a.size for a in c.batch) * tiles_m * tiles_n)
    written, roots = [x.param for x in program.stores], program_roots(program)
    with file.function(suffix, program, roots, written, programs, warps=s.warps, stages=s.stages) as scope:
        (_Dot if s.dot else _Sum)(c, s, tiles_m, tiles_n, computed, scope).emit()


def _columns(c: Contraction) -> Dim:
    return product(a.size for a in c.columns)


class _Product:
    """What both ways share: which tile a program computes."""

    def __init__(
        self,
        c: Contraction,
        schedule: GpuMatmulSchedule,
        tiles_m: Dim,
        tiles_n: Dim,
        computed: Phases | None,
        scope: Scope,
    ) -> None:
        self.c, self.schedule, self.src, self.computed = c, schedule, scope.src, computed
        self.tiles_m, self.tiles_n = tiles_m, tiles_n
        self.rows, self.columns = product(a.size for a in c.rows), _columns(c)
        self.terms = product(a.size for a in c.reduced)
        constants = (("BLOCK_M", schedule.block_m), ("BLOCK_N", schedule.block_n), ("BLOCK_K", schedule.block_k))
        self.m, self.n, self.k = (self.src.constant(*c) for c in constants)
        self.outer = self._tile(scope)

    def _tile(self, scope: Scope) -> Scope:
        """The tile of this program: ``tile_m`` and ``tile_n``; the batch in the scope."""
        src, s = self.src, self.schedule
        program = src.let("program", program_id(scope))
        high, wide = dim_text(self.tiles_m, scope), dim_text(self.tiles_n, scope)
        if self.c.batch:
            tiles = dim_text(self.tiles_m * self.tiles_n, scope)
            batch = src.let("batch", f"{program} // {tiles}")
            program = src.let("tile", f"{program} % {tiles}")
            scope = scope.at(decode(Value(batch), self.c.batch, scope))
        if self.tiles_m == 1 or self.tiles_n == 1:
            self.tile_m, self.tile_n = (program, "0") if self.tiles_n == 1 else ("0", program)
            return scope
        group = src.constant("GROUP", s.group)
        many = src.let("many", f"{group} * {wide}")
        first = src.let("first", f"{program} // {many} * {group}")
        height = src.let("height", f"tl.minimum({high} - {first}, {group})")
        self.tile_m = src.let("tile_m", f"{first} + {program} % {many} % {height}")
        self.tile_n = src.let("tile_n", f"{program} % {many} // {height}")
        return scope

    def line(
        self, name: str, start: str, block: str, rank: int, dim: int, size: Dim, scope: Scope
    ) -> tuple[Value, str]:
        """A row of indices along one dim of a block, and the name of its mask or an empty text."""
        row = f"tl.arange(0, {block}){lanes(rank, dim)}"
        if scope.bits == 64:
            row = f"tl.arange(0, {block}).to(tl.int64){lanes(rank, dim)}"
        text = row if start == "0" else f"{start} + {row}"
        at = self.src.let(name, text)
        extent = {self.m: self.schedule.block_m, self.n: self.schedule.block_n, self.k: self.schedule.block_k}[block]
        exact = isinstance(size, int) and size % extent == 0 and size > 0
        mask = "" if exact else self.src.let(f"in_{name}", f"{at} < {dim_text(size, scope)}")
        return Value(at, frozenset({dim})), mask

    def row_axes(self, m: Value, scope: Scope) -> Scope:
        """The scope with the axes of the rows, and the row that the kernel holds."""
        scope = scope.at(decode(m, self.c.rows, scope))
        if self.computed is None:
            return scope
        flat: Dim = 0
        for axis in self.computed.axes:
            flat = flat * axis.size + axis.symbol
        text = dim_text(canonical_dim(flat), scope)
        dims = frozenset[int]().union(*(scope.axes[a.symbol].dims for a in self.computed.axes))
        return scope.at({HELD_ROW: Value(text, dims)})

    def starts(self) -> tuple[str, str]:
        """The first row and the first column of the tile."""
        return (
            "0" if self.tile_m == "0" else f"{self.tile_m} * {self.m}",
            "0" if self.tile_n == "0" else f"{self.tile_n} * {self.n}",
        )

    def store(self, result: Value, scope: Scope) -> None:
        """Store what follows the product; ``scope`` is that of the tile."""
        emit_stores(scope.program.stores, scope.knowing({self.c.stage.name: result}))

    def operand(self, expr: Expr, inside: str, scope: Scope) -> Value:
        """A block of an operand, 0 where there are no terms."""
        value = value_of(expr, scope)
        return value if not inside else Value(f"tl.where({inside}, {value.typed}, 0)", value.dims)


class _Dot(_Product):
    """Tiles multiplied by ``tl.dot``."""

    def emit(self) -> None:
        src, scope, c = self.src, self.outer, self.c
        m_start, n_start = self.starts()
        m, in_m = self.line("m", m_start, self.m, 2, 0, self.rows, scope)
        n, in_n = self.line("n", n_start, self.n, 2, 1, self.columns, scope)
        tile = scope.block((self.m, self.n), (in_m or None, in_n or None))
        tile = self.row_axes(m, tile)
        tile = tile.at(decode(n, c.columns, tile))
        left = replace(tile.block((self.m, self.k), (in_m or None, None)), fill=True)
        right = replace(tile.block((self.k, self.n), (None, in_n or None)), fill=True)
        hoist([c.left], c.reduced, left)
        hoist([c.right], c.reduced, right)
        acc = src.let("acc", f"tl.zeros(({self.m}, {self.n}), tl.float32)")
        start = src.fresh("start")
        with src.block(f"for {start} in range(0, {dim_text(self.terms, scope)}, {self.k})"):
            k, in_k = self.line("k", start, self.k, 2, 1, self.terms, scope)
            left = replace(left.inner(), masks=(in_m or None, in_k or None))
            a = self._block("a", c.left, in_k, left.at(decode(k, c.reduced, left)))
            k, in_k = self.line("k", start, self.k, 2, 0, self.terms, scope)
            right = replace(right.inner(), masks=(in_k or None, in_n or None))
            b = self._block("b", c.right, in_k, right.at(decode(k, c.reduced, right)))
            src.line(f"{acc} = {dot(a, b, acc, dot_dtype(c.left, c.right), self.schedule.tf32)}")
        self.store(Value(acc, frozenset({0, 1})), tile)

    def _block(self, name: str, expr: Expr, inside: str, scope: Scope) -> str:
        """An operand of ``tl.dot``, in its dtype; half types as they are stored where nothing is computed."""
        dtype = dot_dtype(self.c.left, self.c.right)
        if isinstance(expr, Load) and scope.program.param(expr.param).type.dtype == dtype:
            value = element(expr, scope)
            if value.dims == scope.everywhere:  # masked along the terms by itself
                return self.src.let(name, value.text)
        value = scope.widened(self.operand(expr, inside, scope), scope.everywhere)
        narrow = "" if dtype.itemsize > 2 else f".to({storage_type(dtype)})"
        return self.src.let(name, f"{value.typed}{narrow}")


class _Sum(_Product):
    """Products summed one by one: a block of [rows, columns, terms]."""

    def emit(self) -> None:
        src, scope, c = self.src, self.outer, self.c
        m_start, n_start = self.starts()
        m, in_m = self.line("m", m_start, self.m, 3, 0, self.rows, scope)
        n, in_n = self.line("n", n_start, self.n, 3, 1, self.columns, scope)
        cube = scope.block((self.m, self.n, self.k), (in_m or None, in_n or None, None))
        cube = self.row_axes(m, cube)
        cube = cube.at(decode(n, c.columns, cube))
        hoist([c.left, c.right], c.reduced, cube)
        acc = src.let("acc", f"tl.zeros(({self.m}, {self.n}, {self.k}), {compute_type(c.stage.dtype)})")
        start = src.fresh("start")
        with src.block(f"for {start} in range(0, {dim_text(self.terms, scope)}, {self.k})"):
            k, in_k = self.line("k", start, self.k, 3, 2, self.terms, scope)
            here = replace(cube.inner(), masks=(in_m or None, in_n or None, in_k or None))
            here = here.at(decode(k, c.reduced, here))
            a, b = self._operands((c.left, c.right), in_k, here)
            src.line(f"{acc} = {acc} + {a} * {b}")
        total = src.let("total", f"tl.sum({acc}, axis=2).to({compute_type(c.stage.dtype)})")
        m, in_m = self.line("m", m_start, self.m, 2, 0, self.rows, scope)
        n, in_n = self.line("n", n_start, self.n, 2, 1, self.columns, scope)
        tile = self.row_axes(m, scope.block((self.m, self.n), (in_m or None, in_n or None)))
        self.store(Value(total, frozenset({0, 1})), tile.at(decode(n, c.columns, tile)))

    def _operands(self, exprs: Sequence[Expr], inside: str, scope: Scope) -> list[str]:
        return [self.src.let(n, self.operand(e, inside, scope).typed) for n, e in zip("ab", exprs, strict=True)]
