"""The tuner for GPUs: Triton kernels with many schedules, and libraries' kernels, tried within a budget of time.

The order of things is that of ``tuner.py``: what differs are the kernels, who times them, and what records depend on.
Libraries come right after the default schedule, so that each kernel is held against them whatever the budget.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch

from ..codegen import triton as emitter
from ..codegen.gpu import GpuMachine, GpuSchedule, gpu_schedule_text
from ..codegen.program import Program
from ..codegen.schedule_data import AnySchedule, LibrarySchedule
from ..codegen.text import print_program
from ..codegen.triton.space import gpu_space
from ..ir.cost import Roofs, cost_of
from .cache import KernelCache
from .gpu_library import library_schedules
from .gpu_tuner_task import GpuTask
from .gpu_tuner_worker import GpuWorker
from .tuner import Progress, Settings, Tell, Tuner
from .tuner_records import FORMAT, Choice, Records

FILE = "gpu-tuning.jsonl"  # beside the records of processors


def gpu_versions() -> str:
    """What a record depends on beside its key: Triton, PyTorch with its CUDA, and the emitter."""
    import importlib.metadata

    sources = sorted(Path(emitter.__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    triton = importlib.metadata.version("triton")
    return f"triton {triton} torch {torch.__version__} emitter {digest}"


def gpu_key_of(program: Program, machine: GpuMachine) -> str:
    """What a kernel is known by, whatever model it is in."""
    facts = [FORMAT, print_program(program), asdict(machine)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def roofs_of_gpu(machine: GpuMachine) -> Roofs:
    """A GPU's roofs, as costs are reckoned with."""
    return Roofs(
        matmul_flops=machine.half,
        scalar_flops=machine.single,
        bytes_per_second=machine.memory,
        launch_seconds=machine.launch,
        cache_bytes_per_second=3 * machine.memory,
    )


def gpu_progress_of(tasks: Sequence[GpuTask], machine: GpuMachine) -> list[Progress]:
    """The kernels before anything was measured."""
    found, roofs = [], roofs_of_gpu(machine)
    for task in tasks:
        kernel, sizes = task.kernel(machine), task.known()
        default, *others = gpu_space(kernel.program, machine, sizes)
        order: tuple[AnySchedule, ...] = (default, *library_schedules(task.region), *others)
        least = cost_of(task.region, task.in_place).seconds(roofs, sizes) - roofs.launch_seconds
        found.append(Progress(task, gpu_key_of(kernel.program, machine), cast(Any, order), least))
    return found


class GpuTuned:
    """Gives the schedule that was chosen for a program, which may be a library's; None where none was.

    A choice counts where it was made by these versions, against the schedule that is still the default one, and is in
    the program's space at the sizes that it was made at: a file cannot name a kernel that would never be tried.

    Args:
        machine: the GPU.
        choices: all that are known; a later one for the same program replaces an earlier one.
    """

    def __init__(self, machine: GpuMachine, choices: Iterable[Choice]) -> None:
        self.machine, built_with = machine, gpu_versions()
        self._by_key = {c.key: c for c in choices if c.versions == built_with}

    def __call__(self, program: Program) -> GpuSchedule | LibrarySchedule | None:
        """The schedule of a program."""
        choice = self._by_key.get(gpu_key_of(program, self.machine)) if self._by_key else None
        if choice is None:
            return None
        sizes = {s: choice.sizes[str(s)] for s in program.symbols if str(s) in choice.sizes}
        if len(sizes) < len(program.symbols):
            return None
        space = gpu_space(program, self.machine, sizes)
        found, default = cast(AnySchedule, choice.schedule), cast(GpuSchedule, choice.default)
        if default != space[0]:
            return None
        if isinstance(found, LibrarySchedule):
            return found  # whether it can be is for who has the region to say
        return found if found in space else None


def gpu_tuned(machine: GpuMachine, cache: KernelCache | None) -> GpuTuned | None:
    """The schedules that were chosen for a GPU and kept in a cache's folder; None where there are none."""
    file = None if cache is None else Path(cache.folder) / FILE
    return GpuTuned(machine, Records(file).choices()) if file is not None and file.exists() else None


class GpuTuner(Tuner):
    """One run of the tuner; :meth:`run` does it.

    Args:
        kernels: from :func:`gpu_progress_of`.
        machine: the GPU.
        records: where trials and choices are written, and read with ``settings.resume``.
        settings: how to tune; its search is ``"ranked"``.
        tell: is called after each step with all kernels and the one at work.
        worker: makes a worker process.
    """

    def __init__(
        self,
        kernels: Sequence[Progress],
        machine: GpuMachine,
        records: Records,
        settings: Settings | None = None,
        tell: Tell = lambda kernels, now: None,
        worker: Callable[[], GpuWorker] | None = None,
    ) -> None:
        settings = settings or Settings(limit=60.0)
        made = worker or (lambda: GpuWorker(machine, settings.limit))
        target = cast(Any, f"sm_{machine.capability}")
        super().__init__(kernels, target, records, settings, tell, cast(Any, made), built_with=gpu_versions())


@dataclass(frozen=True)
class Outcome:
    """Who won a kernel, and by how much.

    Attributes:
        kernel: its name.
        winner: the schedule's text, or the library call's name.
        library: whether a library won.
        gain: how many times as long the default schedule takes.
        over_library: how many times as long the fastest library takes as the winner; None where none was timed.
    """

    kernel: str
    winner: str
    library: bool
    gain: float
    over_library: float | None


def outcomes_of(kernels: Sequence[Progress]) -> list[Outcome]:
    """What was found of each kernel that has a choice."""
    found = []
    for kernel in kernels:
        if kernel.choice is None:
            continue
        choice: Choice = kernel.choice
        winner = cast(AnySchedule, choice.schedule)
        libraries = [r for s, r in kernel.trials.items() if isinstance(s, LibrarySchedule)]
        over = min(libraries) * choice.gain if libraries else None
        found.append(Outcome(kernel.task.name, _text(winner), isinstance(winner, LibrarySchedule), choice.gain, over))
    return found


def _text(schedule: AnySchedule) -> str:
    if isinstance(schedule, LibrarySchedule):
        return f"library {schedule.name}"
    return gpu_schedule_text(cast(Any, schedule))


def report_of(outcomes: Sequence[Outcome]) -> str:
    """Who won, a line for each kernel."""
    lines = [f"{'kernel':40} {'x default':>9} {'x library':>9}  winner"]
    for o in outcomes:
        over = "" if o.over_library is None else f"{o.over_library:9.2f}"
        lines.append(f"{o.kernel:40} {o.gain:9.2f} {over:>9}  {o.winner}")
    won = sum(o.library for o in outcomes)
    return "\n".join([*lines, f"{len(outcomes)} kernels tuned; a library won {won}"])
