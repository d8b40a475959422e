"""Kernels of an artifact for one GPU, made by Triton without one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from typing import Any

import torch

from ...codegen.gpu import GpuMachine
from ...codegen.triton.file import KernelFile, Launch
from ...ir.errors import BackendError, UnsupportedError
from ...ir.graph import Graph
from ...rewrites.fusion import fuse
from ..cuda.device import names_of
from ..cuda.stored import (
    MOST_ALIGNMENT,
    MOST_SCRATCH,
    CodeWriter,
    ScratchArgument,
    SizeArgument,
    StoredKernel,
    StoredLaunch,
    TensorArgument,
    kernel_data,
)
from ..gpu import GpuKernel, GpuKernelTable, Schedules
from ..gpu_narrow import narrowed
from ..kernels import finalise
from ..plan import KernelStep, Plan, TorchStep, make_plan
from ..saved.plan import plan_data
from ..saved.values import NoForm
from ..target import usable_cores
from .kernels import Kernels, Planned
from .targets import GpuTargetRecord


def gpu_plan_for(graph: Graph, machine: GpuMachine, schedules: Schedules | None = None) -> Plan:
    """The plan of a rewritten graph for a GPU."""
    fused = narrowed(fuse(graph))
    table = GpuKernelTable(machine, schedules)
    return make_plan(finalise(fused, table), table, reuse=False)  # as runtime.cuda.build does


# --- made -------------------------------------------------------------------------------------------------------------


def gpu_kernels_for(plan: Plan, machine: GpuMachine) -> tuple[Kernels, GpuTargetRecord]:
    """The kernels of a plan, compiled, and what a GPU must be to run them.

    Raises:
        UnsupportedError: the plan calls an operator that is not PyTorch's own.
        BackendError: Triton is not there, interprets, or refuses a kernel.
    """
    kernels = list({step.kernel.name: step.kernel for step in plan.steps if isinstance(step, KernelStep)}.values())
    steps = [step for step in plan.steps if isinstance(step, TorchStep)]
    try:
        data = plan_data(Planned(plan, steps, {}))  # type: ignore[arg-type]
    except NoForm as error:
        raise UnsupportedError(f"an artifact cannot hold this model: {error}") from None
    stored, arch = _compiled(kernels, machine)  # type: ignore[arg-type]
    code = CodeWriter()
    data["kernels"] = [kernel_data(stored[kernel.name], code) for kernel in kernels]
    numbers = {kernel.name: i for i, kernel in enumerate(kernels)}
    torch_steps = iter(range(len(steps)))
    data["hosts"] = [
        [numbers[step.kernel.name], list(step.buffers)] if isinstance(step, KernelStep) else next(torch_steps)
        for step in plan.steps
    ]
    shared = max((launch.shared for kernel in stored.values() for launch in kernel.launches), default=0)
    made = Kernels(data, bytes(code.data) if kernels else None, "\n".join(_sources(kernels)), "cuda")  # type: ignore[arg-type]
    return made, GpuTargetRecord.of(machine, arch, shared)


def _sources(kernels: Sequence[GpuKernel]) -> Iterator[str]:
    for kernel in kernels:
        for file in kernel.file.all:
            yield f"# {file.name}, offsets of {file.bits} bits\n{file.text}"


def _compiled(kernels: Sequence[GpuKernel], machine: GpuMachine) -> tuple[dict[str, StoredKernel], str]:
    """Every function of the kernels as machine code, several at a time; and what that was made for."""
    if find_spec("triton") is None:
        raise BackendError("kernels for GPUs need the package triton, which is not installed; run: pip install triton")
    # imported here: it needs Triton
    from ...codegen.triton.cubin import MachineCode, Resources, machine_code, resources_of, without_lines

    work = [(kernel, file, launch) for kernel in kernels for file in kernel.file.all for launch in file.launches]

    def compiled(kernel: GpuKernel, file: KernelFile, launch: Launch) -> tuple[MachineCode, Resources]:
        made = machine_code(file, launch, machine)
        return made, resources_of(made, machine)

    with without_lines(), ThreadPoolExecutor(max(min(usable_cores(), len(work)), 1)) as pool:
        done = iter(list(pool.map(compiled, *zip(*work, strict=True))) if work else [])
    arches = set[str]()

    def launches(kernel: GpuKernel, file: KernelFile) -> tuple[StoredLaunch, ...]:
        found = []
        for launch in file.launches:
            made, resources = next(done)
            arches.add(made.arch)
            found.append(_stored_launch(kernel, launch, made, resources))
        return tuple(found)

    stored = {}
    for kernel in kernels:  # in the order of the work
        file = kernel.file
        narrow = None if file.narrow is None else launches(kernel, file.narrow)
        wide = launches(kernel, file)
        alone = None if file.alone is None else launches(kernel, file.alone)
        stored[kernel.name] = StoredKernel(
            kernel.name,
            _dtypes(kernel),
            kernel.checks_indices,
            wide,
            narrow,
            file.bounds,
            alone=alone,
            points=file.points,
            enough=file.enough,
        )
    if len(arches) > 1:
        raise UnsupportedError(f"Triton makes code for {', '.join(sorted(arches))} of one target")
    return stored, next(iter(arches), f"sm_{machine.capability}")


def _stored_launch(kernel: GpuKernel, launch: Launch, made: Any, resources: Any) -> StoredLaunch:
    """A launch as data. After tensors and sizes, functions of Triton take the addresses of two scratch buffers."""
    if made.scratch > MOST_SCRATCH or made.alignment > MOST_ALIGNMENT:
        raise UnsupportedError(f"{launch.function} needs {made.scratch} bytes of scratch memory for each program")
    place = {name: i for i, name in enumerate(names_of(kernel))}
    return StoredLaunch(
        launch.function,
        made.code,
        launch.programs,
        made.warps,
        made.shared,
        (
            *(TensorArgument(place[name]) for name in launch.buffers),
            *(SizeArgument(symbol, made.bits) for symbol in launch.symbols),
            ScratchArgument(made.scratch, made.alignment),
            ScratchArgument(0, 1),
        ),
        resources.registers,
        resources.spills,
        resources.stack,
    )


def _dtypes(kernel: GpuKernel) -> tuple[torch.dtype, ...]:
    program = kernel.program
    params = (*program.inputs, *program.outputs, *kernel.scratch)
    return (*(p.type.dtype for p in params), torch.int64)
