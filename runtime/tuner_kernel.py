"""A kernel with one schedule, built on its own: held to what it means, then timed.

A result is poisoned with NaN before the kernel runs, and lies between zones that must not change. It is held to its
program, evaluated by ``codegen.interpret`` in float64 at small sizes, and to its region, evaluated by ``ir.interpret``
at the sizes that are timed. Nothing is timed before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy
import torch
from torch import Tensor

from ..codegen.lower import strides_of
from ..codegen.program import Program, program_axes
from ..codegen.schedule import Schedule
from ..ir import ops
from ..ir.errors import SmeltError
from ..ir.graph import Graph
from ..ir.node import Trait, through_views
from ..ir.types import concrete, product
from ..rewrites.trial import NoValue, Style, draw_inputs, small_sizes, values_or_failure
from ..rewrites.values import difference
from .check_kernels import run_program
from .kernels import layouts_of
from .plan import KernelStep
from .probe import Probes
from .roofs import last_cache_bytes
from .target import Target
from .tuner_task import Task

Sizes = Mapping[sympy.Symbol, int]
Timed = Callable[[int, int], float]

ZONE = 4096  # bytes on either side of a result
MOST_POINTS = 1 << 24  # that a program is evaluated at
MOST_COPIES = 32  # of weights
COLD_BYTES = 1 << 20  # a weight of so many is found in no cache in a run of the model
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
            made = Built(step, self.target)
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
        runs = [kernel.timed(self.samples[0], pool) for kernel in kernels]
        counts = [_batches(run, turn) for run in runs]
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


class Pool:
    """Tensors that several kernels are timed on: where equal ones lie would tell kernels apart that are alike."""

    def __init__(self) -> None:
        self._known: dict[str, list[list[Tensor]]] = {}

    def of(self, what: str, made: Tensor, copies: int = 1) -> list[Tensor]:
        """A tensor that was given for the same before and has the same bytes, or this one, and copies of it."""
        for known in self._known.setdefault(what, []):
            first = known[0]
            same = (first.shape, first.stride(), first.dtype) == (made.shape, made.stride(), made.dtype)
            if same and len(known) == copies and _same_bytes(first, made):
                return known
        self._known[what].append([made, *(made.clone() for _ in range(copies - 1))])
        return self._known[what][-1]


class Built:
    """The native function of one kernel call."""

    def __init__(self, step: KernelStep, target: Target) -> None:
        self.step, self.target = step, target
        self._probes = Probes([step], target)

    @property
    def function(self) -> Callable[[Tensor, Tensor], Any]:
        """What is called with addresses and sizes."""
        return self._probes.function(self.step)

    def check(self, sample: Sample) -> None:
        """Hold the kernel to a sample.

        Raises:
            WrongResult: a result differs, was not written, or something beside it was.
        """
        memory = _Memory(self.step, sample)
        memory.call(self.function)
        if memory.error.item():
            raise WrongResult("it reports an index out of range")
        if not all(memory.zones_are_whole()):
            raise WrongResult("it writes outside of a result")
        faults = [next(filter(None, map(difference_of, expected, memory.results)), "") for expected in sample.expected]
        if all(faults):
            raise WrongResult(faults[0])

    def timed(self, sample: Sample, pool: Pool) -> Timed:
        """What makes some batches of calls and returns the seconds of a call in the best of them.

        So a batch in which others had the processor does not count. Weights are taken in turns, so that they are cold.
        """
        memory, function = _Memory(self.step, sample), self.function
        tables = memory.tables(pool)
        self.at = 0

        def run(batches: int, calls: int) -> float:
            best = float("inf")
            for _ in range(batches):
                start = time.perf_counter()
                for _ in range(calls):
                    function(tables[self.at], memory.sizes)
                    self.at = (self.at + 1) % len(tables)
                best = min(best, time.perf_counter() - start)
            return best / calls

        return run


class _Memory:
    """The buffers of one call."""

    def __init__(self, step: KernelStep, sample: Sample) -> None:
        known, program = sample.sizes, step.kernel.program
        self.step = step
        self.held = [Probes.operand(step, i, x.clone(), known) for i, x in enumerate(sample.operands)]
        taken = {result: self.held[operand] for result, operand in step.kernel.in_place}
        self.flat: list[Tensor] = []
        self.results = [taken[i] if i in taken else self._blank(i, known) for i in range(len(layouts_of(step.node)))]
        shapes = [[concrete(d, known) for d in p.type.shape] for p in step.kernel.scratch]
        self.lent = [torch.empty(n, dtype=p.type.dtype) for n, p in zip(shapes, step.kernel.scratch, strict=True)]
        self.error = torch.zeros(1, dtype=torch.int64)
        self.sizes = torch.tensor([known[s] for s in program.symbols] or [0])

    def _blank(self, at: int, sizes: Sizes) -> Tensor:
        """A result full of NaN, or of ones in every bit, between zones of the same."""
        type_ = ops.results(self.step.node)[at].tensor_type
        shape = [concrete(d, sizes) for d in type_.shape]
        strides = [concrete(d, sizes) for d in strides_of(type_.shape, layouts_of(self.step.node)[at])]
        count = concrete(product(type_.shape), sizes) * type_.dtype.itemsize
        flat = torch.full((count + 2 * ZONE + 64,), 255, dtype=torch.uint8)
        start = ZONE + -(flat.data_ptr() + ZONE) % 64
        self.flat += [flat[:start], flat[start + count :]]
        return flat[start : start + count].view(type_.dtype).as_strided(shape, strides)

    def call(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        """Run the kernel once."""
        function(self._table(self.held), self.sizes)

    def zones_are_whole(self) -> list[bool]:
        """Whether what lies around the results is as it was."""
        return [bool((zone == 255).all()) for zone in self.flat]

    def tables(self, pool: Pool) -> list[Tensor]:
        """Address tables that differ in which copy of the large weights they name: more than the caches hold."""
        cold = [i for i in self._cold if self.held[i].nbytes >= COLD_BYTES]
        nbytes = sum(self.held[i].nbytes for i in cold)
        copies = min(max(-(-2 * last_cache_bytes() // nbytes), 1), MOST_COPIES) if nbytes else 1
        taken = dict(self.step.kernel.in_place)
        operands = [pool.of(f"operand {i}", x, copies if i in cold else 1) for i, x in enumerate(self.held)]
        self.results = [
            operands[taken[i]][0] if i in taken else pool.of(f"result {i}", x)[0] for i, x in enumerate(self.results)
        ]
        self.lent = [pool.of(f"lent {i}", x)[0] for i, x in enumerate(self.lent)]
        self.copies = [[x[n % len(x)] for x in operands] for n in range(copies)]
        return [self._table(held) for held in self.copies]

    @cached_property
    def _cold(self) -> list[int]:
        return [i for i, x in enumerate(self.step.node.inputs) if x.is_a(ops.weight)]

    def _table(self, held: Sequence[Tensor]) -> Tensor:
        return torch.tensor([x.data_ptr() for x in (*held, *self.results, *self.lent, self.error)])


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


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two dense tensors of one type and layout hold the same, NaN equal to itself."""
    flat = (torch.as_strided(x, (x.numel(),), (1,)).view(torch.uint8) for x in (a, b))
    return torch.equal(*flat)


def _points(program: Program, sizes: Sizes) -> int:
    return concrete(product(a.size for a in program_axes(program)), sizes)


def _batches(run: Timed, seconds: float) -> tuple[int, int]:
    """How many batches of how many calls take some seconds, none shorter than can be timed."""
    run(1, 1)
    once = max(run(2, 1), 1e-9)
    calls = max(1, int(BATCH_SECONDS / once))
    return max(1, min(1000, int(seconds / (once * calls)))), calls
