"""Bytes moved, by each step of a plan and by the whole model, and the least that could have been.

What is moved: each step reads its operands and writes its results once; of a table it reads the rows that are looked
up, of a value that is sliced the slices, of a packed weight the panels with their padding. To that come the copies that
the runtime makes of results, and of state that is not updated in place. What a kernel reads again from the caches while
it runs does not count.

The least, each charged to the step that is first to need it:

- of every input and weight, what is read of it at all (``ir.cost.reads_of`` on the graph before fusion): of an
  embedding table the rows looked up, of a KV cache that is updated what is read of it but for the update. Masked keys
  count as read: how many there are is decided by values, not by sizes.
- every output, written once, and of state that is updated in place the part that changes.
- what must spill: of a kernel's result that is larger than the last-level cache, the bytes past that cache's size, out
  and back. A result that fits could have stayed, so it counts as avoidable, though it may never reach memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..ir import ops
from ..ir.cost import bytes_written, reads_of, updates, written_by
from ..ir.graph import Graph, Mutation
from ..ir.node import Node, through_views
from ..ir.types import Dim, concrete
from .compiled import Compiled
from .kernels import in_place_of, region_of
from .plan import Buffer, KernelStep, Place, Plan, Step
from .roofs import last_cache_bytes

Sizes = Mapping[Any, int]


@dataclass(frozen=True)
class Moved:
    """Bytes: what is read from inputs and weights, what of other steps' results, what is written, and the least."""

    sources: int = 0
    others: int = 0
    written: int = 0
    least: int = 0

    @property
    def nbytes(self) -> int:
        """All bytes read and written."""
        return self.sources + self.others + self.written

    def __add__(self, other: Moved) -> Moved:
        return Moved(
            self.sources + other.sources,
            self.others + other.others,
            self.written + other.written,
            self.least + other.least,
        )


@dataclass(frozen=True)
class Traffic:
    """What each step moves, in order, and what the runtime does around them: copies of results and of state."""

    steps: tuple[Moved, ...]
    around: Moved
    total: Moved = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "total", sum(self.steps, start=self.around))

    @property
    def ratio(self) -> float | None:
        """Bytes moved over the least possible; None where nothing has to be moved."""
        return self.total.nbytes / self.total.least if self.total.least else None


def traffic_of(executable: Compiled, sizes: Sizes, cache_bytes: int | None = None) -> Traffic:
    """The bytes that a run moves for these sizes: ``cache_bytes`` is the last cache, by default its device's."""
    known = executable.cache_bytes if cache_bytes is None else cache_bytes
    limit = last_cache_bytes() if known is None else known
    return _Account(executable, sizes, limit).traffic()


def least_by_kernel(executable: Compiled, traffic: Traffic) -> dict[str, int]:
    """The least bytes of all calls of each kernel, by its name."""
    found = {kernel.name: 0 for kernel in executable.kernels}
    for step, moved in zip(executable.plan.steps, traffic.steps, strict=True):
        if isinstance(step, KernelStep):
            found[step.kernel.name] += moved.least
    return found


def moved_by_kernel(executable: Compiled, traffic: Traffic) -> dict[str, int]:
    """The bytes that one call of each kernel moves, by its name."""
    steps = zip(executable.plan.steps, traffic.steps, strict=True)
    return {step.kernel.name: moved.nbytes for step, moved in steps if isinstance(step, KernelStep)}


def unfused(graphs: Mapping[str, Graph]) -> Graph:
    """The graph before fusion: the last stage before the one of that name."""
    names = list(graphs)
    return graphs[names[names.index("fuse") - 1]]


