"""A kernel with one schedule, built on its own: held to what it means, then timed.

A result is poisoned with NaN before the kernel runs, and lies between zones that must not change. It is held to its
program, evaluated by ``codegen.interpret`` in float64 at small sizes, and to its region, evaluated by ``ir.interpret``
at the sizes that are timed. Nothing is timed before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor

from ..codegen.program import Program, program_axes
from ..codegen.schedule import Schedule
from ..ir.errors import SmeltError
from ..ir.graph import Graph
from ..ir.node import Trait, through_views
from ..ir.types import concrete, product
from ..rewrites.trial import NoValue, Style, draw_inputs, small_sizes, values_or_failure
from ..rewrites.values import difference
from .check_kernels import run_program
from .plan import KernelStep
from .probe import Probes
from .target import Target
from .tuner_memory import Memory, Pool, copies_of
from .tuner_task import Task

Sizes = Mapping[sympy.Symbol, int]
Timed = Callable[[int, int], float]

MOST_POINTS = 1 << 24  # that a program is evaluated at
CALLS = 8  # of the kernel in one native function, at most
TURN_SECONDS = 2e-3
BATCH_SECONDS = 5e-5
# of the largest element; half types are rounded once where they are stored
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}


class WrongResult(SmeltError):
    """A kernel does not compute what it should; the message says what it does."""


@dataclass
class Sample:
    """Operands at some sizes, and what the results should be: each of several values will do."""

    sizes: Sizes
    operands: list[Tensor]
    expected: list[list[Tensor]]


class Prepared:
    """A task with its samples, and the kernels that were built for it.

    Raises:
        NoValue: the region has no value for operands that were drawn.
        UnsupportedError: no kernel can be made of the region.
    """

    def __init__(self, task: Task, target: Target, seed: int = 0) -> None:
        self.task, self.target, self.seed = task, target, seed
        self.step = task.step(target.machine)
        self.samples = [self._by_region(), *self._by_program()]
        cold = sum(self.samples[0].operands[i].nbytes for i in task.cold)
        self.calls = min(max(copies_of(cold), 2), CALLS) if cold else CALLS
        self.built: dict[Schedule, Built] = {}

    @property
    def program(self) -> Program:
        """What the kernel computes."""
        return self.step.kernel.program

    def build(self, schedule: Schedule | None) -> Built:
        """The kernel with a schedule, or the default one, built and held to every sample.

        Raises:
            WrongResult: it computes something else.
            UnsupportedError, BackendError: it cannot be built.
        """
        step = self.step if schedule is None else self.task.step(self.target.machine, lambda program: schedule)
        if step.kernel.schedule not in self.built:
            made = Built(step, self.target, self.calls)
            for sample in self.samples:
                made.check(sample)
            self.built[step.kernel.schedule] = made
        return self.built[step.kernel.schedule]

    def seconds(
        self, schedules: Sequence[Schedule | None], rounds: int, turn: float = TURN_SECONDS
    ) -> list[list[float]]:
        """The seconds of a call with each schedule, in rounds in each of which everyone has a turn."""
        kernels = [self.build(schedule) for schedule in schedules]
        pool = Pool()
        runs = [kernel.timed(self.samples[0], pool, self.task.cold) for kernel in kernels]
        counts = [_batches(run, kernel.calls, turn) for run, kernel in zip(runs, kernels, strict=True)]
        found: list[list[float]] = [[] for _ in runs]
        for _ in range(rounds):
            for run, count, seconds in zip(runs, counts, found, strict=True):
                run(1, 1)
                seconds.append(run(*count))
        return found

    def forget(self, schedule: Schedule) -> None:
        """Free a kernel that will not be timed again."""
        self.built.pop(schedule, None)

    # --- samples ------------------------------------------------------------------------------------------------------

    def _by_region(self) -> Sample:
        """At the sizes of the call, with its integers."""
        region, sizes = self.task.region, self.task.known()
        operands = drawn(region, sizes, self.seed)
        for at, values in self.task.integers.items():
            operands[at] = torch.tensor(values).reshape(operands[at].shape).to(operands[at].dtype)
        expected = [self._values(operands, sizes, widen) for widen in (True, False)]
        return Sample(sizes, operands, expected)

    def _values(self, operands: Sequence[Tensor], sizes: Sizes, widen: bool) -> list[Tensor]:
        values, failure = values_or_failure(self.task.region, operands, sizes, widen)
        if failure:
            raise NoValue(failure)
        return list(values)

    def _by_program(self) -> list[Sample]:
        """At small sizes, where the program is small enough to be evaluated at every point."""
        region = self.task.region
        sizes = small_sizes(region.symbols, lambda sizes: True, self.seed)
        if sizes is None or _points(self.program, sizes) > MOST_POINTS:
            return []
        operands = drawn(region, sizes, self.seed)
        try:
            wide = run_program(self.step, operands, sizes, torch.float64)
        except IndexError:  # drawn integers that the program does not take: the other sample has the call's own
            return []
        return [Sample(sizes, operands, [wide, self._values(operands, sizes, False)])]


class Built:
    """The native functions of one kernel: one call of it, and several, each on memory of its own."""

    def __init__(self, step: KernelStep, target: Target, calls: int) -> None:
        self.step, self.target, self.together = step, target, calls
        self._probes = Probes([step], target, calls)

    @property
    def function(self) -> Callable[[Tensor, Tensor], Any]:
        """What is called with addresses and sizes, once."""
        return self._probes.function(self.step)

    def check(self, sample: Sample) -> None:
        """Hold the kernel to a sample.

        Raises:
            WrongResult: a result differs, was not written, or something beside it was.
        """
        memory = Memory(self.step, sample.operands, sample.sizes)
        memory.call(self.function)
        if memory.error.item():
            raise WrongResult("it reports an index out of range")
        if not all(memory.zones_are_whole()):
            raise WrongResult("it writes outside of a result")
        faults = [next(filter(None, map(difference_of, expected, memory.results)), "") for expected in sample.expected]
        if all(faults):
            raise WrongResult(faults[0])

    def timed(self, sample: Sample, pool: Pool, cold: Collection[int] = ()) -> Timed:
        """What makes some batches of calls and returns the seconds of a call in the best of them.

        So a batch in which others had the processor does not count. Operands that are ``cold`` are taken in turns from
        copies that no cache holds together, and a batch goes through all of them: of single calls the best would be
        one whose copy a cache held. As in a run of the model several calls follow each other in one native function.
        """
        memory, function = Memory(self.step, sample.operands, sample.sizes), self._probes.together(self.step)
        tables = memory.tables(pool, cold, self.together)
        self.calls = len(tables) * self.together  # of a turn

        def run(batches: int, turns: int) -> float:
            best = float("inf")
            for _ in range(batches):
                start = time.perf_counter()
                for _ in range(turns):
                    for table in tables:
                        function(table, memory.sizes)
                best = min(best, time.perf_counter() - start)
            return best / (turns * self.calls)

        return run


def drawn(region: Graph, sizes: Sizes, seed: int) -> list[Tensor]:
    """Operands; the weight of a recurrence is scaled so that its state does not saturate from step to step."""
    operands = draw_inputs(region, sizes, Style(), seed)
    weights = {through_views(node.inputs[1]) for node in region.nodes if node.has(Trait.RECURRENCE)}
    return [x * x.shape[-1] ** -0.5 if n in weights else x for n, x in zip(region.inputs, operands, strict=True)]


def difference_of(expected: Tensor, found: Tensor) -> str:
    """How a result differs from what it should be, at the tolerance of its dtype; empty where it does not."""
    if expected.dtype.is_complex:
        expected, found = torch.view_as_real(expected), torch.view_as_real(found)
    tolerance = TOLERANCE.get(found.dtype, 0.0)
    return difference(expected, found.to(expected.dtype), tolerance)


def _points(program: Program, sizes: Sizes) -> int:
    return concrete(product(a.size for a in program_axes(program)), sizes)


def _batches(run: Timed, calls: int, seconds: float) -> tuple[int, int]:
    """How many batches of how many turns take some seconds, none shorter than can be timed, and two at least."""
    run(1, 1)
    once = max(run(1, 1), 1e-9) * calls
    turns = max(1, int(BATCH_SECONDS / once))
    return max(2, min(1000, int(seconds / (once * turns)))), turns
