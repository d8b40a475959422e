"""Runs the files of kernels on tensors: on a GPU, or, in a process with ``TRITON_INTERPRET=1``, on the CPU."""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import sympy
import torch
from torch import Tensor

from ...ir.types import concrete
from .file import KernelFile, Launch
from .fitted import fitted

DESCRIPTOR = "tl.make_tensor_descriptor"


def lend_descriptors(device: torch.device) -> None:
    """Let Triton ask PyTorch for the memory that kernels make tensor descriptors in."""
    import triton

    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device))


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="smelt-triton-")


@cache
def load(text: str) -> ModuleType:
    """The module of a kernel's source. Triton reads functions from files, so it is one."""
    name = f"kernel_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    path = Path(_folder().name) / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(kernel: KernelFile, buffers: Mapping[str, Tensor], sizes: Mapping[sympy.Symbol, int]) -> None:
    """Launch a kernel.

    Args:
        kernel: the kernel.
        buffers: a tensor that starts where each parameter and scratch buffer does, by name; ``err`` is one int64, which
            the kernel sets where an index is out of range.
        sizes: the value of each size symbol.
    """
    kernel = kernel.at(sizes)
    module = load(kernel.text)
    if DESCRIPTOR in kernel.text:
        lend_descriptors(next(iter(buffers.values())).device)
    for launch in kernel.launches:
        programs = concrete(launch.programs, sizes)
        if not programs:
            continue
        arguments: list[Any] = [buffers[name] for name in launch.buffers]
        arguments += [sizes[s] for s in launch.symbols]
        function = getattr(module, launch.function)
        if interprets():
            function[(programs,)](*arguments)
        else:
            compiled(function, launch, arguments)[(programs, 1, 1)](*arguments)


def compiled(function: Any, launch: Launch, arguments: Sequence[Any]) -> Any:
    """A function compiled for the current device by Triton, which keeps what it compiled.

    ``arguments`` are those of a launch; dtypes may stand for tensors whose memory starts at a multiple of 16 bytes.
    """
    return fitted(launch, lambda options: function.warmup(*arguments, grid=(1,), **options))


def interprets() -> bool:
    """Whether Triton interprets kernels in this process: ``TRITON_INTERPRET=1`` was set when it was imported."""
    import triton

    return bool(triton.knobs.runtime.interpret)