class _Account:
    def __init__(self, executable: Compiled, sizes: Sizes, limit: int) -> None:
        self.plan: Plan = executable.plan
        self.sizes, self.limit = sizes, limit
        self.graph = unfused(executable.graphs)
        self.source_reads = {node: self.at(amount) for node, amount in reads_of(self.graph).items()}
        self.maker = {r: i for i, s in enumerate(self.plan.steps) for r in ops.results(s.node)}
        self.least = [0] * (len(self.plan.steps) + 1)  # the last: of no step

    def at(self, dim: Dim) -> int:
        return concrete(dim, self.sizes)

    def traffic(self) -> Traffic:
        around = self.around()
        amounts = [self.amounts(step) for step in self.plan.steps]
        self.charge_sources(amounts)
        self.charge_results()
        self.charge_spills()
        steps = [self.moved(*pair) for pair in zip(self.plan.steps, amounts, strict=True)]
        with_least = (Moved(m.sources, m.others, m.written, n) for m, n in zip(steps, self.least, strict=False))
        return Traffic(tuple(with_least), Moved(around.sources, around.others, around.written, self.least[-1]))

    # --- moved --------------------------------------------------------------------------------------------------------

    def amounts(self, step: Step) -> list[int]:
        """The bytes that a step reads of each operand."""
        if step.node.is_a(ops.fused):
            region = region_of(step.node)
            reads = reads_of(region, _in_place(step.node))
            amounts = [self.at(reads[x]) for x in region.inputs]
        else:
            amounts = [self.at(x.tensor_type.nbytes) for x in step.node.inputs]
        if isinstance(step, KernelStep):
            buffers = (self.plan.buffers[i] for i in step.buffers)
            amounts = [self.packed(b, n) for b, n in zip(buffers, amounts, strict=False)]
        return amounts

    def moved(self, step: Step, amounts: Sequence[int]) -> Moved:
        sources = sum(n for x, n in zip(_bases(step.node), amounts, strict=True) if x not in self.maker)
        written = sum(self.at(n) for n in _written(step.node))
        return Moved(sources, sum(amounts) - sources, written)

    def packed(self, buffer: Buffer, amount: int) -> int:
        """The bytes of a weight's panels, the last one padded."""
        if buffer.packing is None:
            return amount
        shape = [self.at(d) for d in buffer.type.shape]
        terms, columns = reversed(shape) if buffer.packing.transposed else shape
        return buffer.packing.layout.elements(terms, columns) * buffer.type.dtype.itemsize

    def around(self) -> Moved:
        """Copies that the runtime makes: of results that are not alone in fresh memory, and of changed state."""
        copied, given = 0, set[Buffer]()
        for node in self.plan.graph.outputs:
            buffer = self.plan.home[through_views(node)]
            if buffer.place is not Place.OUTPUT or buffer in given:
                copied += self.at(node.tensor_type.nbytes)
            given.add(buffer)
        for mutation in (m for m in self.plan.graph.mutations if not self.plan.is_in_place(m)):
            copied += 2 * self.at(mutation.target.tensor_type.nbytes)  # to a temporary, and from there to its place
        return Moved(others=copied, written=copied)

    # --- the least ----------------------------------------------------------------------------------------------------

    def charge_sources(self, amounts: Sequence[Sequence[int]]) -> None:
        """To the steps that read an input or weight, in order, each no more than it reads; what is left to none."""
        for i, step in enumerate(self.plan.steps):
            for node, amount in zip(_bases(step.node), amounts[i], strict=True):
                part = min(amount, self.source_reads.get(node, 0))
                self.least[i] += part
                if part:
                    self.source_reads[node] -= part
        self.least[-1] += sum(self.source_reads.values())

    def charge_results(self) -> None:
        for node in self.plan.graph.outputs:
            self.charge(node, self.at(node.tensor_type.nbytes))
        for before, after in zip(self.graph.mutations, self.plan.graph.mutations, strict=True):
            self.charge(after.value, self.changed(before))

    def charge(self, value: Node, amount: int) -> None:
        self.least[self.maker.get(through_views(value), -1)] += amount

    def changed(self, mutation: Mutation) -> int:
        """The bytes of state that a mutation changes: those of its updates where it is made of updates."""
        node, amount = mutation.value, 0
        whole = self.at(mutation.target.tensor_type.nbytes)
        while updates(node):
            amount += self.at(written_by(node))
            node = node.inputs[0]
        return min(amount, whole) if node is mutation.target else whole

    def charge_spills(self) -> None:
        first = self.first_readers()
        for value, step in self.maker.items():
            buffer = self.plan.home[value]
            excess = self.at(value.tensor_type.nbytes) - self.limit
            if buffer.place is not Place.OUTPUT and excess > 0:
                self.least[step] += excess
                self.least[first.get(value, -1)] += excess

    def first_readers(self) -> dict[Node, int]:
        """The first step that reads each value."""
        found: dict[Node, int] = {}
        for i, step in enumerate(self.plan.steps):
            for node in _bases(step.node):
                found.setdefault(node, i)
        return found


def _in_place(node: Node) -> set[Node]:
    """The outputs of a fused node's region that take over an operand's memory."""
    outputs = region_of(node).outputs
    return {outputs[result] for result, _ in in_place_of(node)}


def _written(node: Node) -> list[Dim]:
    """The bytes that a step writes of each result: of one in place what changes."""
    if not node.is_a(ops.fused):
        return [r.tensor_type.nbytes for r in ops.results(node)]
    changed = _in_place(node)
    return [bytes_written(n, n in changed) for n in region_of(node).outputs]


def _bases(node: Node) -> list[Node]:
    """The values that a step reads, seen through views."""
    return [through_views(x) for x in node.inputs]
