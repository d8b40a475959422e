"""How long each step of a plan takes, measured within runs of the whole model."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .calls import Call
from .entry import Entry, Sizes
from .executable import Executable
from .plan import KernelStep, Plan
from .state import preserved
from .target import Target


@dataclass(frozen=True)
class Measured:
    """Seconds, the least over all runs: of each step by position in the plan, and of a whole run.

    A step's time includes about a microsecond of the call from Python, which a run makes for whole stretches of the
    plan only.
    """

    steps: tuple[float, ...]
    run: float


def measure_steps(
    entry: Entry, call: Call, sizes: Sizes, model: Callable[..., Any], target: Target, seconds: float = 1.0
) -> Measured:
    """Time every step of a capture's plan on a call's arguments; the model's state is as before afterwards.

    Each kernel becomes a native function of its own, which takes as long to compile as the model did; they are run in
    the order of the plan, so that each finds the caches as it does in a run.

    Args:
        entry: the capture.
        call: the arguments, which are copied.
        sizes: those of the call.
        model: the model, for its state.
        target: what the capture was compiled for.
        seconds: how long to measure; at least three runs of either kind are made.
    """
    clock = _Clock(len(entry.executable.plan.steps))
    timed = copy.copy(entry)
    timed.executable = executable = copy.copy(entry.executable)
    assert isinstance(executable, Executable)
    executable.hosts = _hosts(entry.executable.plan, target, clock)
    with preserved(model):
        _least_time(timed, call, sizes, seconds)
        best = _least_time(entry, call, sizes, seconds)
    return Measured(tuple(clock.best), best)


class _Clock:
    """The least time between ``start`` and ``stop`` of each step."""

    def __init__(self, steps: int) -> None:
        self.best = [float("inf")] * steps
        self._started = 0.0

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, step: int) -> None:
        self.best[step] = min(self.best[step], time.perf_counter() - self._started)


def _hosts(plan: Plan, target: Target, clock: _Clock) -> list[Any]:
    """What runs each step and times it, in place of the functions that run whole stretches of the plan."""
    native = _natives(plan, target)
    found: list[Any] = []
    for i, step in enumerate(plan.steps):
        if isinstance(step, KernelStep):
            found.append(_timed(native[f"step{i}"], clock, i))
        else:
            found += [_mark(clock.start), step, _mark(lambda i=i: clock.stop(i))]  # type: ignore[misc]
    return found


def _natives(plan: Plan, target: Target) -> Any:
    """A native function for each kernel call."""
    # imported here: only a target that runs on TVM needs it
    from ..codegen.tvm.loading import load_tvm

    load_tvm()
    from ..codegen.tvm import module

    symbols = tuple(r.symbol for r in plan.graph.symbols)
    steps = {f"step{i}": s for i, s in enumerate(plan.steps) if isinstance(s, KernelStep)}
    if not steps:
        return {}
    sources = {s.kernel.name: s.kernel.source for s in steps.values()}
    hosts = [
        module.Host(name, (module.Call(s.kernel.name, s.buffers),), len(plan.buffers), symbols)
        for name, s in steps.items()
    ]
    built = module.build(list(sources.values()), hosts, target.cpu)
    return {name: built[name] for name in steps}


def _timed(function: Callable[[Tensor, Tensor], Any], clock: _Clock, step: int) -> Callable[[Tensor, Tensor], None]:
    def run(table: Tensor, sizes: Tensor) -> None:
        clock.start()
        function(table, sizes)
        clock.stop(step)

    return run


def _mark(do: Callable[[], None]) -> Callable[[Tensor, Tensor], None]:
    return lambda table, sizes: do()


def copies(leaves: Sequence[Any]) -> list[Any]:
    """A call's leaves with tensors of their own."""
    return [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _least_time(entry: Entry, call: Call, sizes: Sizes, seconds: float) -> float:
    """The least time of a run over so many seconds, at least three runs; one before them does not count."""
    entry.run(copies(call.leaves), sizes)
    best, runs, end = float("inf"), 0, time.perf_counter() + seconds
    while runs < 3 or time.perf_counter() < end:
        leaves = copies(call.leaves)
        start = time.perf_counter()
        entry.run(leaves, sizes)
        best = min(best, time.perf_counter() - start)
        runs += 1
    return best
