"""From a fused graph to kernels: each distinct region is lowered, scheduled and written once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Generic, Protocol, TypeVar

from ..codegen.gpu import GpuSchedule
from ..codegen.lower import Operand, lower, strides_of
from ..codegen.machine import Machine
from ..codegen.program import Param, Program, can_fail
from ..codegen.schedule import Schedule, default_schedule, scratch
from ..ir import ops
from ..ir.cost import cost_of, work_of
from ..ir.errors import UnsupportedError
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.types import Dim, Shape, contiguous_strides
from ..rewrites.fusion import split
from ..rewrites.inline import applied
from ..rewrites.inplace import update_in_place

Made = TypeVar("Made")


@dataclass(frozen=True)
class Kernel:
    """One compiled function: the region it computes and how."""

    name: str
    region: Graph
    program: Program
    schedule: Schedule
    source: str
    in_place: tuple[tuple[int, int], ...] = ()

    @cached_property  # which each call of the kernel asks for
    def scratch(self) -> tuple[Param, ...]:
        """The memory that it is lent while it runs."""
        return scratch(self.program, self.schedule)

    @property
    def checks_indices(self) -> bool:
        """Whether it may report an index out of range."""
        return can_fail(self.program)


@dataclass(frozen=True)
class KernelInfo:
    """A kernel as the report shows it.

    Attributes:
        calls: how often one run calls it.
        flops, bytes: of one call, as dims: floating-point operations, and bytes of operands and results.
        operators: what it computes, by operator name.
        module: where in the model its first call comes from.
    """

    name: str
    program: Program
    schedule: Schedule | GpuSchedule
    source: str
    calls: int
    flops: Dim
    bytes: Dim
    operators: tuple[str, ...]
    module: str


@dataclass
class Kernels(ABC, Generic[Made]):
    """The kernels of a graph, made on demand: one for all fused nodes of the same region and operands.

    Attributes:
        packs: whether weights are packed in panels for kernels that read them so; otherwise they are read as they are.
    """

    packs: ClassVar[bool] = True
    kernels: dict[object, Made] = field(default_factory=dict, init=False)
    refused: dict[object, str] = field(default_factory=dict, init=False)

    def kernel_for(self, node: Node) -> Made | None:
        """The kernel of a fused node; None where the backend cannot make one (``why`` tells)."""
        key = self._key(node)
        if key not in self.kernels and key not in self.refused:
            try:
                name = f"k{len(self.kernels)}_{label_of(region_of(node))}"
                self.kernels[key] = self._make(node, name)
            except UnsupportedError as error:
                self.refused[key] = str(error)
        return self.kernels.get(key)

    def why(self, node: Node) -> str:
        """Why a fused node has no kernel."""
        return self.refused[self._key(node)]

    @abstractmethod
    def operand(self, value: Node) -> Operand:
        """How a value lies in memory when a kernel reads it, and whether it may be packed ahead."""

    @abstractmethod
    def _make(self, node: Node, name: str) -> Made:
        """The kernel of a fused node; UnsupportedError where there is none."""

    def program_of(self, node: Node) -> Program:
        """The program of a fused node, on operands as they lie in memory."""
        operands = [self.operand(x) for x in node.inputs]
        return lower(region_of(node), operands, layouts_of(node), in_place_of(node))

    def _key(self, node: Node) -> object:
        return (
            node.attrs["region"],
            node.attrs["layouts"],
            node.attrs["in_place"],
            tuple(self.operand(x) for x in node.inputs),
        )


@dataclass
class KernelTable(Kernels[Kernel]):
    """The kernels of a graph for a processor. ``mutated`` are the weights that the graph changes: never packed.

    ``schedules`` gives the schedule of a program where another than the default one was chosen for it.
    """

    machine: Machine
    mutated: frozenset[Node] = frozenset()
    schedules: Callable[[Program], Schedule | None] | None = None

    def operand(self, value: Node) -> Operand:
        """Strides as its kernel stores it; packed where it is a weight that no call changes."""
        return Operand(strides_of_value(value), weight=value.is_a(ops.weight) and value not in self.mutated)

    def _make(self, node: Node, name: str) -> Kernel:
        from_tvm, program = _emitter(), self.program_of(node)
        chosen = self.schedules(program) if self.schedules is not None else None
        schedule = chosen or default_schedule(program, self.machine)
        return Kernel(name, region_of(node), program, schedule, from_tvm(name, program, schedule), in_place_of(node))


def region_of(node: Node) -> Graph:
    """The region of a fused node."""
    region = node.attrs["region"]
    assert isinstance(region, Graph)
    return region


def layouts_of(node: Node) -> Sequence[Sequence[int]]:
    """The layouts of a fused node's results."""
    layouts = node.attrs["layouts"]
    assert isinstance(layouts, tuple)
    return layouts


def in_place_of(node: Node) -> tuple[tuple[int, int], ...]:
    """The results of a fused node that take over an operand's memory, with the number of that operand."""
    in_place = node.attrs["in_place"]
    assert isinstance(in_place, tuple)
    return in_place


def strides_of_value(value: Node) -> Shape:
    """The strides of a value in memory: as its kernel stores it, row-major for everything else."""
    source = value.inputs[0] if value.is_a(ops.item) else value
    if source.is_a(ops.fused):
        index = int(value.attrs["index"]) if value.is_a(ops.item) else 0  # type: ignore[arg-type]
        return strides_of(value.shape, layouts_of(source)[index])
    return contiguous_strides(value.shape)


class Maker(Protocol):
    """What makes kernels of fused nodes."""

    def kernel_for(self, node: Node) -> object | None:
        """The kernel of a fused node; None where none can be made."""


def finalise(graph: Graph, table: Maker) -> Graph:
    """The graph whose every fused node that can be a kernel is one, with state updated in place where a kernel can."""
    return update_in_place(legalise(graph, table), lambda node: table.kernel_for(node) is not None)


def legalise(graph: Graph, table: Maker) -> Graph:
    """The graph with every region that cannot be one kernel taken apart, so that only single operators may remain."""
    parts: dict[Node, tuple[Node, ...]] = {}

    def transform(node: Node, inputs: tuple[Node, ...]) -> Node:
        if node.is_a(ops.item) and inputs[0] in parts:
            return parts[inputs[0]][int(node.attrs["index"])]  # type: ignore[arg-type]
        new = node.with_inputs(inputs)
        if not new.is_a(ops.fused) or table.kernel_for(new) is not None:
            return new
        pieces = split(new)
        if sum(1 for n in pieces.nodes if n.is_a(ops.fused)) <= 1:
            return new
        results = applied(pieces, inputs)
        if len(results) == 1:
            return results[0]
        parts[new] = results
        return new

    return graph.rebuild(transform)


def describe(kernel: Kernel, calls: int, module: str) -> KernelInfo:
    """What the report says of a kernel."""
    cost = cost_of(kernel.region, kernel.in_place)
    return KernelInfo(
        kernel.name,
        kernel.program,
        kernel.schedule,
        kernel.source,
        calls,
        cost.flops,
        cost.nbytes,
        tuple(n.op.name for n in work_of(kernel.region)),
        module,
    )


def label_of(region: Graph) -> str:
    """A short name after what the region computes."""
    unique = list(dict.fromkeys(n.op.name.replace(".", "_") for n in work_of(region)))
    return "_".join(unique[:4]) or "copy"


def _emitter() -> Callable[[str, Program, Schedule], str]:
    # imported when a target asks for it: the GPU path runs on a machine without TVM
    from ..codegen.tvm.kernel import kernel_text

    return kernel_text
