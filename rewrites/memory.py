"""Where intermediates lie: offsets in one arena, so that values that live at once never overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
ALIGNMENT = 64  # bytes: a cache line, and the widest vector


@dataclass(frozen=True)
class Interval:
    """A value in memory: its size in bytes, the step that writes it and the last step that reads it."""

    nbytes: int
    first: int
    last: int

    def meets(self, other: Interval) -> bool:
        """Whether both are live at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Placement:
    """Offsets in bytes, one for each interval, and the arena's size."""

    offsets: tuple[int, ...]
    nbytes: int


def place(intervals: Sequence[Interval]) -> Placement:
    """Offsets by best fit, largest value first.

    Each value goes into the smallest gap that holds it between the values already placed that live at the same time, or
    past them all. Offsets are multiples of ``ALIGNMENT``. Greedy-by-size is the method of TensorFlow Lite's planner
    (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020).
    """
    offsets = [0] * len(intervals)
    placed = _Placed(len(intervals))
    for i in sorted(range(len(intervals)), key=lambda i: (-intervals[i].nbytes, i)):
        offsets[i] = placed.best_gap(intervals[i])
        placed.add(intervals[i], offsets[i])
    total = max((_end(offset, x) for offset, x in zip(offsets, intervals, strict=True)), default=0)
    return Placement(tuple(offsets), total)


def place_within(intervals: Sequence[Interval], limit: int) -> dict[int, int]:
    """Offsets in ``limit`` bytes of memory for those of the intervals that fit, by number; largest first, as above."""
    offsets: dict[int, int] = {}
    placed = _Placed(len(intervals))
    for i in sorted(range(len(intervals)), key=lambda i: (-intervals[i].nbytes, i)):
        at = placed.best_gap(intervals[i])
        if _end(at, intervals[i]) <= limit:
            offsets[i] = at
            placed.add(intervals[i], at)
    return offsets


def lower_bound(intervals: Sequence[Interval]) -> int:
    """The most bytes that live at one step, in whole cache lines: no arena can be smaller."""
    changes: dict[int, int] = {}
    for x in intervals:
        changes[x.first] = changes.get(x.first, 0) + _aligned(x.nbytes)
        changes[x.last + 1] = changes.get(x.last + 1, 0) - _aligned(x.nbytes)
    live = most = 0
    for step in sorted(changes):
        live += changes[step]
        most = max(most, live)
    return most


class _Placed:
    """The values that have an offset, found by the steps at which they live."""

    STEPS = 64  # steps in a block: a short-lived value is compared with those of its blocks alone
    MANY = 256  # values that are compared by numpy, which takes longer for few

    def __init__(self, count: int) -> None:
        self._rows = np.empty((count, 4), dtype=np.int64)  # start and end in memory, the first and the last step
        self._all: list[tuple[int, int, int, int]] = []  # the same
        self._blocks: dict[int, list[tuple[int, int, int, int]]] = {}

    def add(self, interval: Interval, offset: int) -> None:
        """Enter a value that was placed."""
        row = (offset, _end(offset, interval), interval.first, interval.last)
        self._rows[len(self._all)] = row
        self._all.append(row)
        for block in self._touched(interval):
            self._blocks.setdefault(block, []).append(row)

    def best_gap(self, interval: Interval) -> int:
        """Where a value is to lie: see :func:`place`."""
        size, first, last = _aligned(interval.nbytes), interval.first, interval.last
        blocks = self._touched(interval)
        # what is in both of two blocks is found twice, which changes no gap
        near = self._all if len(blocks) > 2 else [row for block in blocks for row in self._blocks.get(block, ())]
        if len(near) <= self.MANY:
            return _best_gap(sorted(row for row in near if row[2] <= last and first <= row[3]), size)
        rows = self._rows[: len(self._all)] if near is self._all else np.array(near)
        met = rows[(rows[:, 2] <= last) & (first <= rows[:, 3])]
        return _best_of_many(met[np.lexsort((met[:, 1], met[:, 0]))], size)

    def _touched(self, interval: Interval) -> range:
        return range(interval.first // self.STEPS, interval.last // self.STEPS + 1)


def _best_gap(taken: Sequence[tuple[int, int, int, int]], size: int) -> int:
    """The start of the smallest gap of at least ``size`` bytes among sorted rows, or their end."""
    best: tuple[int, int] | None = None
    top = 0
    for start, end, _, _ in taken:
        gap = start - top
        if gap >= size and (best is None or gap < best[0]):
            best = (gap, top)
        top = max(top, end)
    return best[1] if best is not None else top


def _best_of_many(taken: Rows, size: int) -> int:
    """:func:`_best_gap` by numpy."""
    if not len(taken):
        return 0
    tops = np.maximum.accumulate(taken[:, 1])  # where all up to each one end
    before = np.concatenate(([0], tops[:-1]))
    gaps = taken[:, 0] - before
    fitting = np.flatnonzero(gaps >= size)
    return int(before[fitting[np.argmin(gaps[fitting])]]) if len(fitting) else int(tops[-1])


def _end(offset: int, interval: Interval) -> int:
    return offset + _aligned(interval.nbytes)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
