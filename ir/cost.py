"""What work costs: floating-point operations, bytes moved, and the time both take under a machine's roofs.

The roofline model (Williams, Waterman and Patterson, "Roofline: An Insightful Visual Performance Model", 2009) with one
term more: what it costs to start a kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .graph import Graph
from .node import Node, Trait
from .types import Dim, concrete

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


def cost_of(region: Graph) -> Cost:
    """The cost of a region as one kernel: operands are read once, results are written once."""
    work = work_of(region)
    heavy = [n for n in work if n.has(Trait.CONTRACTION, Trait.ATTENTION, Trait.RECURRENCE)]
    light = [n for n in work if not n.has(Trait.CONTRACTION, Trait.ATTENTION, Trait.RECURRENCE)]
    moved = _sum(bytes_read(n, region) for n in region.inputs) + _sum(n.tensor_type.nbytes for n in region.outputs)
    return Cost(_sum(n.op.flops(n) for n in heavy), _sum(n.op.flops(n) for n in light), moved)


def bytes_read(operand: Node, region: Graph) -> Dim:
    """The bytes of an operand that a kernel reads: of a table, the rows that are looked up."""
    users = region.users[operand]
    if users and all(user.has(Trait.GATHER) and user.inputs[0] is operand for user in users):
        return _sum(user.tensor_type.nbytes for user in users)
    return operand.tensor_type.nbytes


def _sum(dims: Iterable[Dim]) -> Dim:
    return sum(dims, start=0)
