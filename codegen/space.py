"""The schedules of a program that a tuner may choose from, and the order in which it looks at them.

A space is wide; its order is that of ``estimate``, with the default and its few neighbours of ``schedule.candidates``
first. A schedule that is not in the space of a program is none that was ever built for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import product as combinations
from typing import Any

import sympy

from ..ir.types import concrete, product
from .estimate import ProductShape, product_cycles
from .machine import Machine
from .program import Combiner, Format, Program
from .schedule import (
    AttentionSchedule,
    MapSchedule,
    MatmulSchedule,
    RecurrenceSchedule,
    RowsSchedule,
    Schedule,
    candidates,
)

Sizes = Mapping[sympy.Symbol, int]

MOST_VECTORS = 6  # of columns in a register tile
MOST_ROWS = 14
TASK_ROWS = (24, 48, 96, 192, 384)
BLOCKS = (256, 384, 512)  # more terms in one sum would bring its rounding error near the limit of the contract
TASKS = (1, 2, 4, 8)  # for each thread


def space(program: Program, machine: Machine) -> tuple[Schedule, ...]:
    """Every schedule of a program, each once, the default first."""
    first = candidates(program, machine)
    return tuple(dict.fromkeys((*first, *_others(program, first[0], machine))))


def ranked(program: Program, machine: Machine, sizes: Sizes) -> tuple[Schedule, ...]:
    """The space in the order in which it is worth measuring at some sizes."""
    first = candidates(program, machine)
    everything = space(program, machine)
    shape = _product_shape(program, sizes)
    if shape is None:
        return everything

    def cycles(schedule: Schedule) -> float:
        assert isinstance(schedule, MatmulSchedule)
        return product_cycles(shape, schedule, machine)

    return (*first, *sorted(everything[len(first) :], key=cycles))


def _others(program: Program, default: Schedule, machine: Machine) -> Iterator[Schedule]:
    match default:
        case MatmulSchedule():
            return _matmul(program, default, machine)
        case AttentionSchedule():
            return _attention(default, machine)
        case RecurrenceSchedule():
            return _recurrence(default, machine)
        case MapSchedule() | RowsSchedule():
            return (replace(default, vector=default.vector * n) for n in (2, 4))


# --- matmul -----------------------------------------------------------------------------------------------------------


def tiles(machine: Machine, lanes: int) -> Iterator[tuple[int, int]]:
    """Register tiles (rows, columns) that do not spill, and have sums enough under way."""
    for vectors in range(1, MOST_VECTORS + 1):
        for rows in range(1, MOST_ROWS + 1):
            if rows * vectors >= 8 and rows * vectors + vectors + 1 <= machine.registers:
                yield rows, vectors * lanes


def _matmul(program: Program, default: MatmulSchedule, machine: Machine) -> Iterator[Schedule]:
    terms = product(
        a.size for s in program.stages if s.combine and s.combine.kind is Combiner.DOT for a in s.combine.axes
    )
    blocks = [b for b in BLOCKS if b == BLOCKS[0] or not isinstance(terms, int) or b // 2 < terms]
    orders = [(default.blocked, default.pack_left)]
    if not default.pack_left and not default.pack_right:
        orders += [(not default.blocked, False), (True, True)]
    for (rows, columns), task, block, (blocked, pack), tasks in combinations(
        tiles(machine, default.vector), TASK_ROWS, blocks, orders, TASKS
    ):
        yield replace(
            default,
            tile_m=rows,
            tile_n=columns,
            block_m=max(task // rows, 1),
            block_k=block,
            blocked=blocked,
            pack_left=pack,
            tasks=tasks * machine.threads,
            held_rows=-(-default.held_rows // rows) * rows,
        )


def _product_shape(program: Program, sizes: Sizes) -> ProductShape | None:
    """The product of a program as numbers; None where it has none, or not all sizes are known."""
    stage = next((s for s in program.stages if s.combine and s.combine.kind is Combiner.DOT), None)
    if stage is None or stage.combine is None or any(s not in sizes for s in program.symbols):
        return None
    if any(s.combine and s.combine.kind is Combiner.SOFTMAX_SUM for s in program.stages):
        return None
    points = concrete(product(a.size for a in stage.axes), sizes)
    panels = next((p for p in program.params if p.format is Format.PANELS), None)
    width = panels.type.shape[1] if panels else stage.axes[-1].size if stage.axes else 1
    columns = max(concrete(width, sizes), 1)
    terms = concrete(product(a.size for a in stage.combine.axes), sizes)
    return ProductShape(max(points // columns, 1), columns, max(terms, 1), max(stage.dtype.itemsize, 4))


# --- others -----------------------------------------------------------------------------------------------------------


def _attention(default: AttentionSchedule, machine: Machine) -> Iterator[Schedule]:
    room = machine.registers * 3 // 4
    for vectors, keys, tile, few in combinations((1, 2, 3, 4), (32, 64, 128, 256), (4, 8), _few(default)):
        queries = vectors * default.vector
        if queries % tile == 0 and keys % tile == 0 and tile * vectors <= room:
            yield replace(default, queries=queries, keys=keys, tile=tile, few=few)


def _few(default: AttentionSchedule) -> Iterable[int]:
    return dict.fromkeys((default.few, 4, 16))


def _recurrence(default: RecurrenceSchedule, machine: Machine) -> Iterator[Schedule]:
    room = machine.registers * 3 // 4
    for rows, vectors, shared in combinations((1, 2, 4, 8), (1, 2, 3, 4, 6), (False, True)):
        if rows * vectors <= room and (default.tasks > 1 or not shared):
            yield replace(default, rows=rows, tile_n=vectors * default.vector, shared=shared)


def differences(schedule: Schedule, default: Schedule) -> dict[str, Any]:
    """What a schedule chooses otherwise than another one of its kind."""
    ours, theirs = vars(schedule), vars(default)
    return {name: value for name, value in ours.items() if value != theirs.get(name)}
