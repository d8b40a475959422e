"""A kernel for a GPU with one schedule, or as a library computes it: held to what it means, then timed.

As on the CPU (``tuner_kernel.py``): results are full of NaN before the kernel runs and lie between zones that must not
change; nothing is timed that is not right; weights are taken in turns, so that they are cold. Before a kernel is
launched it is compiled, and refused where it spills or needs more shared memory than there is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..codegen.gpu import GpuMachine
from ..codegen.lower import strides_of
from ..codegen.schedule_data import AnySchedule, LibrarySchedule
from ..codegen.triton.expression import ERROR
from ..ir import ops
from ..ir.errors import UnsupportedError
from ..ir.types import concrete
from ..rewrites.trial import NoValue, small_sizes, values_or_failure
from .gpu import GpuKernel, GpuKernelTable
from .gpu_library import LibraryKernel
from .gpu_tuner_task import GpuTask
from .kernels import strides_of_value
from .tuner_kernel import Sample, WrongResult, difference_of, drawn
from .tuner_memory import ZONE
from .tuner_task import Sizes

CACHE_BYTES = 64 << 20  # more than the second-level cache of these GPUs
MOST_COPIES = 32
TURN_CALLS = 20
MOST_SPILLED = 64  # bytes of a thread's registers; a few cost nothing

Call = Callable[[], None]
Built = GpuKernel | LibraryKernel


class Timer(ABC):
    """What measures."""

    @abstractmethod
    def seconds(self, schedule: AnySchedule, calls: Sequence[Call]) -> float:
        """The seconds of a call, where ``calls`` are made one after another on different weights."""

    @abstractmethod
    def forget(self, schedule: AnySchedule) -> None:
        """Free what is kept of a schedule, whose calls will not be made again."""


class CudaTimer(Timer):
    """CUDA events around a CUDA graph of several calls, so that what it takes to launch them does not count.

    One for each task.
    """

    def __init__(self) -> None:
        self._graphs: dict[AnySchedule, Any] = {}

    def forget(self, schedule: AnySchedule) -> None:
        """See :class:`Timer`."""
        self._graphs.pop(schedule, None)

    def seconds(self, schedule: AnySchedule, calls: Sequence[Call]) -> float:
        """See :class:`Timer`."""
        if schedule not in self._graphs:
            self._graphs[schedule] = self._captured(calls)
        graph = self._graphs[schedule]
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        graph.replay()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3 / max(len(calls), TURN_CALLS)

    def _captured(self, calls: Sequence[Call]) -> Any:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            for call in calls:  # compiles, and chooses among a library's kernels
                call()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for number in range(max(len(calls), TURN_CALLS)):
                calls[number % len(calls)]()
        return graph


@dataclass(frozen=True)
class Place:
    """Where kernels run: PyTorch's device, what it can hold, and what times them."""

    machine: GpuMachine
    device: str
    timer: Timer
    compiles: bool = True


