"""Times of a plan's steps on a GPU, by its own events. Nothing here has run on a GPU yet.

All steps of a run are queued behind a pause of the GPU, so that each begins when the one before it ends, not when
Python gets to launch it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..calls import Call
from ..entry import Entry, Sizes
from ..measure import Measured, copies
from ..plan import TorchStep
from ..state import preserved
from .binding import Binding
from .executable import CudaExecutable
from .runs import EagerRun

LEAST_RUNS = 3
PAUSE = 20_000_000  # cycles of the GPU, some ten milliseconds: longer than Python takes to queue a plan's steps


def measure_gpu_steps(
    entry: Entry, call: Call, sizes: Sizes, model: Callable[..., Any], seconds: float = 1.0
) -> Measured:
    """Time every step of a capture's plan on a call's arguments; the model's state is as before afterwards.

    A run as a whole is timed as it is called: replayed as a CUDA graph where there is one.

    Args:
        entry: the capture.
        call: the arguments, which are copied.
        sizes: those of the call.
        model: the model, for its state.
        seconds: how long to measure; at least three runs of either kind are made.
    """
    executable = entry.executable
    assert isinstance(executable, CudaExecutable)
    best = [float("inf")] * len(executable.plan.steps)
    timed = copy.copy(entry)
    timed.executable = _Timed.of(executable, best)
    leaves = copies(call.leaves)  # the same ones for all calls, which a graph needs

    def reset() -> None:
        for mine, given in zip(leaves, call.leaves, strict=True):
            if isinstance(mine, Tensor):
                mine.copy_(given)

    with preserved(model), torch.no_grad(), executable.gpu.current():
        _repeat(lambda: timed.run(leaves, sizes), reset, seconds)
        whole = _repeat(lambda: entry.run(leaves, sizes), reset, seconds)
        executable.synchronize()
    return Measured(tuple(best), whole)


class _Timed(CudaExecutable):
    """An executable whose runs are kernel by kernel, each step between two events."""

    best: list[float]

    @classmethod
    def of(cls, executable: CudaExecutable, best: list[float]) -> _Timed:
        """The same executable, its memory and its weights."""
        made = copy.copy(executable)
        made.__class__ = cls
        assert isinstance(made, cls)
        made.best = best
        return made

    def _prepare(self, tensors: Sequence[Tensor], sizes: Sizes) -> EagerRun:
        binding = self._binding(sizes)
        self._use_arena(binding)
        return _TimedRun(self, binding, tensors, self.best)


class _TimedRun(EagerRun):
    def __init__(
        self, executable: CudaExecutable, binding: Binding, tensors: Sequence[Tensor], best: list[float]
    ) -> None:
        super().__init__(executable, binding, tensors)
        self.best = best

    def steps(self) -> None:
        """Run the steps, in order, with an event before each and after the last."""
        events = [_event() for _ in range(len(self.binding.steps) + 1)]
        _pause()
        for event, step in zip(events, self.binding.steps, strict=False):
            event.record()
            if isinstance(step, TorchStep):
                self.executable._after_kernels()
                self.torch_step(step)
            else:
                step.launch([self.slots[i] for i in step.buffers])  # type: ignore[misc]
        events[-1].record()
        events[-1].synchronize()
        for i, (start, stop) in enumerate(pairwise(events)):
            self.best[i] = min(self.best[i], float(start.elapsed_time(stop)) / 1e3)
        self.executable._after_kernels()
        if self.executable.can_fail:
            self.executable.check_now()


def _repeat(run: Callable[[], object], reset: Callable[[], None], seconds: float) -> float:
    """The least time of a run over so many seconds, by the GPU's events; three before them do not count.

    ``reset`` makes the arguments what they were, before each run.
    """
    for _ in range(3):  # the third captures a graph
        reset()
        run()
    best, runs, end = float("inf"), 0, time.perf_counter() + seconds
    while runs < LEAST_RUNS or time.perf_counter() < end:
        reset()
        start, stop = _event(), _event()
        start.record()
        run()
        stop.record()
        stop.synchronize()
        best = min(best, float(start.elapsed_time(stop)) / 1e3)
        runs += 1
    return best


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _pause() -> None:
    torch.cuda._sleep(PAUSE)  # type: ignore[no-untyped-call]
