"""A GPU that is played, whose graphs run in any order that their streams and events allow."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from smelt.runtime.cuda.device import Event, Graph

from .fake_gpu import FakeGpu

Choose = Callable[[Sequence[int]], int]  # of the launches that may come next, in the order of the capture, one


@dataclass(frozen=True)
class Entry:
    """A captured launch: its stream, and the launches that end before it begins."""

    stream: int
    launch: Callable[[], None]
    after: frozenset[int]


class ManyStreams(FakeGpu):
    """Attributes:
    choose: which launch comes next where several may.
    captured: the launches of each graph, in the order of the capture.
    """

    def __init__(self, choose: Choose | None = None) -> None:
        super().__init__()
        self.choose: Choose = choose or (lambda ready: ready[0])
        self.captured: list[list[Entry]] = []
        self._number = 0

    @contextmanager
    def lane(self, number: int) -> Iterator[None]:
        before, self._number = self._number, number
        try:
            yield
        finally:
            self._number = before

    def mark(self) -> Event:
        return super().mark() if self._recording is None else _Edge(self, self._work)

    def capture(self, work: Callable[[], None]) -> Graph:
        self.log.append("capture")
        self._work = made = _Recording(self)
        self._recording = made
        try:
            work()
        finally:
            self._recording = None
        made.check_joined()
        self.captured.append(made.entries)
        return _AnyOrder(self, made.entries)


class _Recording(list[Any]):
    """What a capture records: CUDA's rules for streams are held."""

    def __init__(self, gpu: ManyStreams) -> None:
        super().__init__()
        self.gpu, self.entries = gpu, list[Entry]()
        self.tail: dict[int, frozenset[int]] = {0: frozenset()}  # what each stream that is captured has to wait for

    def append(self, launch: Callable[[], None]) -> None:
        stream = self.gpu._number
        assert stream in self.tail, f"stream {stream} is not captured: it did not wait for one that is"
        self.entries.append(Entry(stream, launch, self.tail[stream]))
        self.tail[stream] = frozenset({len(self.entries) - 1})

    def check_joined(self) -> None:
        """A capture ends on the stream that it began on, once that waits for all others."""
        seen, waiting = set[int](), list(self.tail[0])
        while waiting:
            at = waiting.pop()
            if at not in seen:
                seen.add(at)
                waiting.extend(self.entries[at].after)
        assert len(seen) == len(self.entries), "a stream was not joined"


class _Edge:
    def __init__(self, gpu: ManyStreams, recording: _Recording) -> None:
        self._gpu, self._recording = gpu, recording
        self._after = recording.tail[gpu._number]

    def wait(self) -> None:
        stream, tail = self._gpu._number, self._recording.tail
        tail[stream] = tail.get(stream, frozenset()) | self._after

    def done(self) -> bool:
        raise AssertionError("nothing is asked of an event during a capture")

    synchronize = done  # type: ignore[assignment]


class _AnyOrder:
    nbytes = 1000

    def __init__(self, gpu: ManyStreams, entries: Sequence[Entry]) -> None:
        self._gpu, self._entries = gpu, entries

    def replay(self) -> None:
        self._gpu.log.append("replay")
        done = set[int]()
        while len(done) < len(self._entries):
            ready = [i for i, e in enumerate(self._entries) if i not in done and e.after <= done]
            at = self._gpu.choose(ready)
            self._entries[at].launch()
            done.add(at)


def last(ready: Sequence[int]) -> int:
    """The launch that was captured last of those that may run."""
    return ready[-1]


def any_of(seed: int) -> Choose:
    """A random one."""
    return random.Random(seed).choice
