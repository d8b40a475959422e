"""Every launch of some models twice, to a driver that is played: by Triton's own launcher, and from an artifact.

Run as a program, it prints both as JSON. ``libcuda.so.1`` must be the played one, and whether Triton interprets is
fixed when it is imported: this is a process of its own.
"""

from __future__ import annotations

import ctypes
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import smelt
from smelt.codegen.gpu import GPU_MACHINES, GpuMatmulSchedule, GpuSchedule
from smelt.codegen.gpu_schedule import default_gpu_schedule
from smelt.codegen.machine import Machine
from smelt.codegen.program import Program
from smelt.codegen.triton.loaded import Loaded
from smelt.runtime.artifact import export, gpu, gpu_load
from smelt.runtime.cuda.code import CodeLauncher
from smelt.runtime.cuda.device import host_device, names_of
from smelt.runtime.cuda.driver import driver
from smelt.runtime.cuda.stored import SizeArgument, Sizes, StoredKernel
from smelt.runtime.gpu import GpuKernel
from smelt.runtime.plan import KernelStep, Plan
from smelt.runtime.target import Target
from smelt.tools.zoo import ZOO

MACHINE = GPU_MACHINES["sm_90"]
STREAM = 0x7E11
PLAN_FOR = gpu.gpu_plan_for


class Twins(CodeLauncher):
    """Launches from the artifact, then by Triton, on the same tensors.

    Attributes:
        kernels: those that Triton launches, by name.
        found: the lines that arrived of each.
    """

    def __init__(self) -> None:
        super().__init__(driver(), 0, lambda: STREAM, lambda nbytes: torch.empty(nbytes, dtype=torch.uint8))
        self.library = ctypes.CDLL("libcuda.so.1")
        self.library.fake_log.restype = ctypes.c_char_p
        self.kernels: dict[str, GpuKernel] = {}
        self.found: list[tuple[list[str], list[str]]] = []

    def __call__(self, kernel: StoredKernel, sizes: Sizes) -> tuple[Callable[[Sequence[Tensor]], None], int]:
        ours, count = super().__call__(kernel, sizes)
        twin = self.kernels[kernel.name]
        theirs = Loaded(twin.file, names_of(twin), sizes)

        def run(tensors: Sequence[Tensor]) -> None:
            for launch in kernel.at(sizes):
                given = [x.bits // 8 if isinstance(x, SizeArgument) else 8 for x in launch.arguments]
                assert not self.library.fake_expect(
                    launch.function.encode(), len(given), (ctypes.c_int * len(given))(*given)
                )
            self.found.append((self.lines(lambda: ours(tensors)), self.lines(lambda: theirs(tensors))))

        return run, count

    def lines(self, run: Callable[[], None]) -> list[str]:
        """What arrives meanwhile."""
        self.library.fake_clear()
        run()
        text: bytes = self.library.fake_log()
        return [line for line in text.decode().splitlines() if line.startswith("launch")]


class Wide(nn.Module):
    """A product of half types that is read by tensor descriptors, for which kernels are lent memory."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(256, 512, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x)  # type: ignore[no-any-return]


def by_descriptors(program: Program) -> GpuSchedule:
    """The default schedule, reading by tensor descriptors."""
    found = default_gpu_schedule(program, MACHINE)
    return replace(found, tma=True, dot=True) if isinstance(found, GpuMatmulSchedule) else found


def played_triton() -> None:
    """Let Triton launch by its own launcher, on a GPU of sm_90 that is not there."""
    import triton
    from triton.backends.nvidia.driver import CudaDriver

    found: Any = CudaDriver()
    found.get_current_device = lambda: 0
    found.get_device_capability = lambda device: (9, 0)
    found.get_current_stream = lambda device: STREAM
    triton.runtime.driver.set_active(found)


def twins_of(name: str, model: nn.Module, args: Any, kwargs: Any, calls: Sequence[Any], schedules: Any) -> Any:
    """The lines of every launch of a model, ours and Triton's."""
    twins, plans = Twins(), list[Plan]()

    def remembered(graph: Any, machine: Any, chosen: Any = None) -> Plan:
        plans.append(PLAN_FOR(graph, machine, schedules))
        return plans[-1]

    gpu.gpu_plan_for = remembered  # type: ignore[assignment]
    target = Target("cuda", "sm_90", (), 1, Machine(threads=1), MACHINE)
    gpu_load.find_gpu = lambda spec: gpu_load.Gpu(target, twins, 227 << 10, host_device(twins))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.smelt"
        export.export(model, args, kwargs, target="sm_90").save(path)
        steps = [step for step in plans[-1].steps if isinstance(step, KernelStep)]
        twins.kernels = {step.kernel.name: step.kernel for step in steps}  # type: ignore[misc]
        loaded = smelt.load(path, device="cuda", graphs=0)
        for given in calls:
            loaded(*given[0], **given[1])
    return {"name": name, "twins": twins.found}


def main() -> None:
    """Print the lines of all models."""
    played_triton()
    found = []
    torch.manual_seed(0)
    for name in sys.argv[1:]:
        model, args, kwargs = ZOO[name].make(tiny=True)
        calls = [(args, kwargs), (args, kwargs)]
        if name == "two-layer-mlp":
            calls.append((tuple(torch.cat([x, x, x]) for x in args), kwargs))
        found.append(twins_of(name, model, args, kwargs, calls, None))
    wide, x = Wide().eval().to(torch.bfloat16), torch.randn(300, 256).to(torch.bfloat16)
    found.append(twins_of("descriptors", wide, (x,), {}, [((x,), {}), ((x[:64].clone(),), {})], by_descriptors))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
