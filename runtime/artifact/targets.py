"""The processors and GPUs that an artifact has kernels for, and which of them fit those that it is loaded on."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ...codegen.gpu import GPU_MACHINES, GpuMachine
from ...codegen.machine import Machine
from ...ir.errors import ArtifactError, UnsupportedError
from ..cuda.stored import RECORDS, number
from ..target import Target, machine_of, require_tvm, usable_cores
from .names import member_name

MOST_SHARED = 228 << 10  # bytes of any GPU's processor
TEGRA = (72, 87, 101)  # GPUs of systems on a chip, which run no code that was made for others
GENERIC = ("x86-64-v2", "x86-64-v3", "x86-64-v4")
_CPUINFO = Path("/proc/cpuinfo")
# What Linux calls otherwise than LLVM; the others differ in underscores only.
_LLVM_NAMES = {
    "pni": "sse3",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "abm": "lzcnt",
    "bmi1": "bmi",
    "amx_tile": "amx-tile",
    "amx_bf16": "amx-bf16",
    "amx_int8": "amx-int8",
    "amx_fp16": "amx-fp16",
    "amx_complex": "amx-complex",
}


@dataclass(frozen=True)
class TargetRecord:
    """A processor that an artifact has kernels for.

    Attributes:
        name: LLVM's name of it.
        features: the extensions that code may use, which a processor must have to run it.
        system, architecture: ``Linux``, ``x86_64``.
        machine: what schedules were made for.
    """

    name: str
    features: tuple[str, ...]
    system: str
    architecture: str
    machine: Machine

    @classmethod
    def of(cls, target: Target) -> TargetRecord:
        """The record of a target."""
        from ...codegen.tvm.processor import needed  # only a target that runs on TVM needs it

        features = tuple(sorted(needed(target.features)))
        return cls(target.cpu, features, platform.system(), platform.machine(), target.machine)

    def to_dict(self) -> dict[str, Any]:
        """The record as data for JSON."""
        return asdict(self) | {"features": list(self.features)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TargetRecord:
        """The record that :meth:`to_dict` wrote.

        Raises:
            ArtifactError, KeyError, TypeError: the data is damaged.
        """
        features = data["features"]
        texts = [data["system"], data["architecture"], *features]
        if not isinstance(features, list) or not all(isinstance(text, str) and len(text) < 100 for text in texts):
            raise ArtifactError("a target's features are damaged")
        name = member_name(data["name"])
        return cls(name, tuple(features), data["system"], data["architecture"], Machine(**data["machine"]))

    def missing(self) -> list[str] | None:
        """The features that this processor lacks; None where it is not known, or of another kind altogether."""
        present = present_features()
        if (self.system, self.architecture) != (platform.system(), platform.machine()) or present is None:
            return None
        return sorted(set(self.features) - present)

    def __str__(self) -> str:
        return f"{self.name}, {self.machine.vector_bits}-bit vectors"


@dataclass(frozen=True)
class GpuTargetRecord:
    """A GPU that an artifact has kernels for.

    Attributes:
        name: NVIDIA's name of its architecture, ``sm_90``.
        arch: what the code was made for, which may use more than others of that number have: ``sm_90a``.
        shared: the most bytes of shared memory that a launch asks for.
        records: the number of the form that launches are told in.
        machine: what schedules were made for.
    """

    name: str
    arch: str
    shared: int
    records: int
    machine: GpuMachine

    @classmethod
    def of(cls, machine: GpuMachine, arch: str, shared: int) -> GpuTargetRecord:
        """The record of code for a GPU."""
        return cls(f"sm_{machine.capability}", arch, shared, RECORDS, machine)

    def with_shared(self, shared: int) -> GpuTargetRecord:
        """The record of more code for the same GPU."""
        return replace(self, shared=max(self.shared, shared))

    def to_dict(self) -> dict[str, Any]:
        """The record as data for JSON."""
        return {"kind": "cuda"} | asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GpuTargetRecord:
        """The record that :meth:`to_dict` wrote.

        Raises:
            ArtifactError, KeyError, TypeError: the data is damaged.
        """
        figures = data["machine"]
        if set(figures) != {field.name for field in fields(GpuMachine)}:
            raise ArtifactError("a target's GPU is damaged")
        machine = GpuMachine(**figures)
        capability = number(machine.capability, 1, 999)
        number(machine.block_shared_bytes, 0, MOST_SHARED)
        arch = data["arch"]
        if not isinstance(arch, str) or not re.fullmatch(rf"sm_{capability}[af]?", arch):
            raise ArtifactError("a target's code is for no GPU that there is")
        if data["name"] != f"sm_{capability}":
            raise ArtifactError("a target has another name than its GPU")
        shared, records = number(data["shared"], 0, MOST_SHARED), number(data["records"], 0, 1 << 30)
        return cls(data["name"], arch, shared, records, machine)

    def unfit(self, capability: int, shared: int) -> str | None:
        """Why a GPU cannot run the code; None where it can.

        Args:
            capability: its compute capability, 90 for 9.0.
            shared: the most bytes of shared memory that it gives a block of threads.
        """
        made = self.machine.capability
        if self.arch.endswith("a") and capability != made:
            return f"{self.arch} code runs on no other GPU than sm_{made}, and this one is sm_{capability}"
        if capability // 10 != made // 10 or capability < made or (capability in TEGRA and capability != made):
            return f"{self.arch} code does not run on sm_{capability}"
        if self.shared > shared:
            return f"it needs {self.shared:,} bytes of shared memory in a program, and this GPU has {shared:,}"
        return None

    def __str__(self) -> str:
        return f"{self.name}, {self.arch} code"


AnyRecord = TargetRecord | GpuTargetRecord


def record_of(data: Mapping[str, Any]) -> AnyRecord:
    """The record of either kind that ``to_dict`` wrote.

    Raises:
        ArtifactError, KeyError, TypeError: the data is damaged.
    """
    kind = data.get("kind", "cpu")
    if kind not in ("cpu", "cuda"):
        raise ArtifactError("a target is of no kind that there is")
    return GpuTargetRecord.from_dict(data) if kind == "cuda" else TargetRecord.from_dict(data)


def best_gpu(records: Sequence[GpuTargetRecord], capability: int, shared: int) -> GpuTargetRecord | None:
    """The newest target whose code a GPU runs; None where it runs none."""
    fitting = [r for r in records if r.unfit(capability, shared) is None and r.records == RECORDS]
    return max(fitting, key=lambda record: record.machine.capability, default=None)


def present_features(cpuinfo: Path = _CPUINFO) -> frozenset[str] | None:
    """The features of this processor under LLVM's names, as Linux lists them; None where it does not."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), None)
    if flags is None:
        return None
    return frozenset(_LLVM_NAMES.get(f, f.replace("_", "")) for f in flags.partition(":")[2].split())


