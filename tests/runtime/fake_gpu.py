"""A GPU that is played on the CPU: what was launched, captured, replayed and waited for is written down.

Kernels are what their regions mean. Work is done at once, in the order in which it is given, and a graph repeats its
launches on the very tensors that it was captured with, as a CUDA graph does with addresses.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import smelt
from smelt.codegen.gpu import GPU_MACHINES
from smelt.codegen.machine import Machine
from smelt.ir.interpret import interpret
from smelt.runtime.cuda import build
from smelt.runtime.cuda.device import Event, Graph, _HostDevice, out_of_memory
from smelt.runtime.cuda.executable import CudaExecutable
from smelt.runtime.gpu import GpuKernel
from smelt.runtime.placement import Sizes
from smelt.runtime.target import Target

TARGET = Target("cuda", "sm_90", (), 1, Machine(threads=1), GPU_MACHINES["sm_90"], torch.device("cpu"))


class FakeGpu(_HostDevice):
    """Attributes:
    log: what was done, in order: "launch NAME", "capture", "replay", "wait", "synchronize".
    now: the current stream.
    room: bytes that may live at once; None for all.
    live: bytes that were given and live.
    late: whether marks say that work is not done yet.
    busy: whether somebody captures the current stream.
    broken: whether captures fail.
    """

    def __init__(self) -> None:
        super().__init__(self._kernel)
        self.log: list[str] = []
        self.now: Any = "stream 0"
        self.room: int | None = None
        self.live = 0
        self.late = self.busy = self.broken = False
        self.released = 0

    # --- memory -------------------------------------------------------------------------------------------------------

    def empty(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        made = super().empty(shape, strides, dtype)
        nbytes = made.untyped_storage().nbytes()
        if self.room is not None and self.live + nbytes > self.room:
            raise out_of_memory(nbytes, self, "CUDA out of memory.")
        self.live += nbytes
        weakref.finalize(made.untyped_storage(), self._free, nbytes)
        return made.fill_(77)  # nobody may rely on zeros

    def _free(self, nbytes: int) -> None:
        self.live -= nbytes

    def memory(self) -> tuple[int, int] | None:
        return None if self.room is None else (self.room - self.live, self.room)

    def release(self) -> None:
        self.released += 1

    # --- work ---------------------------------------------------------------------------------------------------------

    def _kernel(self, kernel: GpuKernel, sizes: Sizes) -> tuple[Callable[[Sequence[Tensor]], None], int]:
        inputs, outputs = len(kernel.program.inputs), len(kernel.program.outputs)

        def launch(tensors: Sequence[Tensor]) -> None:
            self.log.append(f"launch {kernel.name}")
            operands = [_shaped(x, n.shape, sizes) for x, n in zip(tensors, kernel.region.inputs, strict=False)]
            try:
                found = interpret(kernel.region, operands, {}, sizes=sizes).outputs
            except IndexError:
                tensors[-1].fill_(1)
                return
            for memory, value in zip(tensors[inputs : inputs + outputs], found, strict=True):
                memory.copy_(value)

        return launch, 1

    def capture(self, work: Callable[[], None]) -> Graph:
        self.log.append("capture")
        if self.broken:
            raise RuntimeError("operation not permitted when stream is capturing")
        graph = super().capture(work)
        return _Counted(graph, self.log)

    def stream(self) -> Any:
        return self.now

    def used_on(self, tensors: Sequence[Tensor], stream: Any) -> None:
        self.log.append(f"{len(tensors)} used on {stream}")

    def mark(self) -> Event:
        return _Mark(self, self.now)

    def is_capturing(self) -> bool:
        return self.busy

    def taken(self) -> list[str]:
        """The log since it was last taken."""
        found, self.log[:] = list(self.log), []
        return found


def _shaped(tensor: Tensor, shape: Sequence[Any], sizes: Sizes) -> Tensor:
    wanted = [int(d) if isinstance(d, int) else int(d.subs(dict(sizes))) for d in shape]
    return tensor.flatten()[:0].reshape(wanted) if 0 in wanted else tensor


class _Counted:
    def __init__(self, graph: Graph, log: list[str]) -> None:
        self._graph, self._log, self.nbytes = graph, log, 1000

    def replay(self) -> None:
        self._log.append("replay")
        self._graph.replay()


class _Mark:
    def __init__(self, gpu: FakeGpu, stream: Any) -> None:
        self._gpu, self._stream, self._waited = gpu, stream, False

    def wait(self) -> None:
        self._gpu.log.append(f"{self._gpu.now} waits for {self._stream}")

    def done(self) -> bool:
        return self._waited or not self._gpu.late

    def synchronize(self) -> None:
        self._gpu.log.append("synchronize")
        self._waited = True


@contextmanager
def playing(gpu: FakeGpu | None = None) -> Iterator[FakeGpu]:
    """Models that are compiled for ``TARGET`` meanwhile run on this device."""
    played = gpu or FakeGpu()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "device_of", lambda target: played)
        yield played


def executable_of(fast: smelt.CompiledModule, number: int = 0) -> CudaExecutable:
    """The executable of a capture."""
    found = fast.entries[number].executable
    assert isinstance(found, CudaExecutable)
    return found
