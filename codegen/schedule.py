"""Schedules: how a kernel program becomes loops. A schedule never changes what is computed.

Tile sizes are chosen from the register file and the caches of a :class:`Machine`. ``default_schedule`` is what runs
when nothing was tuned; ``candidates`` is the small space that a tuner measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial

import sympy
import torch

from ..ir.types import Dim, canonical_dim, product
from .dot import attention_terms_at_once, terms_at_once
from .machine import Machine
from .narrow import is_narrow
from .one_panel import is_one_panel
from .program import Format, Param, Program, Skeleton, dot_stage, postorder
from .prologue import Phases, phases
from .quantized import few_bits
from .shares import PARTS

TASKS = 4  # of a product for each thread at least
HELD_BYTES = 4 << 20  # of computed rows: a part of a third-level cache that is not large


@dataclass(frozen=True)
class MapSchedule:
    """One loop over the points; ``vector`` of them at a time."""

    vector: int = 16


@dataclass(frozen=True)
class RowsSchedule:
    """Rows in parallel; inside a row ``vector`` elements at a time."""

    vector: int = 16


@dataclass(frozen=True)
class MatmulSchedule:
    """A register tile of ``tile_m`` rows by ``tile_n`` columns, in vectors of ``vector`` columns.

    ``tile_n`` is 1 where columns are so few that vectors are of terms.

    Attributes:
        block_m: about how many tiles of rows one task computes at most, never more than half as many again: what of
            the left operand should stay in cache.
        block_k: terms summed in registers before they are added to the result, which bounds the rounding error.
        tasks: how many tasks there should be at least; rows are cut where panels are too few.
        shares: into how many parts tasks are dealt out at most, all of a size.
        alone: how many multiplications one thread does sooner than others are woken.
        alone_weights: how many elements of the right operand one thread reads sooner than others are woken.
        blocked: take all tiles of rows through one block of terms before the next block, so that a block of the right
            operand stays in cache; otherwise each tile of rows runs over all terms.
        held_rows: rows of a left operand that the kernel computes itself, at a time; 0 where it computes none.
        pack_left, pack_right: copy the operand to a local buffer first, block by block; implies ``blocked``.
        group: how many terms stand side by side in a 32-bit lane, for an instruction that multiplies and adds them all:
            2 of bfloat16, 4 of int8; 1 where terms are multiplied one by one.
    """

    tile_m: int
    tile_n: int
    vector: int = 16
    block_m: int = 16
    block_k: int = 512
    tasks: int = 8
    shares: int = 16
    alone: int = 1 << 20
    alone_weights: int = 1 << 16
    blocked: bool = False
    pack_left: bool = False
    pack_right: bool = False
    held_rows: int = 0
    group: int = 1


@dataclass(frozen=True)
class AttentionSchedule:
    """``queries`` in vector lanes at a time, ``keys`` in a block between two updates of the softmax statistics.

    Attributes:
        tile: keys in a register tile; divides ``queries`` and ``keys``, which are whole vectors.
        few: up to so many queries, lanes run along the head instead.
        group: how many terms of a sum stand in a lane where queries are many, as in :class:`MatmulSchedule`.
        tasks: how many tasks there should be at least; the keys of few queries are cut where heads are too few.
    """

    queries: int = 32
    keys: int = 64
    vector: int = 16
    tile: int = 8
    few: int = 16
    group: int = 1
    tasks: int = 1


@dataclass(frozen=True)
class RecurrenceSchedule:
    """The gates of at most ``rows`` of the batch at a time, ``tile_n`` columns at a time.

    A task has rows of the batch and all steps in time; with ``shared``, all tasks have columns of every step.
    """

    rows: int = 4
    tile_n: int = 64
    vector: int = 16
    tasks: int = 2
    shared: bool = False


Schedule = MapSchedule | RowsSchedule | MatmulSchedule | AttentionSchedule | RecurrenceSchedule


def schedule_text(schedule: Schedule) -> str:
    """Short text: the kind and what it chooses, as ``matmul(tile_m=6, tile_n=64, vector=16)``."""
    kind = type(schedule).__name__.removesuffix("Schedule").lower()
    return f"{kind}({', '.join(f'{f.name}={getattr(schedule, f.name)}' for f in fields(schedule))})"


@dataclass(frozen=True)
class PanelLayout:
    """How a matrix [K, N] lies in memory for a kernel: as [ceil(N / tile), ceil(K / group), tile, group], zero-padded.

    Quads have one row of ``tile`` lanes more, the first of each panel: int32 numbers, -128 times the sum of a column,
    for an instruction that takes its left operand as unsigned is given what is signed with 128 added.
    """

    tile: int
    group: int = 1

    @property
    def extra_rows(self) -> int:
        """Rows of a panel before those of the matrix."""
        return 1 if self.group == 4 else 0

    def rows(self, k: int) -> int:
        """How many rows of ``tile`` groups a panel has."""
        return -(-k // self.group) + self.extra_rows

    def elements(self, k: int, n: int) -> int:
        """How many elements of the matrix's dtype all panels take."""
        return -(-n // self.tile) * self.rows(k) * self.tile * self.group


def panel_layout(schedule: Schedule) -> PanelLayout:
    """How parameters of Format.PANELS lie in memory.

    Raises:
        ValueError: kernels of this kind have no such parameters.
    """
    if isinstance(schedule, MatmulSchedule):
        return PanelLayout(schedule.tile_n, schedule.group)
    if isinstance(schedule, RecurrenceSchedule):
        return PanelLayout(schedule.tile_n)
    raise ValueError(f"{schedule_text(schedule)} packs nothing")


def scratch(program: Program, schedule: Schedule) -> tuple[Param, ...]:
    """The memory that a kernel is lent while it runs, beside its parameters: the rows that it holds for its product."""
    computed = phases(program) if isinstance(schedule, MatmulSchedule) else None
    if computed is None or computed.held is None:
        return ()
    assert isinstance(schedule, MatmulSchedule)
    held, type_ = computed.held, computed.held.type
    rows = canonical_dim(sympy.Min(type_.shape[0], schedule.held_rows))
    return (replace(held, type=type_.with_shape((rows, type_.shape[1]))),)


def default_schedule(program: Program, machine: Machine) -> Schedule:
    """The schedule of a program that was not tuned."""
    return candidates(program, machine)[0]


def candidates(program: Program, machine: Machine) -> tuple[Schedule, ...]:
    """The schedules worth measuring, the default first."""
    match program.skeleton:
        case Skeleton.MAP | Skeleton.SCATTER:
            return (MapSchedule(_widest(program, machine)),)
        case Skeleton.ROWS:
            return (RowsSchedule(_widest(program, machine)),)
        case Skeleton.MATMUL:
            return _matmul_candidates(program, machine)
        case Skeleton.ATTENTION:
            return _attention_candidates(program, machine)
        case Skeleton.RECURRENCE:
            return _recurrence_candidates(program, machine)


def _widest(program: Program, machine: Machine) -> int:
    """Lanes for the program's floats: those of float64 only where everything is float64."""
    floats = [p.type.dtype for p in program.params if p.type.dtype.is_floating_point]
    return machine.lanes(torch.float64 if floats and all(d == torch.float64 for d in floats) else torch.float32)


# --- matmul -----------------------------------------------------------------------------------------------------------


def register_tiles(machine: Machine, lanes: int) -> tuple[tuple[int, int], ...]:
    """Register tiles (rows, columns) that keep the multipliers busy without spilling, the preferred first.

    A tile of r rows and c vectors needs r c accumulators, c vectors of the right operand and one of the left, and loads
    r + c operands for r c products. Taller tiles than 8 rows lose more at the last rows than they gain.
    """
    tiles = [(min(machine.registers * 3 // 4 // c, (machine.registers - c - 1) // c, 8), c) for c in (3, 2, 4, 1)]
    return tuple((rows, c * lanes) for rows, c in tiles if rows >= 4)


def _matmul_candidates(program: Program, machine: Machine) -> tuple[Schedule, ...]:
    stage = dot_stage(program)
    assert stage.combine is not None
    lanes = machine.lanes(stage.dtype)
    panels = next((p for p in program.params if p.format is Format.PANELS), None)
    columns: Dim = panels.type.shape[1] if panels else stage.axes[-1].size if stage.axes else 1
    terms = product(a.size for a in stage.combine.axes)
    group = terms_at_once(program, machine)
    half = group == 1 and any(e.dtype.itemsize == 2 for e in postorder([stage.value]))
    weight = few_bits(program, stage)
    plain = group == 1 and weight is None and not half
    itemsize = 1 if weight else stage.dtype.itemsize if group == 1 else 4 // group
    computed = phases(program)
    waste = _padding if weight else partial(_waste, machine=machine)
    tiles = sorted(
        _preferred(register_tiles(machine, lanes), columns, terms, machine), key=lambda t: waste(columns, t[1])
    )
    if plain and is_narrow(program, lanes):
        tiles.insert(0, (lanes, 1))
    return tuple(
        MatmulSchedule(
            tile_m=rows,
            tile_n=width,
            vector=lanes,
            block_m=max((256 if panels is None else 192 if plain else 96) // rows, 1),
            block_k=(weight.group if weight else None) or (256 if half or panels is None else 512),
            tasks=TASKS * machine.threads,
            shares=PARTS * machine.threads,
            blocked=half or panels is None or _large(terms, width * itemsize, machine),
            pack_left=half,
            pack_right=panels is None and not (plain and is_one_panel(program, width)),
            held_rows=0 if computed is None else _held_rows(computed, rows, machine),
            group=group,
        )
        for rows, width in tiles
    )


def _held_rows(computed: Phases, tile: int, machine: Machine) -> int:
    """Whole tiles of rows that stay in cache together, and are enough for every thread to have work."""
    row = int(computed.terms.size) * max(computed.product.stages[0].dtype.itemsize, 4)
    most = max(HELD_BYTES // row, 48 * machine.threads)
    if isinstance(computed.count, int):
        most = min(most, computed.count)
    return -(-most // tile) * tile


def _padding(columns: Dim, width: int) -> float:
    """Columns computed per column wanted, in steps of a twentieth: less is not worth a worse tile."""
    if not isinstance(columns, int) or columns == 0:
        return 1.0
    return -(-columns // width) * width * 20 // columns / 20


def _waste(columns: Dim, width: int, machine: Machine) -> float:
    """The columns that the busiest thread computes per column that is its share, in steps of a fiftieth.

    Columns past the last count, and panels that some threads have and others have not: 11 panels of 48 for 512 columns
    are 6 for one of two threads. Rows are taken to be few, so that they are cut only where panels are.
    """
    if not isinstance(columns, int) or columns == 0:
        return 1.0
    panels = -(-columns // width)
    cut = max(-(-TASKS * machine.threads // panels), 1)
    turns = -(-panels * cut // machine.threads)
    return turns * machine.threads * width * 50 // (cut * columns) / 50


def _preferred(
    tiles: Sequence[tuple[int, int]], columns: Dim, terms: Dim, machine: Machine
) -> Sequence[tuple[int, int]]:
    """Tiles in the order in which they are tried: wide ones before narrow ones where each thread has many panels.

    The first panel of each thread is waited for: of few wide ones it is a large part.
    """
    widest = max(width for _, width in tiles)
    few = isinstance(columns, int) and columns < 8 * widest * machine.threads
    if few and not _large(terms, 4 * widest, machine):
        return tiles
    return (tiles[0], *sorted(tiles[1:], key=lambda tile: -tile[1]))


def _large(terms: Dim, row_bytes: int, machine: Machine) -> bool:
    """Whether a panel does not fit the second-level cache well, beside the one that is asked for meanwhile."""
    return isinstance(terms, int) and terms * row_bytes > machine.l2_bytes // 4


def _attention_candidates(program: Program, machine: Machine) -> tuple[Schedule, ...]:
    lanes = machine.lanes(_float_dtype(program))
    tile = max(machine.registers // 4, 1)
    sizes = ((2, 64), (2, 128), (4, 64), (2, 32))
    group = attention_terms_at_once(program, machine)
    rest = {"group": group, "tasks": machine.threads}
    return tuple(AttentionSchedule(max(c * lanes, tile), keys, lanes, tile, **rest) for c, keys in sizes)


def _recurrence_candidates(program: Program, machine: Machine) -> tuple[Schedule, ...]:
    lanes = machine.lanes(_float_dtype(program))
    accumulators = machine.registers * 3 // 4
    tiles = ((rows, min(accumulators // rows, 4)) for rows in (4, 8, 1))
    shared = machine.threads > 1 and _recurrent_bytes(program) > machine.l2_bytes // 2
    return tuple(RecurrenceSchedule(rows, max(c, 1) * lanes, lanes, machine.threads, shared) for rows, c in tiles)


def _recurrent_bytes(program: Program) -> int:
    """The bytes of the weight that every step of a recurrent layer reads; 0 where its size is not known."""
    assert program.recurrence is not None
    nbytes = program.param(program.recurrence.weight).type.nbytes
    return int(nbytes) if isinstance(nbytes, int) else 0


def _float_dtype(program: Program) -> torch.dtype:
    """The dtype of what a kernel reads; where that is constants alone, of what it computes."""
    read = (p.type.dtype for p in program.inputs if p.type.dtype.is_floating_point)
    return next(read, program.stages[-1].value.dtype if program.stages else torch.float32)