class GpuPrepared:
    """A task with its samples, and the kernels that were built for it.

    Raises:
        NoValue: the region has no value for operands that were drawn.
        UnsupportedError: no kernel can be made of the region.
    """

    def __init__(self, task: GpuTask, place: Place, seed: int = 0) -> None:
        self.task, self.place, self.seed = task, place, seed
        self.default = task.kernel(place.machine)
        self.samples = self._samples()
        self._built: dict[AnySchedule, Built] = {}
        self._calls: dict[AnySchedule, list[Call]] = {}

    def build(self, schedule: AnySchedule) -> None:
        """Build the kernel with a schedule, and hold it to every sample.

        Raises:
            WrongResult: it computes something else.
            UnsupportedError, BackendError: it cannot be built, or takes more than there is.
        """
        if schedule in self._built:
            return
        built = self._made(schedule)
        for sample in self.samples:
            self._check(built, sample)
        self._built[schedule] = built

    def _made(self, schedule: AnySchedule) -> Built:
        if isinstance(schedule, LibrarySchedule):
            return LibraryKernel(self.task.node(), schedule, GpuKernelTable(self.place.machine), must=True)
        kernel = self.task.kernel(self.place.machine, schedule)  # type: ignore[arg-type]
        if self.place.compiles:
            # imported here: it needs Triton
            from ..codegen.triton.cubin import compile_file

            file = kernel.file.at(self.samples[0].sizes)
            worst = max((r.spills for r in compile_file(replace(file, narrow=None), self.place.machine)), default=0)
            if worst > MOST_SPILLED:
                raise UnsupportedError(f"{worst} bytes of a thread's registers do not fit")
        return kernel

    def seconds(self, schedules: Sequence[AnySchedule], rounds: int) -> list[list[float]]:
        """The seconds of a call with each schedule, in rounds in each of which everyone has a turn."""
        for schedule in schedules:
            self.build(schedule)
            if schedule not in self._calls:
                self._calls[schedule] = self._timed(schedule)
        found: list[list[float]] = [[] for _ in schedules]
        for _ in range(rounds):
            for schedule, seconds in zip(schedules, found, strict=True):
                seconds.append(self.place.timer.seconds(schedule, self._calls[schedule]))
        return found

    def forget(self, schedule: AnySchedule) -> None:
        """Free what will not be timed again."""
        self.place.timer.forget(schedule)
        self._built.pop(schedule, None)
        self._calls.pop(schedule, None)

    # --- samples ------------------------------------------------------------------------------------------------------

    def _samples(self) -> list[Sample]:
        """At the sizes of the call, with its integers, and at small sizes, which are odd."""
        region, sizes = self.task.region, self.task.known()
        found = [self._sample(sizes, self.task.integers)]
        small = small_sizes(region.symbols, lambda sizes: True, self.seed) if region.symbols else None
        return found if small is None else [*found, self._sample(small, {})]

    def _sample(self, sizes: Sizes, integers: Mapping[int, Sequence[int]]) -> Sample:
        operands = [x.to(self.place.device) for x in drawn(self.task.region, sizes, self.seed)]
        for at, numbers in integers.items():
            operands[at] = torch.tensor(numbers).reshape(operands[at].shape).to(operands[at])
        expected = []
        for widen in (True, False):
            values, failure = values_or_failure(self.task.region, operands, sizes, widen)
            if failure:
                raise NoValue(failure)
            expected.append(list(values))
        return Sample(sizes, operands, expected)

    # --- checking -----------------------------------------------------------------------------------------------------

    def _check(self, built: Built, sample: Sample) -> None:
        memory = Memory(self.task, sample, self.place.device)
        results = self._run(built, memory, sample.sizes)
        self._wait()
        if memory.error.item():
            raise WrongResult("it reports an index out of range")
        if not memory.zones_are_whole():
            raise WrongResult("it writes outside of a result")
        faults = [next(filter(None, map(difference_of, expected, results)), "") for expected in sample.expected]
        if all(faults):
            raise WrongResult(faults[0])

    def _wait(self) -> None:
        if self.place.device != "cpu":
            torch.cuda.synchronize()

    def _run(self, built: Built, memory: Memory, sizes: Sizes) -> list[Tensor]:
        if isinstance(built, LibraryKernel):
            launch = partial(memory.launch, sizes)
            built.run(memory.held, memory.results, memory.lent(built, sizes), sizes, launch)
            return memory.results
        launch_kernel(built, memory.held, memory.results, memory, sizes)
        return memory.results

    # --- timing -------------------------------------------------------------------------------------------------------

    def _timed(self, schedule: AnySchedule) -> list[Call]:
        """A call for each of several copies of the weights: together more than the cache holds."""
        sample, built = self.samples[0], self._built[schedule]
        nbytes = sum(sample.operands[i].nbytes for i in self.task.packed)
        copies = min(-(-2 * CACHE_BYTES // nbytes), MOST_COPIES) if nbytes else 1

        def call(memory: Memory) -> Call:
            return lambda: void(self._run(built, memory, sample.sizes))

        return [call(Memory(self.task, sample, self.place.device)) for _ in range(copies)]


def void(_: object) -> None:
    """Nothing."""


class Memory:
    """The buffers of one call: operands as they lie in the model's memory, results full of NaN between zones."""

    def __init__(self, task: GpuTask, sample: Sample, device: str) -> None:
        node = task.node()
        self.device, self.plain = device, sample.operands
        pairs = zip(node.inputs, sample.operands, strict=True)
        strides = [tuple(concrete(d, sample.sizes) for d in strides_of_value(x)) for x in node.inputs]
        self.held = [
            torch.empty_strided(tuple(x.shape), s, dtype=x.dtype, device=device).copy_(x)
            for (_, x), s in zip(pairs, strides, strict=True)
        ]
        taken = {result: self.held[operand] for result, operand in task.in_place}
        self._zones: list[Tensor] = []
        self._lent: dict[Built, dict[str, Tensor]] = {}
        self.results = [
            taken[i] if i in taken else self._blank(r, task.layouts[i], sample.sizes)
            for i, r in enumerate(ops.results(node))
        ]
        self.error = torch.zeros(1, dtype=torch.int64, device=device)

    def _blank(self, value: Any, layout: Sequence[int], sizes: Sizes) -> Tensor:
        """A result with all bits set: NaN, or -1."""
        shape = [concrete(d, sizes) for d in value.shape]
        strides = [concrete(d, sizes) for d in strides_of(value.shape, layout)]
        count = value.dtype.itemsize
        for size in shape:
            count *= size
        flat = torch.full((count + 2 * ZONE,), 255, dtype=torch.uint8, device=self.device)
        self._zones += [flat[:ZONE], flat[ZONE + count :]]
        return flat[ZONE : ZONE + count].view(value.dtype).as_strided(shape, strides)

    def zones_are_whole(self) -> bool:
        """Whether what lies around the results is as it was."""
        return all(bool((zone == 255).all()) for zone in self._zones)

    def launch(self, sizes: Sizes, kernel: GpuKernel, operands: Sequence[Tensor], results: Sequence[Tensor]) -> None:
        """Launch a kernel that stands beside a library's."""
        launch_kernel(kernel, operands, results, self, sizes)

    def lent(self, kernel: Built, sizes: Sizes) -> dict[str, Tensor]:
        """The memory that a kernel is lent; full of NaN when it is lent first."""
        if kernel not in self._lent:
            found = self._lent[kernel] = {}
            for p in kernel.file.at(sizes).scratch if isinstance(kernel, GpuKernel) else kernel.scratch:
                shape = [concrete(d, sizes) for d in p.type.shape]
                value = float("nan") if p.type.dtype.is_floating_point else -1
                found[p.name] = torch.full(shape, value, dtype=p.type.dtype, device=self.device)
        return self._lent[kernel]


def launch_kernel(
    kernel: GpuKernel, operands: Sequence[Tensor], results: Sequence[Tensor], memory: Memory, sizes: Sizes
) -> None:
    """Launch a kernel on tensors."""
    # imported here: it needs Triton
    from ..codegen.triton.launch import run

    program = kernel.program
    buffers = {p.name: x for p, x in zip(program.inputs, operands, strict=True)}
    buffers |= {p.name: x for p, x in zip(program.outputs, results, strict=True)}
    run(kernel.file, buffers | memory.lent(kernel, sizes) | {ERROR: memory.error}, sizes)
