"""The plan: buffers, and the steps that fill them, for all sizes of a graph's symbols."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch

from ..codegen.program import Format, Param
from ..codegen.schedule import PanelLayout, panel_layout
from ..ir import ops
from ..ir.graph import Graph, Mutation
from ..ir.node import Node, through_views
from ..ir.types import Shape, TensorType, contiguous_strides
from ..rewrites.log import PLACE, Fuel, Log
from ..rewrites.schedule import order
from .inplace import find_reuse
from .kernels import Kernel, Kernels, in_place_of, strides_of_value

# Kernel calls in one host function. LLVM takes more than twice as long over a function of twice the calls, and one more
# native call costs a run a microsecond.
MOST_CALLS = 512


class Place(Enum):
    """Where a buffer's memory comes from."""

    INPUT = "input"  # the caller's tensor
    WEIGHT = "weight"  # the model's tensor, or a packed copy
    ARENA = "arena"  # planned ahead
    OUTPUT = "output"  # allocated for each call: the caller keeps it
    TORCH = "torch"  # what PyTorch returned
    ERROR = "error"  # the cell in which kernels report an index out of range


@dataclass(frozen=True)
class Packing:
    """A weight in panels of columns of its (transposed) matrix."""

    layout: PanelLayout
    transposed: bool


@dataclass(frozen=True)
class Buffer:
    """A tensor in memory: row ``position`` of the address table."""

    position: int
    place: Place
    type: TensorType
    strides: Shape
    name: str = ""  # of a weight
    packing: Packing | None = None


@dataclass(frozen=True)
class KernelStep:
    """One kernel call: the table positions of its parameters, in order, its scratch memory, the error cell last."""

    kernel: Kernel
    buffers: tuple[int, ...]
    node: Node


@dataclass(frozen=True)
class TorchStep:
    """Something that PyTorch computes: an opaque call, or a region that no kernel could be made of."""

    node: Node
    results: tuple[int, ...]


Step = KernelStep | TorchStep


@dataclass
class Plan:
    """Everything that does not depend on sizes.

    Attributes:
        graph: the final graph.
        buffers: by position in the address table.
        steps: in order.
        home: the buffer of each node that has one: sources, kernel results, results of PyTorch's steps.
        live: for each buffer in the arena, the steps that write it first and read it last.
        written: for each result that the caller gets, the step that writes it.
        reuse: for results that may lie in an operand's memory, the operand's buffer.
        unread: the buffers of weights that nothing reads: kernels read packed copies only.
    """

    graph: Graph
    buffers: list[Buffer] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    home: dict[Node, Buffer] = field(default_factory=dict)
    live: dict[int, tuple[int, int]] = field(default_factory=dict)
    written: dict[int, int] = field(default_factory=dict)
    reuse: dict[int, int] = field(default_factory=dict)
    unread: frozenset[int] = frozenset()

    def owners(self) -> dict[int, Node]:
        """The value in each buffer, by position; of scratch memory, the node whose kernel it is lent to."""
        steps = (s for s in self.steps if isinstance(s, KernelStep))
        lent = {position: step.node for step in steps for position in step.buffers}
        return lent | {buffer.position: node for node, buffer in self.home.items()}

    def is_in_place(self, mutation: Mutation) -> bool:
        """Whether a kernel writes the new value to the very memory of the target."""
        return self.home.get(mutation.value) is self.home[mutation.target]

    def segments(self) -> Iterator[list[KernelStep] | TorchStep]:
        """The steps with neighbouring kernel calls together, at most ``MOST_CALLS``: each list is one native call."""
        run: list[KernelStep] = []
        for step in self.steps:
            if isinstance(step, KernelStep):
                if len(run) == MOST_CALLS:
                    yield run
                    run = []
                run.append(step)
                continue
            if run:
                yield run
                run = []
            yield step
        if run:
            yield run


def make_plan(
    graph: Graph, table: Kernels[Any], fuel: Fuel | None = None, log: Log | None = None, *, reuse: bool = True
) -> Plan:
    """The plan of a fused graph. An intermediate for which there is no fuel has memory of its own.

    ``reuse`` lets results take the memory of an operand that their kernel is the last to read.
    """
    plan = _Planner(graph, table).run()
    share_memory(plan, fuel or Fuel(), log if log is not None else Log())
    if reuse:
        plan.reuse = find_reuse(plan)
    return plan


def share_memory(plan: Plan, fuel: Fuel, log: Log) -> None:
    """Let intermediates share memory as far as there is fuel; the others live from the first step to the last."""
    owners = plan.owners()
    for position in plan.live:
        if not fuel.spend(log, PLACE, owners[position], owners[position]):
            plan.live[position] = (0, len(plan.steps))


