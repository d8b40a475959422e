"""Kernels of one graph on several streams: which of them wait for which.

What a kernel has to wait for is read from addresses, when everything has its memory: kernels that touch the same bytes,
one of them to write, keep their order. So no choice of streams, and no placement, changes a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .binding import Prepared
from .device import Device, Event

Span = tuple[int, int]  # the first byte, and the one after the last


@dataclass(frozen=True)
class Lane:
    """Where a step is launched: the number of a stream, and the steps of other streams that it waits for."""

    number: int
    waits: tuple[int, ...] = ()


def lanes_of(steps: Sequence[Prepared], slots: Sequence[Tensor | None], most: int, processors: int) -> list[Lane]:
    """A stream of ``most`` for each step, so that branches of small kernels run side by side.

    A kernel of as many programs as a GPU has processors fills it: nothing runs beside it.
    """
    spans = [_spans(step, slots) for step in steps]
    fills = [step.programs >= processors for step in steps]
    before: list[int] = []  # of each step those that end before it begins, as bits
    lanes: list[Lane] = []
    tails: list[int] = []  # the last step of each stream
    for at in range(len(steps)):
        direct, covered = [], 0
        for other in reversed(range(at)):
            if covered >> other & 1:
                continue
            if fills[at] or fills[other] or conflict(spans[at], spans[other]):
                direct.append(other)
                covered |= before[other] | 1 << other
        number = _lane(direct, covered, lanes, tails, most)
        if number < len(tails):
            covered |= before[tails[number]] | 1 << tails[number]
            tails[number] = at
        else:
            tails.append(at)
        before.append(covered)
        lanes.append(Lane(number, tuple(sorted(d for d in direct if lanes[d].number != number))))
    return lanes


def _lane(direct: Sequence[int], covered: int, lanes: Sequence[Lane], tails: Sequence[int], most: int) -> int:
    """The stream of a step: where one ends that it waits for; else one that is idle, or a new one if there may be."""
    going_on = [lanes[d].number for d in direct if tails[lanes[d].number] == d]
    if going_on:
        return min(going_on)
    idle = [number for number, tail in enumerate(tails) if covered >> tail & 1]
    if idle:
        return idle[0]
    return len(tails) if len(tails) < most else min(range(most), key=lambda number: tails[number])


def conflict(one: tuple[list[Span], list[Span]], other: tuple[list[Span], list[Span]]) -> bool:
    """Whether two steps, as bytes read and bytes written, touch the same bytes, one of them to write."""
    (reads, writes), (others_reads, others_writes) = one, other
    return _meet(writes, others_writes) or _meet(writes, others_reads) or _meet(reads, others_writes)


def _meet(some: Sequence[Span], others: Sequence[Span]) -> bool:
    return any(a[0] < b[1] and b[0] < a[1] for a in some for b in others)


def _spans(step: Prepared, slots: Sequence[Tensor | None]) -> tuple[list[Span], list[Span]]:
    """What a step reads and writes. The error cell, which is last, is neither: all set it to the same."""
    found = [span(slots[i]) for i in step.buffers[:-1]]
    return found[: step.reads], found[step.reads :]


def span(tensor: Tensor | None) -> Span:
    """The bytes from the first to the last element of a tensor."""
    assert tensor is not None
    start = tensor.data_ptr()
    if not tensor.numel():
        return start, start
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def launch_on(device: Device, steps: Sequence[Prepared], slots: Sequence[Tensor | None], lanes: Sequence[Lane]) -> None:
    """Launch steps on their streams, which first wait for the current one; that waits for all of them at last."""
    start = device.mark()
    waited = {other for lane in lanes for other in lane.waits}
    marks: dict[int, Event] = {}
    begun = {0}
    for at, (step, lane) in enumerate(zip(steps, lanes, strict=True)):
        with device.lane(lane.number):
            if lane.number not in begun:
                start.wait()
                begun.add(lane.number)
            for other in lane.waits:
                marks[other].wait()
            step.launch([slots[i] for i in step.buffers])  # type: ignore[misc]
            if at in waited:
                marks[at] = device.mark()
    for number in sorted(begun - {0}):
        with device.lane(number):
            end = device.mark()
        end.wait()
