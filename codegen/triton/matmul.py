"""The matmul skeleton: which program computes which tiles, in an order that keeps operands in cache.

A left operand that needs whole rows (a norm) is computed by a function of its own first, but for few rows, whose
statistics every program computes itself (`own_rows.py`); one that is computed element by element is computed where it
is read. Where there are too few tiles to fill the GPU, several programs sum parts of one, each to memory of its own,
and a second function adds them up in one order: there are no atomics.
"""

from __future__ import annotations

from dataclasses import replace

from ...ir.types import Dim, TensorType, canonical_dim, contiguous_strides
from ..contraction import Contraction, contraction
from ..gpu import GpuMatmulSchedule
from ..gpu_schedule import rows_schedule
from ..program import (
    Apply,
    Expr,
    Load,
    Param,
    Program,
    Role,
    dot_stage,
    program_roots,
    stage_roots,
    store_roots,
)
from ..prologue import HELD, Phases, phases
from ..rewrite import map_expressions, with_operands
from .few_bits import widened_half
from .file import FileWriter, ceil_div
from .indexing import dim_text
from .own_rows import OwnRows, own_rows
from .product import Product
from .rows import emit_row_function
from .scope import Scope
from .storage import compute_dtype
from .tiles import DotTile, SumTile

PARTS = "parts"  # the scratch memory: sums of tiles over parts of the terms


def emit_matmul(file: FileWriter, schedule: GpuMatmulSchedule) -> None:
    """Write the functions of a matmul program."""
    computed = phases(file.program)
    if computed is None:
        emit_product(file, "", file.program, schedule)
    elif _is_elementwise(computed):
        emit_product(file, "", _inlined(computed), schedule)
    elif (own := own_rows(computed, schedule)) is not None:
        _emit_whole(file, "", own.product, contraction(own.product, dot_stage(own.product)), schedule, own=own)
    else:
        computed = _narrowed(computed)
        if computed.held is not None:
            file.lend(computed.held)
        axes = (computed.axes, (computed.terms,))
        parts = _parts(file, contraction(computed.product, dot_stage(computed.product)), schedule)
        emit_row_function(file, "rows", computed.rows, rows_schedule(computed.rows, *axes), axes)
        emit_product(file, "product", computed.product, schedule, computed, parts)


def product_of(program: Program) -> Program:
    """A matmul program as its tiles see it: rows that are computed first are read from memory."""
    computed = phases(program)
    if computed is None:
        return program
    return _inlined(computed) if _is_elementwise(computed) else _narrowed(computed).product


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


def _narrowed(computed: Phases) -> Phases:
    """The phases with rows held in the half type that they are widened from."""
    store = next((s for s in computed.rows.stores if s.param == HELD), None)
    value = widened_half(store.value) if store is not None else None
    if computed.held is None or store is None or value is None:
        return computed
    held = replace(computed.held, type=TensorType(computed.held.type.shape, value.dtype))

    def change(expr: Expr, args: tuple[Expr, ...]) -> Expr:
        if isinstance(expr, Load) and expr.param == HELD:
            return Apply("cast", (Load(HELD, expr.index, held.type.dtype),), expr.dtype)
        return with_operands(expr, args)

    stores = tuple(replace(s, value=value) if s is store else s for s in computed.rows.stores)
    rows, product = (
        replace(program, params=tuple(held if p.name == HELD else p for p in program.params))
        for program in (computed.rows, computed.product)
    )
    return replace(computed, rows=replace(rows, stores=stores), product=map_expressions(product, change), held=held)


# --- who computes which tiles -----------------------------------------------------------------------------------------


