"""Targets: what kernels are compiled for and run on."""

from __future__ import annotations

import json
import os
import platform
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..codegen.gpu import GpuMachine
from ..codegen.machine import Machine
from ..codegen.tvm.loading import INSTALL
from ..ir.errors import BackendError, UnsupportedError
from .linker import find_linker
from .processor import kept_processor

CPU = torch.device("cpu")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Target:
    """A processor that kernels are compiled for, and how many threads they may use.

    Attributes:
        kind: ``"cpu"`` or ``"cuda"``.
        cpu: LLVM's name of the processor; NVIDIA's of a GPU's architecture.
        features: LLVM's names of the instruction set extensions that are there.
        threads: how many threads a kernel may use.
        machine: vector registers and caches, which schedules are made from.
        gpu: the same of a GPU; None for a CPU.
        device: where weights, arguments and results lie; the CPU too where Triton interprets.
    """

    kind: str
    cpu: str
    features: tuple[str, ...]
    threads: int
    machine: Machine
    gpu: GpuMachine | None = None
    device: torch.device = CPU

    @classmethod
    def detect(cls, spec: str | Target = "auto", threads: int | None = None) -> Target:
        """The target of that name on this machine.

        ``"auto"`` and ``"cpu"`` are its processor, ``"cuda"`` is PyTorch's current GPU and ``"cuda:1"`` the second one.

        Args:
            spec: a name, or a target, which is returned as it is but for the threads.
            threads: how many threads kernels may use; by default all cores that this process may run on.

        Raises:
            UnsupportedError: the name is that of a target there is no backend for.
            BackendError: the package of the backend is not installed, or there is no such GPU.
            ValueError: the number of threads is not positive.
        """
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads is {threads!r}: give a whole number from 1, or None for all cores")
        if isinstance(spec, Target):
            return spec if threads is None else spec.with_threads(threads)
        if isinstance(spec, str) and re.fullmatch(r"cuda(:\d+)?", spec):
            from .cuda.target import cuda_target  # which imports this

            return cuda_target(int(spec[5:]) if ":" in spec else None)
        if isinstance(spec, str) and spec.startswith("sm_"):
            raise UnsupportedError(
                f'target="{spec}" is for files, as smelt.export makes them: to run a model say target="cuda"'
            )
        if spec not in ("auto", "cpu"):
            raise UnsupportedError(f'there is no target {spec!r}: say target="cpu", target="cuda" or target="auto"')
        return _host(threads or usable_cores())

    def with_threads(self, threads: int) -> Target:
        """The same processor with another number of threads."""
        return replace(self, threads=threads, machine=replace(self.machine, threads=threads))

    @property
    def fingerprint(self) -> str:
        """What compiling a given source depends on: native code is only good where this is equal.

        Threads, registers and caches are left out: they show in the source.
        """
        return json.dumps([self.kind, self.cpu, self.features, platform.system(), platform.machine()])

    def __str__(self) -> str:
        if self.gpu is not None:
            where = f"{self.device}" if self.device.type == "cuda" else "interpreted on the CPU"
            return f"cuda {self.cpu}, {self.gpu.processors} processors, {where}"
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}"
        return f"{self.kind} {self.cpu}, {self.machine.vector_bits}-bit vectors, {threads}"


def usable_cores() -> int:
    """The number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def within_cores(target: Target) -> Target:
    """A target with no more threads than this process has cores, and a warning where it had more.

    Kernels are made for other machines, too, by ``smelt.export``: what is called here is not.
    """
    cores = usable_cores()
    if target.kind != "cpu" or target.threads <= cores:
        return target
    have = f"this process may run on {cores} core{'s' if cores != 1 else ''}"
    warnings.warn(f"threads is {target.threads}, and {have}: {cores} will be used", UserWarning, stacklevel=3)
    return target.with_threads(cores)


def pool_threads(threads: int) -> int:
    """As many of these threads as TVM's pool can have in this process."""
    try:
        limit = int(os.environ.get("TVM_NUM_THREADS", ""))
    except ValueError:
        return threads
    return min(threads, limit) if limit > 0 else threads


def require_tvm() -> None:
    """Raise BackendError, with the command that installs it, where apache-tvm is absent."""
    if find_spec("tvm") is None:
        raise BackendError(f"the CPU target needs the package apache-tvm, which is not installed; run: {INSTALL}")


def _host(threads: int) -> Target:
    require_tvm()
    # TVM would tie the calling thread to one core, and so every thread that PyTorch starts from it later.
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    # The most threads that its pool can ever have, half of the cores by default; how many run is said for each call.
    os.environ.setdefault("TVM_NUM_THREADS", str(usable_cores()))
    try:
        processor = kept_processor(compiles=usable_cores() > 1 and find_linker() is not None)
    except ImportError as error:
        raise BackendError(f"apache-tvm cannot be imported ({error}); install it again: {INSTALL}") from error
    machine = machine_of(processor.features, platform.machine(), threads)
    return Target("cpu", processor.name, processor.features, threads, machine)


def machine_of(features: Iterable[str], architecture: str, threads: int) -> Machine:
    """The register file and caches that schedules are made for, from LLVM's feature names."""
    present = set(features)
    if architecture.lower() in ("aarch64", "arm64"):
        vector: dict[str, Any] = {"vector_bits": 128, "registers": 32}
    elif {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= present:
        vector = {"vector_bits": 512, "registers": 32, "has_bf16_dot": "avx512bf16" in present}
        vector["has_vnni"] = "avx512vnni" in present
    else:
        vector = {"vector_bits": 256 if {"avx2", "fma"} <= present else 128, "registers": 16}
    return Machine(threads=threads, **(vector | _cache_sizes()))


def _cache_sizes(folder: Path = _CACHES) -> dict[str, int]:
    """The data caches of one core as arguments of Machine; empty where the system does not tell."""
    found: dict[str, int] = {}
    for cache in sorted(folder.glob("index*")):
        try:
            level, kind, size = ((cache / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        match = re.fullmatch(r"(\d+)([KMG]?)", size)
        if match and kind != "Instruction" and level in ("1", "2") and int(match[1]) > 0:
            found[f"l{level}_bytes"] = int(match[1]) * _UNITS[match[2]]
    return found
