"""The GPU that kernels are compiled for."""

from __future__ import annotations

import os
import sys
from dataclasses import fields, replace
from importlib.util import find_spec
from typing import Any

import torch

from ...codegen.gpu import GPU_MACHINES, GpuMachine
from ...codegen.machine import Machine
from ...ir.errors import BackendError, UnsupportedError
from ..target import CPU, Target

OLDEST = 80  # compute capability that kernels are compiled for: sm_80

# what PyTorch calls the figures of a GPU; those that a version does not tell stay as they are in the table
_FIGURES = {
    "processors": "multi_processor_count",
    "registers": "regs_per_multiprocessor",
    "threads": "max_threads_per_multi_processor",
    "shared_bytes": "shared_memory_per_multiprocessor",
    "block_shared_bytes": "shared_memory_per_block_optin",
}


def cuda_target(index: int | None = None) -> Target:
    """The target of a GPU, by default of PyTorch's current one, for which Triton compiles kernels.

    Without a GPU, and with ``TRITON_INTERPRET=1`` since Triton was imported, kernels run on the CPU, interpreted.

    Raises:
        BackendError: Triton is not installed, or PyTorch finds no such GPU.
        UnsupportedError: the GPU is older than those that kernels are written for.
    """
    if find_spec("triton") is None:
        raise BackendError("the CUDA target needs the package triton, which is not installed; run: pip install triton")
    if not torch.cuda.is_available():
        if interprets():
            return Target("cuda", "sm_90", (), 1, Machine(threads=1), GPU_MACHINES["sm_90"], CPU)
        raise BackendError(f'target="cuda" needs a GPU, and {why_none()}; say target="cpu", or leave it out')
    return present_gpu(index)


def present_gpu(index: int | None = None) -> Target:
    """The target of a GPU that PyTorch finds, by default of its current one.

    Raises:
        BackendError: PyTorch finds no such GPU.
        UnsupportedError: the GPU is older than those that kernels are written for.
    """
    if torch.version.hip is not None:
        raise UnsupportedError("kernels are written for NVIDIA's GPUs, and this PyTorch is built for AMD's")
    count = torch.cuda.device_count()
    number = torch.cuda.current_device() if index is None else index
    if number >= count:
        raise BackendError(f'there is no GPU {number}: PyTorch finds {count}, from "cuda:0" on')
    properties = torch.cuda.get_device_properties(number)
    capability = 10 * properties.major + properties.minor
    if capability < OLDEST:
        raise UnsupportedError(
            f"{properties.name} has compute capability {properties.major}.{properties.minor}, and kernels are written "
            "for 8.0 and later"
        )
    machine = machine_of(capability, properties)
    return Target("cuda", f"sm_{capability}", (), 1, Machine(threads=1), machine, torch.device("cuda", number))


def machine_of(capability: int, properties: Any) -> GpuMachine:
    """What schedules need to know of a GPU, from PyTorch's figures of it and the table for what is missing there."""
    known = max((m for m in GPU_MACHINES.values() if m.capability <= capability), key=lambda m: m.capability)
    names = {f.name for f in fields(GpuMachine)}
    told = {ours: int(getattr(properties, theirs, 0) or 0) for ours, theirs in _FIGURES.items() if ours in names}
    return replace(known, capability=capability, **{name: value for name, value in told.items() if value})


def interprets() -> bool:
    """Whether Triton interprets in this process, or will."""
    if "triton" not in sys.modules:
        return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
    from ...codegen.triton import launch  # it needs Triton

    return launch.interprets()


def why_none() -> str:
    """Why PyTorch finds no GPU."""
    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) is built without CUDA"
    return "PyTorch finds none: see nvidia-smi, and CUDA_VISIBLE_DEVICES"