class _Planner:
    def __init__(self, graph: Graph, table: Kernels[Any]) -> None:
        self.plan = Plan(graph)
        self.graph, self.table = graph, table
        self.packed: dict[tuple[str, Packing], Buffer] = {}
        self.returned = {through_views(node) for node in graph.outputs}

    def run(self) -> Plan:
        self.error = self.buffer(Place.ERROR, TensorType((1,), torch.int64))
        for node in self.graph.inputs:
            self.plan.home[node] = self.buffer(Place.INPUT, node.tensor_type)
        for node in self.graph.weights():
            self.plan.home[node] = self.buffer(Place.WEIGHT, node.tensor_type, name=str(node.attrs["name"]))
        for node in order(self.graph):
            self.step(node)
        self.find_lifetimes()
        self.plan.unread = self.unread()
        return self.plan

    def buffer(self, place: Place, type_: TensorType, strides: Shape | None = None, name: str = "") -> Buffer:
        dense = contiguous_strides(type_.shape) if strides is None else strides
        made = Buffer(len(self.plan.buffers), place, type_, dense, name)
        self.plan.buffers.append(made)
        return made

    # --- steps --------------------------------------------------------------------------------------------------------

    def step(self, node: Node) -> None:
        kernel = self.table.kernel_for(node) if node.is_a(ops.fused) else None
        results = ops.results(node)
        if kernel is None:
            made = [self.buffer(Place.TORCH, r.tensor_type, strides_of_value(r)) for r in results]
            self.plan.steps.append(TorchStep(node, tuple(b.position for b in made)))
        else:
            taken = {result: self.plan.home[node.inputs[operand]] for result, operand in in_place_of(node)}
            made = [taken.get(i) or self.result(r) for i, r in enumerate(results)]
            reads = [self.operand(x, p, kernel) for x, p in zip(node.inputs, kernel.program.inputs, strict=True)]
            lent = [self.buffer(Place.ARENA, p.type, p.strides) for p in kernel.scratch]
            positions = tuple(b.position for b in (*reads, *made, *lent, self.error))
            if any(r.tensor_type.numel != 0 for r in results):
                self.plan.steps.append(KernelStep(kernel, positions, node))
        self.plan.home.update(zip(results, made, strict=True))

    def result(self, node: Node) -> Buffer:
        return self.buffer(self.place_of(node), node.tensor_type, strides_of_value(node))

    def place_of(self, result: Node) -> Place:
        return Place.OUTPUT if result in self.returned else Place.ARENA

    def operand(self, value: Node, param: Param, kernel: Kernel) -> Buffer:
        """The buffer that a kernel reads: a weight's packed copy where it asks for panels, and the target packs."""
        if param.format is not Format.PANELS or not self.table.packs:
            return self.plan.home[value]
        packing = Packing(panel_layout(kernel.schedule), param.transposed)
        key = (str(value.attrs["name"]), packing)
        if key not in self.packed:
            position = len(self.plan.buffers)
            made = Buffer(position, Place.WEIGHT, value.tensor_type, param.strides, key[0], packing)
            self.plan.buffers.append(made)
            self.packed[key] = made
        return self.packed[key]

    # --- lifetimes ----------------------------------------------------------------------------------------------------

    def find_lifetimes(self) -> None:
        """From the step that writes a value to the last that reads it; the values of mutations stay to the end."""
        live = self.plan.live
        for at, step in enumerate(self.plan.steps):
            for buffer in self.touched(step):
                if buffer.place is Place.ARENA:
                    first, _ = live.get(buffer.position, (at, at))
                    live[buffer.position] = (first, at)
                elif buffer.place is Place.OUTPUT:
                    self.plan.written.setdefault(buffer.position, at)
        for root in self.graph.roots:
            held = self.plan.home.get(through_views(root))
            if held is not None and held.place is Place.ARENA:
                live[held.position] = (live[held.position][0], len(self.plan.steps))

    def unread(self) -> frozenset[int]:
        """The buffers of weights that no step touches and no root of the graph is a view of."""
        read = {buffer.position for step in self.plan.steps for buffer in self.touched(step)}
        roots = (self.plan.home.get(through_views(root)) for root in self.graph.roots)
        read.update(buffer.position for buffer in roots if buffer is not None)
        return frozenset(b.position for b in self.plan.buffers if b.place is Place.WEIGHT and b.position not in read)

    def touched(self, step: Step) -> list[Buffer]:
        if isinstance(step, KernelStep):
            return [self.plan.buffers[i] for i in step.buffers]
        return [self.plan.home[b] for b in map(through_views, step.node.inputs) if b in self.plan.home]
