"""Where the values of a plan lie for one set of sizes, for all targets: shapes, strides, offsets in the arena."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy

from ..ir.types import concrete
from ..rewrites.memory import Interval, place, place_within
from .plan import Buffer, Place, Plan

Sizes = Mapping[sympy.Symbol, int]
Shapes = Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]


@dataclass
class Placed:
    """A plan for one set of sizes, by table position.

    Attributes:
        shapes: shape and strides of each buffer, as numbers.
        offsets: where intermediates lie in the arena, in bytes.
        lent: the intermediates that lie in a result for the caller: its position and an offset.
        intervals: what lies in the arena, those in one place together.
    """

    shapes: dict[int, tuple[tuple[int, ...], tuple[int, ...]]]
    offsets: dict[int, int] = field(default_factory=dict)
    lent: dict[int, tuple[int, int]] = field(default_factory=dict)
    arena_bytes: int = 0
    intervals: list[Interval] = field(default_factory=list)


def placed(plan: Plan, sizes: Sizes, lend: int | None) -> Placed:
    """Say where intermediates lie: some in the memory of an operand, unless that takes more, some in results for the
    caller that are not written yet, all others in the arena.

    Args:
        lend: results of at least so many bytes hold intermediates; None where no result does.
    """
    made = Placed({b.position: (numbers(b.type.shape, sizes), numbers(b.strides, sizes)) for b in plan.buffers})
    reuse, intervals = plan.reuse, intervals_of(plan, made.shapes, plan.reuse)
    if reuse:
        together, apart = list(intervals.values()), intervals_of(plan, made.shapes, {})
        if place(together).nbytes > place(list(apart.values())).nbytes:
            reuse, intervals = {}, apart
    lent = {} if lend is None else _lent(plan, made.shapes, intervals, lend)
    kept = {owner: x for owner, x in intervals.items() if owner not in lent}
    made.intervals = list(kept.values())
    placement = place(made.intervals)
    made.arena_bytes = placement.nbytes
    made.offsets = dict(zip(kept, placement.offsets, strict=True))
    # operands come before results
    for result, operand in sorted(reuse.items()):
        where: dict[int, Any] = lent if operand in lent else made.offsets
        where[result] = where[operand]
    made.lent = lent
    return made


def _lent(plan: Plan, shapes: Shapes, intervals: Mapping[int, Interval], least: int) -> dict[int, tuple[int, int]]:
    """Intermediates in the memory of results that are written after their last use: the result and an offset."""
    found: dict[int, tuple[int, int]] = {}
    buffers = [plan.buffers[i] for i in plan.written if 0 not in shapes[i][0]]
    for b in sorted(buffers, key=lambda b: -nbytes_of(b, shapes)):
        size, written = nbytes_of(b, shapes), plan.written[b.position]
        if size >= least:
            over = [o for o, x in intervals.items() if o not in found and x.last < written]
            within = place_within([intervals[o] for o in over], size)
            found.update((over[i], (b.position, offset)) for i, offset in within.items())
    return found


def intervals_of(plan: Plan, shapes: Shapes, reuse: Mapping[int, int]) -> dict[int, Interval]:
    """The intermediates by position; one that takes another's memory is part of that one's interval."""
    found: dict[int, Interval] = {}
    first: dict[int, int] = {}  # whose memory it is
    for b in plan.buffers:
        if b.place is not Place.ARENA or b.position not in plan.live:
            continue
        mine = Interval(nbytes_of(b, shapes), *plan.live[b.position])
        owner = first[b.position] = first[reuse[b.position]] if b.position in reuse else b.position
        held = found.get(owner, mine)
        found[owner] = Interval(max(held.nbytes, mine.nbytes), held.first, max(held.last, mine.last))
    return found


def bytes_apart(plan: Plan, shapes: Shapes) -> int:
    """The bytes of an arena for all intermediates, where none takes an operand's or a result's memory."""
    return place(list(intervals_of(plan, shapes, {}).values())).nbytes


def numbers(dims: Sequence[Any], sizes: Sizes) -> tuple[int, ...]:
    """Dims as numbers."""
    return tuple(d if isinstance(d, int) else concrete(d, sizes) for d in dims)


def nbytes_of(buffer: Buffer, shapes: Shapes) -> int:
    """The bytes that a buffer takes, never none."""
    count = buffer.type.dtype.itemsize
    for size in shapes[buffer.position][0]:
        count *= max(size, 1)  # an empty table has one row that may be read: see ``runtime.run.stand_in``
    return count