def emit_product(
    file: FileWriter,
    suffix: str,
    program: Program,
    schedule: GpuMatmulSchedule,
    computed: Phases | None = None,
    parts: Param | None = None,
) -> None:
    """Write the functions that multiply and store."""
    c = contraction(program, dot_stage(program))
    parts = parts or _parts(file, c, schedule)
    if parts is None:
        _emit_whole(file, suffix, program, c, schedule, computed)
        return
    lent = replace(program, params=(*program.params, parts))
    roots = [x for s in program.stages for x in stage_roots(s)]
    programs = schedule.streams or canonical_dim(_tiles(c, schedule) * schedule.splits)
    with file.function("parts", lent, roots, [PARTS], programs, warps=schedule.warps, stages=schedule.stages) as scope:
        (_emit_streams if schedule.streams else _emit_splits)(_made(c, schedule, computed, scope), scope)
    roots, written = [x for s in program.stores for x in store_roots(s)], [s.param for s in program.stores]
    with file.function("whole", lent, roots, [PARTS, *written], _tiles(c, schedule), warps=schedule.warps) as scope:
        _put_together(_made(c, schedule, computed, scope), scope)


def _made(c: Contraction, schedule: GpuMatmulSchedule, computed: Phases | None, scope: Scope) -> Product:
    return (DotTile if schedule.dot else SumTile)(c, schedule, computed, scope)


def _emit_whole(
    file: FileWriter,
    suffix: str,
    program: Program,
    c: Contraction,
    schedule: GpuMatmulSchedule,
    computed: Phases | None = None,
    own: OwnRows | None = None,
) -> None:
    """The function in which a program sums whole tiles: one, or with ``persistent`` some, one after another."""
    s, tiles = schedule, _tiles(c, schedule)
    programs: Dim = s.persistent if s.persistent else tiles
    written, roots = [x.param for x in program.stores], program_roots(program)
    whole = program
    if own is not None:
        whole, written, roots = file.program, own.written, own.roots
    with file.function(suffix, whole, roots, written, programs, warps=s.warps, stages=s.stages) as scope:
        product = _made(c, s, computed, scope)
        number = scope.src.let("program", "tl.program_id(0)")
        if own is not None:
            scope = own.emit(number, s, scope)
        terms = dim_text(product.terms, scope)
        if not s.persistent:
            product.take(number, scope)
            product.store(product.sums("0", terms))
            return
        tile = scope.src.fresh("number")
        with scope.src.block(
            f"for {tile} in range({number}, {_narrow(dim_text(tiles, scope), scope)}, {s.persistent})"
        ):
            product.take(tile, scope.inner())
            product.store(product.sums("0", terms))


def _narrow(number: str, scope: Scope) -> str:
    """A number that is known to fit 32 bits, as tiles are counted in."""
    return f"({number}).to(tl.int32)" if scope.bits == 64 and not number.isdigit() else number


def _tiles(c: Contraction, s: GpuMatmulSchedule) -> Dim:
    sizes: list[Dim] = [1, 1, 1]
    for at, axes in enumerate((c.batch, c.rows, c.columns)):
        for axis in axes:
            sizes[at] = sizes[at] * axis.size
    return canonical_dim(sizes[0] * ceil_div(sizes[1], s.block_m) * ceil_div(sizes[2], s.block_n))


# --- tiles in parts ---------------------------------------------------------------------------------------------------


def _parts(file: FileWriter, c: Contraction, s: GpuMatmulSchedule) -> Param | None:
    """The memory for sums over parts of the terms, asked for; None where programs sum whole tiles.

    A part lies at the number of its tile times the parts of one, or, of streams, at the number of the program and that
    of the tile together: both grow by one from part to part.
    """
    if s.splits == 1 and not s.streams:
        return None
    tiles = _tiles(c, s)
    count = canonical_dim(tiles + s.streams if s.streams else tiles * s.splits)
    shape = (count, s.block_m, s.block_n)
    type_ = TensorType(shape, compute_dtype(c.stage.dtype))
    return file.lend(Param(PARTS, type_, contiguous_strides(shape), Role.OUT))


def _at_part(product: Product, part: str) -> str:
    """The addresses of the sums of a part."""
    m, n = product.m, product.n
    inside = f"tl.arange(0, {m})[:, None] * {n} + tl.arange(0, {n})[None, :]"
    part = f"({part}).to(tl.int64)" if product.outer.bits == 64 else f"({part})"
    return f"{PARTS} + {part} * ({m} * {n}) + ({inside})"