def best(records: Sequence[TargetRecord]) -> TargetRecord | None:
    """The target that uses most of this processor, of those that it can run; None where it can run none."""
    fitting = [record for record in records if record.missing() == []]
    return max(fitting, key=lambda record: (record.machine.vector_bits, len(record.features)), default=None)


def named_target(spec: str | Target, threads: int | None = None) -> Target:
    """The target of that name: ``"auto"`` is this machine's processor, others are LLVM's names of processors.

    Kernels for another processor are made for this machine's caches. ``"sm_90"`` and the like are GPUs that need not be
    there, ``"cuda"`` and ``"cuda:1"`` those of this machine.

    Raises:
        UnsupportedError: there is no such target.
        BackendError: the package of the backend is not installed.
    """
    if not isinstance(spec, str | Target):
        raise UnsupportedError(f'there is no target {spec!r}: give names, such as "auto", "{GENERIC[1]}" or "sm_90"')
    kind = spec.kind if isinstance(spec, Target) else spec.partition(":")[0]
    if kind == "cuda" or kind.startswith("sm_"):
        return _gpu_target(spec)
    if isinstance(spec, Target) or spec in ("auto", "cpu"):
        return Target.detect(spec, threads)
    host = Target.detect("auto", threads)
    features = _features_of(spec)
    machine = machine_of(features, platform.machine(), host.threads)
    return Target("cpu", spec, features, host.threads, machine)


def _gpu_target(spec: str | Target) -> Target:
    name = spec if isinstance(spec, str) else spec.cpu
    if name in GPU_MACHINES and isinstance(spec, str):
        return Target("cuda", name, (), 1, Machine(threads=1), GPU_MACHINES[name])
    if name.startswith("sm_") and isinstance(spec, str):
        raise UnsupportedError(f"there is no target {name!r}: of GPUs there are {', '.join(GPU_MACHINES)}")
    found = Target.detect(spec)
    # the kernels are for its GPU, wherever the model is
    return replace(found, device=torch.device("cpu"))


def _features_of(name: str) -> tuple[str, ...]:
    require_tvm()
    from ...codegen.tvm.processor import features_of  # only a target that runs on TVM needs it

    found = features_of(name)
    if not found:
        raise UnsupportedError(
            f"there is no target {name!r} yet: smelt compiles for processors of this kind only, named as LLVM names "
            f'them: "auto", "{GENERIC[1]}", "{GENERIC[2]}"'
        )
    return found


def threads_of(threads: int | None) -> int:
    """How many threads kernels may use.

    Raises:
        ValueError: the number is not positive.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ValueError(f"threads is {threads!r}: give a whole number from 1, or None for all cores")
    return threads or usable_cores()
