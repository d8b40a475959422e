"""Stored kernels by Triton's interpreter: their records say what is launched, the artifact's source what it computes.

For processes that interpret. Each launch is done as the driver's would be, from the record alone: the function by its
name, the grid, and the arguments in order.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from smelt.codegen.triton.launch import load
from smelt.ir.types import concrete
from smelt.runtime.artifact import gpu_load
from smelt.runtime.artifact.gpu_load import Gpu
from smelt.runtime.cuda.device import host_device
from smelt.runtime.cuda.stored import SizeArgument, Sizes, StoredKernel, StoredLaunch, TensorArgument

from .fake_gpu import TARGET

_HEAD = re.compile(r"^# (\w+), offsets of (32|64) bits\n", re.MULTILINE)


class InterpretedCode:
    """Stands in for the launcher of machine code."""

    def __init__(self, source: str) -> None:
        parts = _HEAD.split(source)[1:]
        self._texts = {
            (name, int(bits)): text for name, bits, text in zip(*(parts[i::3] for i in range(3)), strict=True)
        }
        self.launched: list[str] = []

    def load(self, kernel: StoredKernel) -> None:
        pass

    def __call__(self, kernel: StoredKernel, sizes: Sizes) -> tuple[Callable[[Sequence[Tensor]], None], int]:
        def run(tensors: Sequence[Tensor]) -> None:
            for launch in kernel.at(sizes):
                programs = concrete(launch.programs, sizes)
                if programs:
                    self.launched.append(launch.function)
                    self._function(kernel, launch)[(programs,)](*_given(launch, tensors, sizes))

        return run, len(kernel.at(sizes))

    def _function(self, kernel: StoredKernel, launch: StoredLaunch) -> Any:
        given = {x.bits for x in launch.arguments if isinstance(x, SizeArgument)}
        file = f"{kernel.name}_alone" if launch in (kernel.alone or ()) else kernel.name
        kinds = [bits for name, bits in self._texts if name == file]
        (bits,) = given or set(kinds[-1:])
        return getattr(load(self._texts[file, bits]), launch.function)


def _given(launch: StoredLaunch, tensors: Sequence[Tensor], sizes: Sizes) -> list[Any]:
    """The arguments but for scratch memory, which the interpreter needs none of, and which comes last."""
    found: list[Any] = []
    for argument in launch.arguments:
        if isinstance(argument, TensorArgument):
            found.append(tensors[argument.place])
        elif isinstance(argument, SizeArgument):
            found.append(sizes[argument.symbol])
    return found


def loaded(path: Path, target: str, patch: pytest.MonkeyPatch) -> tuple[Any, InterpretedCode]:
    """An artifact with one entry point whose machine code for a target is interpreted from its source."""
    import smelt

    code = InterpretedCode(zipfile.ZipFile(path).read(f"forward/{target}/kernels.py").decode())
    assert TARGET.gpu is not None
    machine = replace(TARGET.gpu, capability=int(target.removeprefix("sm_")))
    device = torch.device("cpu")
    gpu = Gpu(replace(TARGET, gpu=machine, device=device), code, 227 << 10, host_device(code))  # type: ignore[arg-type]
    patch.setattr(gpu_load, "find_gpu", lambda spec: gpu)
    return smelt.load(path, device="cuda"), code