def _blocks(product: Product, scope: Scope) -> str:
    """How many blocks of terms there are, at least one."""
    count = ceil_div(product.terms, product.schedule.block_k)
    text = dim_text(count, scope)
    return text if isinstance(count, int) and count else f"tl.maximum({text}, 1)"


def _emit_splits(product: Product, scope: Scope) -> None:
    """Each program sums one of ``splits`` parts of a tile."""
    src, s = scope.src, product.schedule
    number = src.let("program", "tl.program_id(0)")
    part, tile = src.let("part", f"{number} % {s.splits}"), src.let("number", f"{number} // {s.splits}")
    size = src.let("size", f"({_blocks(product, scope)} + {s.splits - 1}) // {s.splits} * {product.k}")
    low = src.let("low", f"{part} * {size}")
    high = src.let("high", f"tl.minimum({low} + {size}, {dim_text(product.terms, scope)})")
    product.take(tile, scope)
    src.line(f"tl.store({_at_part(product, number)}, {product.sums(low, high)})")


def _emit_streams(product: Product, scope: Scope) -> None:
    """Each of ``streams`` programs sums as many blocks of terms as the others, of whatever tiles these are of."""
    src = scope.src
    number = src.let("program", "tl.program_id(0)")
    blocks, share, all_ = _shares(product, scope)
    first = src.let("first_block", f"{number} * {share}")
    last = src.let("last_block", f"tl.minimum({first} + {share}, {all_})")
    tile = src.fresh("number")
    low, high = (f"({x}).to(tl.int32)" for x in (f"{first} // {blocks}", f"({last} + {blocks} - 1) // {blocks}"))
    with src.block(f"for {tile} in range({low}, {high})"):
        index = scope.index_type
        low = src.let("low", f"tl.maximum({first} - {tile} * {blocks}, 0).to({index}) * {product.k}")
        high = src.let("high", f"tl.minimum({last} - {tile} * {blocks}, {blocks}).to({index}) * {product.k}")
        high = src.let("high", f"tl.minimum({high}, {dim_text(product.terms, scope)})")
        product.take(tile, scope.inner())
        src.line(f"tl.store({_at_part(product, f'{number} + {tile}')}, {product.sums(low, high)})")


def _shares(product: Product, scope: Scope) -> tuple[str, str, str]:
    """The blocks of terms of a tile, those that a program sums, and all there are.

    All have 64 bits: blocks of all tiles together may be more than any tensor has elements.
    """
    src, s = scope.src, product.schedule
    blocks = src.let("blocks", f"tl.full((), {_blocks(product, scope)}, tl.int64)")
    all_ = src.let("all_blocks", f"{dim_text(product.tiles, scope)} * {blocks}")
    return blocks, src.let("share", f"({all_} + {s.streams - 1}) // {s.streams}"), all_


def _put_together(product: Product, scope: Scope) -> None:
    """A program adds the parts of a tile up, the first terms first, and stores what follows."""
    src, s = scope.src, product.schedule
    number = src.let("program", "tl.program_id(0)")
    product.take(number, scope)
    if s.streams:
        blocks, share, _ = _shares(product, scope)
        low = src.let("low", f"({number} * {blocks} // {share}).to(tl.int32)")
        high = src.let("high", f"((({number} + 1) * {blocks} - 1) // {share} + 1).to(tl.int32)")
        first = number
    else:
        low, high, first = "0", str(s.splits), f"{number} * {s.splits}"
    acc = src.let("acc", f"tl.zeros(({product.m}, {product.n}), {PARTS}.dtype.element_ty)")
    part = src.fresh("part")
    with src.block(f"for {part} in range({low}, {high})"):
        src.line(f"{acc} = {acc} + tl.load({_at_part(product, f'{first} + {part}')})")
    product.store(acc)
