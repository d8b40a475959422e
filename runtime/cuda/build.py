"""From a capture to an executable for a GPU."""

from __future__ import annotations

from ...frontend.capture import Capture
from ...rewrites.quantization import Quantization
from ...rewrites.search.settings import SearchSettings
from ..build import Compilation, make_steps
from ..check import Check
from ..gpu import GpuKernelTable, Schedules
from ..gpu_narrow import narrowed
from ..precision import asks_for_tf32
from ..target import Target
from .branches import by_levels
from .device import Device, host_device, torch_device
from .executable import CudaExecutable
from .graphs import SideBySide
from .history import MOST_GRAPHS


def build_cuda(
    capture: Capture,
    target: Target,
    *,
    search: SearchSettings | None = None,
    check: Check = None,
    quantize: Quantization | None = None,
    most_graphs: int = MOST_GRAPHS,
    streams: int = 1,
    schedules: Schedules | None = None,
    device: Device | None = None,
) -> CudaExecutable:
    """Compile a capture for a GPU. Products of float32 are as exact as PyTorch is asked for meanwhile.

    ``schedules`` gives the schedule of a program for which another than the default one was chosen.
    ``streams`` is on how many the launches of a graph may be. ``device`` runs it, by default the target's.

    Raises:
        CheckError: with ``check``, a step changed what the model means.
        OutOfMemoryError: the GPU has not enough memory for weights that are computed from the model's.
    """
    machine = target.gpu
    assert machine is not None
    work = Compilation(target)
    # no kernel writes where it reads: threads of a GPU's kernel are not ordered as the CPU's loops are
    made = make_steps(
        capture,
        work,
        lambda graph: GpuKernelTable(machine, schedules, asks_for_tf32(), libraries=True),
        search=search,
        check=check,
        quantize=quantize,
        reuse=False,
        adapt=narrowed,
    )
    if streams > 1:
        made.plan = by_levels(made.plan)
    gpu = device or device_of(target)
    with work.stage("codegen"), gpu.current():
        gpu.compile(list(made.table.kernels.values()))
    with work.stage("weights"):
        side_by_side = SideBySide(streams, machine.processors)
        executable = CudaExecutable(gpu=gpu, most_graphs=most_graphs, side_by_side=side_by_side, **made.found(capture))
    if made.checker is not None:
        made.checker.placed(executable)
    return executable


def device_of(target: Target) -> Device:
    """What runs kernels of a target."""
    return host_device() if target.device.type == "cpu" else torch_device(target.device.index or 0)
