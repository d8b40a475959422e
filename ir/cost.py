"""What work costs: floating-point operations, bytes moved, and the time both take under a machine's roofs.

The roofline model (Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model", 2009) with one
term more: what it costs to start a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .graph import Graph
from .node import Node, Trait
from .types import Dim, broadcast_shapes, concrete

NO_WORK = (Trait.SOURCE, Trait.VIEW, Trait.CREATION, Trait.PROJECTION)


@dataclass(frozen=True)
class Roofs:
    """What a machine reaches.

    Attributes:
        matmul_flops: operations per second in products of float32.
        scalar_flops: operations per second elsewhere, where a vector's lanes seldom all have work.
        bytes_per_second: reads of memory that is in no cache.
        launch_seconds: from the end of one kernel to the start of the next.
    """

    matmul_flops: float = 200e9
    scalar_flops: float = 20e9
    bytes_per_second: float = 25e9
    launch_seconds: float = 5e-6


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
    changed = dict(in_place)
    kept = {region.inputs[operand] for operand in changed.values()}
    read = _sum(bytes_read(n, region, in_place=n in kept) for n in region.inputs)
    moved = read + _sum(bytes_written(n, in_place=i in changed) for i, n in enumerate(region.outputs))
    return Cost(_sum(n.op.flops(n) for n in heavy), _sum(n.op.flops(n) for n in light), moved)


def bytes_read(operand: Node, region: Graph, *, in_place: bool = False) -> Dim:
    """The bytes of an operand that a kernel reads: of a table, the rows that are looked up.

    ``in_place`` says that a result takes over its memory: what that keeps is not read.
    """
    users = region.users[operand]
    if in_place and all(user.has(Trait.SCATTER) and user.inputs[0] is operand for user in users):
        return _sum(bytes_changed(user) for user in users if user.attrs.get("accumulate") or _adds(user))
    if users and all(user.has(Trait.GATHER) and user.inputs[0] is operand for user in users):
        return _sum(user.tensor_type.nbytes for user in users)
    return operand.tensor_type.nbytes


def bytes_written(result: Node, *, in_place: bool = False) -> Dim:
    """The bytes of a result that a kernel writes: what changes, where it takes over an operand's memory."""
    return bytes_changed(result) if in_place and result.has(Trait.SCATTER) else result.tensor_type.nbytes


def bytes_changed(node: Node) -> Dim:
    """The bytes that an operator of the scatter family changes in its first operand, each as often as it is named."""
    target = node.tensor_type
    if node.op.name != "index_put":
        return node.inputs[-1].tensor_type.nbytes  # of scatter and slice_put the source
    dim, indices = node.attrs["dim"], node.inputs[2:]
    assert isinstance(dim, int)
    picked = broadcast_shapes(*(i.shape for i in indices))
    return target.with_shape((*target.shape[:dim], *picked, *target.shape[dim + len(indices) :])).nbytes


def _adds(node: Node) -> bool:
    return node.attrs.get("reduce") == "add"


def _sum(dims: Iterable[Dim]) -> Dim:
    return sum(dims, start=0)
