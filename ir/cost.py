"""What work costs: floating-point operations, bytes moved, and the time both take under a machine's roofs.

The roofline model (Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model", 2009) with one
term more: what it costs to start a kernel.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy

from .graph import Graph
from .node import Node, Trait
from .types import Dim, broadcast_shapes, canonical_dim, concrete, product

NO_WORK = (Trait.SOURCE, Trait.VIEW, Trait.CREATION, Trait.PROJECTION)


@dataclass(frozen=True)
class Roofs:
    """What a machine reaches.

    Attributes:
        matmul_flops: operations per second in products of float32: multiply-adds between registers.
        scalar_flops: operations per second elsewhere, where a vector's lanes seldom all have work.
        bytes_per_second: reads of memory that is in no cache.
        launch_seconds: from the end of one kernel to the start of the next.
        cache_bytes_per_second: reads of memory that is in the last cache.
        peaks: multiplications and additions per second between registers by dtype, where they were measured.
    """

    matmul_flops: float = 200e9
    scalar_flops: float = 20e9
    bytes_per_second: float = 25e9
    launch_seconds: float = 5e-6
    cache_bytes_per_second: float = 100e9
    peaks: Mapping[str, float] = field(default_factory=dict, hash=False)

    def share(self, dtype: str, work: float, moved: float, seconds: float) -> float | None:
        """The share of the nearer roof: the least time that work in a dtype, or the bytes, take over the time taken.

        None where nothing is known of the dtype.
        """
        if dtype not in self.peaks or seconds <= 0:
            return None
        return max(work / self.peaks[dtype], moved / self.bytes_per_second) / seconds


@dataclass(frozen=True)
class Cost:
    """The work of one kernel: operations in products, operations elsewhere, and bytes read and written."""

    products: Dim
    others: Dim
    nbytes: Dim

    @property
    def flops(self) -> Dim:
        """All floating-point operations."""
        return self.products + self.others

    def at(self, sizes: Mapping[Any, int]) -> Cost:
        """The cost at some sizes."""
        return Cost(concrete(self.products, sizes), concrete(self.others, sizes), concrete(self.nbytes, sizes))

    def seconds(self, roofs: Roofs, sizes: Mapping[Any, int]) -> float:
        """The time that the work takes at least: its operations or its bytes, whichever takes longer, and a launch."""
        here = self.at(sizes)
        computing = float(here.products) / roofs.matmul_flops + float(here.others) / roofs.scalar_flops
        return max(computing, float(here.nbytes) / roofs.bytes_per_second) + roofs.launch_seconds


def work_of(region: Graph) -> list[Node]:
    """The nodes of a region that compute something."""
    return [n for n in region.nodes if not n.has(*NO_WORK)]


InPlace = Sequence[tuple[int, int]]  # pairs of a result and the operand whose memory it takes over


def cost_of(region: Graph, in_place: InPlace = ()) -> Cost:
    """The cost of a region as one kernel: operands are read once, results are written once.

    Of a table, only the rows that are looked up are read; of a result in place, only what changes is written.
    """
    work = work_of(region)
    heavy = [n for n in work if n.has(Trait.CONTRACTION, Trait.ATTENTION, Trait.RECURRENCE)]
    light = [n for n in work if not n.has(Trait.CONTRACTION, Trait.ATTENTION, Trait.RECURRENCE)]
    changed = {region.outputs[result] for result, _ in in_place}
    reads = reads_of(region, changed)
    moved = _sum(reads[n] for n in region.inputs) + _sum(bytes_written(n, n in changed) for n in region.outputs)
    return Cost(_sum(n.op.flops(n) for n in heavy), _sum(n.op.flops(n) for n in light), moved)


def bytes_written(result: Node, in_place: bool = False) -> Dim:
    """The bytes of a result that a kernel writes: what changes, where it takes over an operand's memory."""
    return written_by(result) if in_place and result.has(Trait.SCATTER) else result.tensor_type.nbytes


def reads_of(graph: Graph, in_place: Container[Node] = ()) -> dict[Node, Dim]:
    """The bytes that are read of each input and weight of a graph, where everything that reads it were one kernel.

    Of a table only the rows that are looked up, of a value that is sliced only the slices, each element at most once
    where sizes tell. Of a value that is updated (a cache), what is read of the updated value but for the update. What
    the values of other operands leave unread, such as masked keys of attention, counts as read: sizes do not tell.
    ``in_place`` are the outputs that take over an operand's memory: what they keep of it is not read.
    """
    read: dict[Node, Dim] = {}
    outputs = frozenset(graph.outputs)
    for node in reversed(graph.nodes):
        if node.has(Trait.SOURCE, Trait.VIEW, Trait.SCATTER):
            parts = [_read_by(user, node, read) for user in graph.users[node]]
            whole = node.tensor_type.nbytes
            read[node] = whole if node in outputs and node not in in_place else at_most(parts, whole)
    return {node: read[node] for node in (*graph.inputs, *graph.weights())}


def _read_by(user: Node, operand: Node, read: Mapping[Node, Dim]) -> Dim:
    """The bytes of an operand that one of its users needs."""
    whole, first = operand.tensor_type.nbytes, user.inputs.count(operand) == 1 and user.inputs[0] is operand
    if not first:
        return whole
    if user.has(Trait.VIEW):
        return whole if user.tensor_type.numel != operand.tensor_type.numel and not _selects(user) else read[user]
    if user.has(Trait.GATHER):
        return at_most([user.tensor_type.nbytes], whole)
    if updates(user):
        return at_most([read[user], -written_by(user)], whole)
    if user.has(Trait.SCATTER):  # adds to what is there
        return at_most([read[user], written_by(user)], whole)
    return whole


def _selects(view: Node) -> bool:
    """Whether a view has some elements of its operand, none of them twice."""
    return view.op.name == "slice"


def updates(node: Node) -> bool:
    """Whether a node is its first operand with some elements replaced, whatever they were."""
    replaces = not node.attrs.get("accumulate", False) and node.attrs.get("reduce", "none") == "none"
    return node.has(Trait.SCATTER) and replaces


def written_by(update: Node) -> Dim:
    """The bytes that an update replaces: an upper bound where an index comes twice, or a value is broadcast."""
    name = update.op.name
    if name == "slice_put":
        return update.inputs[1].tensor_type.nbytes
    if name == "scatter":
        return update.inputs[1].tensor_type.numel * update.dtype.itemsize
    # index_put(x, value, *indices): as many elements as x indexed so has
    target, indices, dim = update.inputs[0], update.inputs[2:], int(update.attrs["dim"])  # type: ignore[arg-type]
    picked = broadcast_shapes(*(i.shape for i in indices))
    rest = (*target.shape[:dim], *target.shape[dim + len(indices) :])
    return product((*rest, *picked)) * update.dtype.itemsize


def at_most(parts: Iterable[Dim], limit: Dim) -> Dim:
    """The sum of parts, at least 0 and at most a limit: as a number where it is one, as an expression otherwise."""
    known = list(parts)
    total = canonical_dim(_sum(known))
    if isinstance(total, int):
        total = max(total, 0)
        return min(total, limit) if isinstance(limit, int) else total if total == 0 else sympy.Min(total, limit)
    if total == limit or len(known) == 1:
        return total
    return canonical_dim(sympy.Min(sympy.Max(total, 0), limit))


def _sum(dims: Iterable[Dim]) -> Dim:
    return sum(dims, start=0)
