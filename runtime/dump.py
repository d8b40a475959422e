"""What ``ir()`` and ``smelt dump-ir`` show: graphs, kernel programs and generated code as text."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ..codegen.gpu import GpuSchedule, gpu_schedule_text
from ..codegen.schedule import schedule_text
from ..codegen.text import print_program
from ..ir.text import print_graph
from .entry import Entry
from .kernels import KernelInfo

KERNELS = "kernels"
CODE = "code"


def stages_of(entry: Entry) -> tuple[str, ...]:
    """The names of what can be shown of a capture, in order."""
    return (*entry.executable.graphs, KERNELS, CODE)


def dump(entries: Sequence[Entry], stage: str) -> str:
    """The text of a stage of every entry, one after the other.

    Raises:
        ValueError: there is no such stage.
    """
    texts = [dump_entry(entry, stage) for entry in entries]
    if len(texts) == 1:
        return texts[0]
    return "\n".join(f"# part {number} of {len(texts)}\n{text}" for number, text in enumerate(texts, 1))


def dump_entry(entry: Entry, stage: str) -> str:
    """The text of one stage.

    Raises:
        ValueError: there is no such stage.
    """
    if stage == KERNELS:
        return "\n".join(map(kernel_program, entry.executable.kernels))
    if stage == CODE:
        return "\n".join(map(kernel_code, entry.executable.kernels))
    if stage not in entry.executable.graphs:
        raise ValueError(f"there is no stage {stage!r}; there are: {', '.join(stages_of(entry))}")
    return print_graph(entry.executable.graphs[stage])


def changed_by(entry: Entry, stage: str) -> str:
    """What a pass changed, as a unified diff of the graph before and after it, or that it changed nothing.

    Raises:
        ValueError: there is no such pass.
    """
    graphs = entry.executable.graphs
    names = list(graphs)
    if stage not in graphs or stage == names[0]:
        raise ValueError(f"there is no pass {stage!r}; there are: {', '.join(names[1:])}")
    before = names[names.index(stage) - 1]
    old, new = (print_graph(graphs[name]).splitlines() for name in (before, stage))
    return "\n".join(difflib.unified_diff(old, new, before, stage, lineterm="")) or f"{stage} changed nothing"


def kernel_program(kernel: KernelInfo) -> str:
    """A kernel's program under its name, where it comes from and its schedule."""
    return f"{_heading(kernel)}{print_program(kernel.program)}"


def kernel_code(kernel: KernelInfo) -> str:
    """A kernel's generated source under the same heading."""
    return f"{_heading(kernel)}{kernel.source.rstrip()}\n"


def _heading(kernel: KernelInfo) -> str:
    place = f" in {kernel.module}" if kernel.module else ""
    calls = "1 call" if kernel.calls == 1 else f"{kernel.calls} calls"
    schedule = kernel.schedule
    how = gpu_schedule_text(schedule) if isinstance(schedule, GpuSchedule) else schedule_text(schedule)
    return f"# {kernel.name}: {calls}{place}\n# {how}\n"
