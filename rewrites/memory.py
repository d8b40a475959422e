"""Where intermediates lie: offsets in one arena, so that values that live at once never overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    placed: list[int] = []
    for i in sorted(range(len(intervals)), key=lambda i: (-intervals[i].nbytes, i)):
        met = [j for j in placed if intervals[i].meets(intervals[j])]
        taken = sorted((offsets[j], _end(offsets[j], intervals[j])) for j in met)
        offsets[i] = _best_gap(taken, _aligned(intervals[i].nbytes))
        placed.append(i)
    total = max((_end(offset, x) for offset, x in zip(offsets, intervals, strict=True)), default=0)
    return Placement(tuple(offsets), total)


def place_within(intervals: Sequence[Interval], limit: int) -> dict[int, int]:
    """Offsets in ``limit`` bytes of memory for those of the intervals that fit, by number; largest first, as above."""
    offsets: dict[int, int] = {}
    for i in sorted(range(len(intervals)), key=lambda i: (-intervals[i].nbytes, i)):
        met = [j for j in offsets if intervals[i].meets(intervals[j])]
        taken = sorted((offsets[j], _end(offsets[j], intervals[j])) for j in met)
        at = _best_gap(taken, _aligned(intervals[i].nbytes))
        if _end(at, intervals[i]) <= limit:
            offsets[i] = at
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


def _best_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """The start of the smallest gap of at least ``size`` bytes among sorted (start, end) pairs, or their end."""
    best: tuple[int, int] | None = None
    top = 0
    for start, end in taken:
        gap = start - top
        if gap >= size and (best is None or gap < best[0]):
            best = (gap, top)
        top = max(top, end)
    return best[1] if best is not None else top


def _end(offset: int, interval: Interval) -> int:
    return offset + _aligned(interval.nbytes)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
