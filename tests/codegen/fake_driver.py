"""Triton's way from a launch to machine code and back, without a GPU: kernels are compiled, and no launch arrives.

Run as a program, it prints what was compiled and launched as JSON. Whether Triton interprets is fixed for a process
when it is imported, so this is one of its own.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from smelt.codegen.gpu import GPU_MACHINES
from smelt.codegen.triton import fitted
from smelt.codegen.triton.loaded import Loaded, compile_ahead
from smelt.frontend.export import capture
from smelt.runtime.cuda.device import names_of
from smelt.runtime.gpu import GpuKernel, gpu_model


class Utils:
    """What Triton asks of the driver's library."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10, "multiprocessor_count": 132, "max_num_regs": 65536, "warpSize": 32}

    def load_binary(self, name: str, code: bytes, shared: int, device: int) -> tuple[Any, ...]:
        self.log.append(("load", name, device))
        return object(), 1, 32, 0, 1024


class Driver:
    """A driver that has one GPU of sm_90, to which no launch arrives."""

    def __init__(self) -> None:
        from triton.backends.compiler import GPUTarget

        self.log: list[Any] = []
        self.limits: list[int | None] = []  # on registers, of each launch
        self.utils = Utils(self.log)
        self.target = GPUTarget("cuda", 90, 32)

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 7

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def launch(x: int, y: int, z: int, stream: int, function: Any, packed: Any, *rest: Any) -> None:
            given = [a for a in rest if isinstance(a, torch.Tensor | int)]
            self.limits.append(metadata.maxnreg)
            given = [a.data_ptr() if isinstance(a, torch.Tensor) else a for a in given]
            self.log.append(("launch", metadata.name, [x, y, z], stream, given))

        return launch


def launched(kernel: GpuKernel, rows: int) -> tuple[Loaded, list[torch.Tensor]]:
    """A kernel's launches for that many rows, and tensors for them."""
    sizes = {s.symbol: rows for s in kernel.region.symbols}
    program = kernel.program
    params = (*program.inputs, *program.outputs, *kernel.scratch)
    tensors = [torch.empty(4096, dtype=p.type.dtype) for p in params]
    return Loaded(kernel.file, names_of(kernel), sizes), [*tensors, torch.zeros(1, dtype=torch.int64)]


def spilling(kernel: GpuKernel) -> None:
    """Launch a kernel twice, as if its functions spilled with fewer than 168 registers."""
    fitted._spills = lambda compiled: 0 if (compiled.metadata.maxnreg or 0) >= 168 else 8
    loaded, tensors = launched(kernel, 5)
    for _ in range(2):
        loaded(tensors)


def main() -> None:
    """Compile the kernels of a small model ahead, and launch each for two sizes, twice."""
    import triton

    driver = Driver()
    triton.runtime.driver.set_active(driver)
    model = nn.Sequential(nn.Embedding(9, 16), nn.LayerNorm(16), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)).eval()
    found = gpu_model(capture(model, (torch.zeros(5, dtype=torch.int64),)), GPU_MACHINES["sm_90"])
    kernels = [kernel for kernel, _ in found.kernels]
    compiled: list[str] = []
    compile_source = triton.compiler.compile

    def counted(src: Any, *args: Any, **kwargs: Any) -> Any:
        compiled.append(src.name)
        return compile_source(src, *args, **kwargs)

    import triton.runtime.jit as jit

    for module in (triton.compiler, jit):
        if hasattr(module, "compile"):
            module.compile = counted
    jit.JITFunction.compile = staticmethod(counted)
    compile_ahead([kernel.file for kernel in kernels], 2)
    ahead = len(compiled)
    expected = []
    for rows in (5, 70):
        for kernel in kernels:
            loaded, tensors = launched(kernel, rows)
            for _ in range(2):
                loaded(tensors)
            expected.append(loaded.launches)
    unlimited, driver.limits[:] = list(driver.limits), []
    total, loads = len(compiled), sum(entry[0] == "load" for entry in driver.log)
    launches = [entry[1:] for entry in driver.log if entry[0] == "launch"]
    spilling(kernels[0])
    print(
        json.dumps(
            {
                "version": triton.__version__,
                "functions": sum(len(kernel.file.launches) for kernel in kernels),
                "ahead": ahead,
                "compiled": total,
                "loaded": loads,
                "expected": 2 * sum(expected),
                "launches": launches,
                "unlimited": unlimited,
                "limited": driver.limits,
            }
        )
    )


if __name__ == "__main__":
    main()
