"""How long a schedule of a product takes, roughly: what a tuner looks at first.

Cycles of a core with two multiply-add units and two loads in a cycle, as all recent x86 servers have. Only the order of
two schedules of one program means anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from .machine import Machine
from .schedule import MatmulSchedule

CHAINS = 8  # multiply-adds that have to be under way to fill two units with a latency of four cycles
L2_BYTES_PER_CYCLE = 32.0
MEMORY_BYTES_PER_CYCLE = 8.0  # of one core
COPY_BYTES_PER_CYCLE = 16.0
TASK_CYCLES = 400.0


@dataclass(frozen=True)
class ProductShape:
    """A product as numbers: ``rows`` of the left operand (all batches), columns, terms, and bytes of an element."""

    rows: int
    columns: int
    terms: int
    itemsize: int = 4


def product_cycles(shape: ProductShape, schedule: MatmulSchedule, machine: Machine) -> float:
    """The cycles until the last thread is done."""
    s = schedule
    panels = -(-shape.columns // s.tile_n)
    blocks = max(-(-shape.rows // s.tile_m), 1)
    chunks = max(min(blocks, (blocks + s.block_m // 2) // s.block_m), 1, min(blocks, -(-s.tasks // panels)))
    tasks = panels * chunks
    turns = -(-tasks // machine.threads)
    rows = -(-shape.rows // chunks)
    return turns * (_task_cycles(shape, rows, schedule, machine) + TASK_CYCLES)


def _task_cycles(shape: ProductShape, rows: int, s: MatmulSchedule, machine: Machine) -> float:
    """One panel of some rows."""
    vectors = s.tile_n // s.vector
    full, rest = divmod(rows, s.tile_m)
    tiles = [s.tile_m] * full + ([_height(rest, s.tile_m)] if rest else [])
    panel = shape.terms * s.tile_n * shape.itemsize
    held = min(s.block_k, shape.terms) * s.tile_n * shape.itemsize if s.blocked else panel
    near = held <= machine.l1_bytes * 3 // 4
    load = 0.0 if near else s.tile_n * shape.itemsize / L2_BYTES_PER_CYCLE
    each = {h: max(h * vectors / 2, (h + vectors) / 2, CHAINS / 2 if h * vectors < CHAINS else 0, load) for h in tiles}
    computing = shape.terms * sum(each[h] for h in tiles)
    flushes = -(-shape.terms // s.block_k)
    stored = sum(tiles) * s.tile_n * 8 * flushes / L2_BYTES_PER_CYCLE
    copied = rows * shape.terms * 8 / COPY_BYTES_PER_CYCLE if s.pack_left else 0.0
    copied += panel * 2 / COPY_BYTES_PER_CYCLE if s.pack_right else 0.0
    return max(computing + stored, panel / MEMORY_BYTES_PER_CYCLE) + copied


def _height(rest: int, tile_m: int) -> int:
    """The register tile that the last rows take: the full one, half of it, or one row."""
    half = (tile_m + 1) // 2
    return tile_m if rest > half else half if rest > 1 else 1
