"""From a captured model to kernels for a GPU: the passes of ``runtime.build``, with Triton in place of TVM.

Neither TVM nor a GPU is needed here. What a kernel cannot be made of is listed, and is PyTorch's to run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import ClassVar

import sympy

from ..codegen.gpu import GpuMachine, GpuSchedule
from ..codegen.gpu_schedule import default_gpu_schedule, in_tf32
from ..codegen.lower import Operand
from ..codegen.program import Param, Program
from ..codegen.schedule_data import LibrarySchedule
from ..codegen.triton.expression import ERROR
from ..codegen.triton.file import KernelFile
from ..codegen.triton.module import emit
from ..frontend.capture import Capture
from ..ir import ops
from ..ir.cost import work_of
from ..ir.errors import UnsupportedError
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.types import concrete
from ..rewrites.context import Context
from ..rewrites.fusion import FusionReport, fuse
from ..rewrites.log import Fuel, Log
from ..rewrites.pipeline import passes_for, run_pipeline
from ..rewrites.quantization import Quantization, Quantized
from .gpu_library import LibraryKernel
from .gpu_narrow import narrowed
from .kernels import Kernels, finalise, in_place_of, region_of, strides_of_value

Schedules = Callable[[Program], GpuSchedule | LibrarySchedule | None]


@dataclass(frozen=True)
class GpuKernel:
    """One kernel: the region that it computes, and how."""

    name: str
    region: Graph
    program: Program
    schedule: GpuSchedule | LibrarySchedule
    file: KernelFile
    in_place: tuple[tuple[int, int], ...] = ()

    @property
    def source(self) -> str:
        """The file's text."""
        return self.file.text

    @property
    def scratch(self) -> tuple[Param, ...]:
        """The memory that it is lent while it runs."""
        return self.file.scratch

    @property
    def files(self) -> tuple[KernelFile, ...]:
        """All that is to be compiled."""
        return (self.file,)

    @property
    def checks_indices(self) -> bool:
        """Whether it may report an index out of range."""
        return any(ERROR in launch.buffers for file in self.files for launch in file.launches)

    @property
    def reads(self) -> int:
        """How many tensors of its step are only read; they come first."""
        return len(self.program.inputs)

    def programs(self, sizes: Mapping[sympy.Symbol, int]) -> int:
        """How many programs its largest launch has at some sizes."""
        return max((concrete(launch.programs, sizes) for launch in self.file.launches), default=0)

    @property
    def operators(self) -> tuple[str, ...]:
        """What it computes, by operator name."""
        return tuple(n.op.name for n in work_of(self.region))


@dataclass(frozen=True)
class GpuLibraryKernel(GpuKernel):
    """A kernel that a library computes, in place of the file's functions; kernels around the call have files."""

    library: LibraryKernel = field(kw_only=True)

    @property
    def source(self) -> str:
        """What is called, and the files around it."""
        return "\n\n".join([f"# by PyTorch: {self.library.schedule.name}\n", *(x.text for x in self.files)])

    @property
    def scratch(self) -> tuple[Param, ...]:
        """The memory that it is lent while it runs, that of the kernels around the call as well."""
        return (*self.library.scratch, *(p for part in self.library.parts for p in lent_to(part)))

    @property
    def files(self) -> tuple[KernelFile, ...]:
        """Those of the kernels around the call."""
        return tuple(part.file for part in self.library.parts)


def lent_to(part: GpuKernel) -> tuple[Param, ...]:
    """The scratch memory of a kernel beside a library's call, by names that no other has."""
    return tuple(replace(p, name=f"{part.name}.{p.name}") for p in part.scratch)


@dataclass
class GpuKernelTable(Kernels[GpuKernel]):
    """The kernels of a graph for a GPU.

    ``schedules`` gives the schedule of a program where another than the default one was chosen for it. With ``tf32``
    products of float32 round their operands to TensorFloat-32 where tensor cores take them. With ``libraries`` a kernel
    is left to a library where that was chosen for its program.
    """

    packs: ClassVar[bool] = False
    machine: GpuMachine
    schedules: Schedules | None = None
    tf32: bool = False
    libraries: bool = False

    def operand(self, value: Node) -> Operand:
        """Strides as its kernel stores it; a weight is read as the model holds it, since no GPU kernel packs one."""
        return Operand(strides_of_value(value), weight=False)

    def _make(self, node: Node, name: str) -> GpuKernel:
        region, program = region_of(node), self.program_of(node)
        chosen = self.schedules(program) if self.schedules is not None else None
        library = self._library(node, chosen)
        ours = None if isinstance(chosen, LibrarySchedule) else chosen
        schedule = ours or default_gpu_schedule(program, self.machine)
        schedule = in_tf32(schedule, program) if self.tf32 else schedule
        file = emit(name, program, schedule, region.symbols)
        if library is not None:
            return GpuLibraryKernel(name, region, program, library.schedule, file, library=library)
        return GpuKernel(name, region, program, schedule, file, in_place_of(node))

    def _library(self, node: Node, chosen: object) -> LibraryKernel | None:
        """The library's kernel where one was chosen that can be."""
        if not self.libraries or not isinstance(chosen, LibrarySchedule):
            return None
        with suppress(UnsupportedError):
            return LibraryKernel(node, chosen, GpuKernelTable(self.machine))
        return None


@dataclass(frozen=True)
class GpuModel:
    """A model's kernels for a GPU.

    Attributes:
        graph: the final graph.
        kernels: in the order of their first call, each with how often a run calls it.
        torch: what PyTorch runs, by operator name, and why.
        kernel_of: the kernel of each fused node that has one.
        derived: weights that are computed from others, by name.
    """

    graph: Graph
    kernels: tuple[tuple[GpuKernel, int], ...]
    torch: tuple[tuple[str, str], ...]
    kernel_of: Mapping[Node, GpuKernel]
    derived: Mapping[str, Node]


def gpu_model(
    capture: Capture,
    machine: GpuMachine,
    quantize: Quantization | None = None,
    schedules: Schedules | None = None,
) -> GpuModel:
    """The kernels of a capture for a GPU; with ``quantize``, linear layers are on weights of few bits.

    ``schedules`` gives the schedule of a program where another than the default one was chosen for it.

    Nothing is compiled or run.
    """
    quantized = None if quantize is None else Quantized(quantize)
    context = Context(fuel=Fuel(), log=Log(), verify=False, search=None, quantized=quantized)
    graph = run_pipeline(capture.graph, context, passes=passes_for(context))
    fused = narrowed(fuse(graph, context.fuel, FusionReport(), context.log))
    table = GpuKernelTable(machine, schedules)
    final = finalise(fused, table)
    calls: Counter[str] = Counter()
    found: dict[str, GpuKernel] = {}
    kernel_of: dict[Node, GpuKernel] = {}
    left: list[tuple[str, str]] = []
    for node in final.nodes:
        if node.is_a(ops.fused):
            kernel = table.kernel_for(node)
            if kernel is None:
                left.append((region_of(node).outputs[0].op.name, table.why(node)))
            else:
                found.setdefault(kernel.name, kernel)
                kernel_of[node] = kernel
                calls[kernel.name] += 1
    left += [(f.op, f.reason) for f in capture.fallbacks]
    kernels = tuple((k, calls[k.name]) for k in found.values())
    return GpuModel(final, kernels, tuple(dict.fromkeys(left)), kernel_of, context.derived)
