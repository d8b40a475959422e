"""Artifacts on a GPU: which one and which kernels, its weights on it, and launches without Triton."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ...ir.errors import ArtifactError, BackendError, UnsupportedError
from ...ir.graph import Graph
from ..cuda.build import device_of
from ..cuda.code import CodeLauncher, bytes_on
from ..cuda.device import Device, torch_device
from ..cuda.driver import driver
from ..cuda.executable import CudaExecutable
from ..cuda.stored import RECORDS, StoredKernel
from ..cuda.target import cuda_target, interprets, present_gpu, why_none
from ..plan import Plan, TorchStep
from ..target import Target
from .gpu_plan import gpu_plan_of, graph_on, on_device
from .graphs import check_graph, read_graph
from .loader import Loader, check_places
from .manifest import EntryRecord, KernelMembers, Manifest
from .targets import GpuTargetRecord, best_gpu


@dataclass(frozen=True)
class Gpu:
    """A GPU that an artifact is loaded on.

    Attributes:
        target: what kernels that are made anew are compiled for.
        launcher: launches machine code; None where kernels are interpreted on the CPU.
        shared: the most bytes of shared memory of a block of threads.
        runner: runs stored kernels; None where kernels are interpreted.
    """

    target: Target
    launcher: CodeLauncher | None = None
    shared: int = 0
    runner: Device | None = None

    @property
    def capability(self) -> int:
        """Its compute capability, 90 for 9.0."""
        assert self.target.gpu is not None
        return self.target.gpu.capability


def find_gpu(spec: str) -> Gpu:
    """A GPU of this machine, ``"cuda"`` or ``"cuda:1"``.

    Raises:
        BackendError: there is none, or no driver.
        UnsupportedError: there is no such device, or it is older than those that kernels are made for.
    """
    if not re.fullmatch(r"cuda(:\d{1,3})?", spec):
        raise UnsupportedError(f'there is no device {spec!r}: say device="cpu", device="cuda" or device="cuda:1"')
    if not torch.cuda.is_available():
        if interprets():
            return Gpu(cuda_target())
        raise BackendError(f'device="{spec}" needs a GPU, and {why_none()}; say device="cpu"')
    target = present_gpu(int(spec[5:]) if ":" in spec else None)
    index = target.device.index or 0
    found = driver()
    launcher = CodeLauncher(
        found, index, lambda: int(torch.cuda.current_stream(index).cuda_stream), bytes_on(target.device)
    )
    return Gpu(target, launcher, found.most_shared(index), torch_device(index, launcher))


class _Resident(Mapping[str, Tensor]):
    """Weights of the file on the GPU, each copied there when it is first asked for, and once."""

    def __init__(self, values: Mapping[str, Tensor], device: torch.device) -> None:
        self._values, self._device = values, device
        self.held: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.held:
            self.held[name] = self._values[name].to(self._device)
        return self.held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values


class GpuLoader(Loader):
    """Loads an artifact on a GPU."""

    gpu: Gpu
    graphs: int
    here = "this GPU"

    def choose(self, manifest: Manifest) -> GpuTargetRecord | None:
        """The target whose machine code the GPU runs; None where kernels are made anew, which is said."""
        if self.asked == "compile":
            return None
        wanted = [r for r in manifest.targets if isinstance(r, GpuTargetRecord) and self.asked in ("auto", r.name)]
        self.check_asked(manifest)
        if not wanted:
            self.say("has no kernels for GPUs")
        elif self.gpu.launcher is None:
            self.say(f"has kernels for {', '.join(map(str, wanted))}, and TRITON_INTERPRET is set")
        else:
            chosen = best_gpu(wanted, self.gpu.capability, self.gpu.shared)
            if chosen is not None:
                return chosen
            self.say("; ".join(self._unfit(record) for record in wanted))
        return None

    def _unfit(self, record: GpuTargetRecord) -> str:
        if record.records != RECORDS:
            return f"has kernels for {record.name} that another smelt launches in another way"
        return f"has kernels for {record.name}: {record.unfit(self.gpu.capability, self.gpu.shared)}"

    def threads_text(self) -> str:
        """What the report says of where it runs."""
        return str(self.gpu.target)

    @property
    def device(self) -> torch.device:
        """Where weights and arguments lie."""
        return self.gpu.target.device

    def placed_weights(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The weights on the GPU."""
        return values if self.device.type == "cpu" else _Resident(values, self.device)

    def kept(self, made: KernelMembers) -> tuple[Plan, Any]:
        """The plan that the artifact holds, its machine code loaded."""
        assert isinstance(self.record, GpuTargetRecord)
        with self.step("plans"), self.reading():
            code = b"" if made.library is None else self.container.read(made.library)
            plan, kernels = gpu_plan_of(self.container.json(made.plan), code, self.record.machine)
            self._check(plan, kernels)
        with self.step("link"):
            assert self.gpu.launcher is not None
            for kernel in kernels:
                self.gpu.launcher.load(kernel)
        return plan, self.gpu.runner

    def _check(self, plan: Plan, kernels: Sequence[StoredKernel]) -> None:
        assert isinstance(self.record, GpuTargetRecord)
        steps = [step.node for step in plan.steps if isinstance(step, TorchStep)]
        graph = plan.graph
        check_graph(Graph(graph.inputs, (*graph.outputs, *steps), graph.mutations, graph.symbols))
        check_places(plan)
        if any(launch.shared > self.record.shared for kernel in kernels for launch in kernel.launches):
            raise ArtifactError("a launch asks for more shared memory than its target says")
        plan.steps = [
            replace(step, node=on_device(step.node, self.device)) if isinstance(step, TorchStep) else step
            for step in plan.steps
        ]

    def compiled(self, record: EntryRecord) -> tuple[Plan, Any]:
        """The plan for this GPU from the graph, its kernels compiled by Triton.

        Raises:
            BackendError: Triton is not installed.
        """
        if find_spec("triton") is None:
            raise BackendError(
                f"kernels of {self.container.path} for this GPU must be compiled, which needs the package triton: "
                'install it, export the model for this GPU, or say device="cpu"'
            )
        from .gpu import gpu_plan_for  # only who needs it pays for what makes kernels

        with self.step("compile"):
            with self.reading():
                graph = graph_on(read_graph(self.container.text(record.graph)), self.device)
            machine = self.gpu.target.gpu
            assert machine is not None
            plan = gpu_plan_for(graph, machine)
            gpu = device_of(self.gpu.target)
            kernels = {step.kernel.name: step.kernel for step in plan.steps if not isinstance(step, TorchStep)}
            with gpu.current():
                gpu.compile(list(kernels.values()))  # type: ignore[arg-type]
        return plan, gpu

    def executable(
        self, plan: Plan, how: Any, weights: Mapping[str, Tensor], fallbacks: tuple[Any, ...]
    ) -> CudaExecutable:
        """What runs a plan."""
        return CudaExecutable(
            plan=plan,
            weights=weights,
            derived={},
            graphs={},
            kernels=(),
            fallbacks=fallbacks,
            gpu=how,
            most_graphs=self.graphs,
        )
