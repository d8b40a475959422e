"""The order in which kernels run."""

from __future__ import annotations

from ..ir.graph import Graph
from ..ir.node import Node, Trait

_WORK = (Trait.REGION, Trait.OPAQUE)


def order(graph: Graph) -> tuple[Node, ...]:
    """The kernels and calls of a graph, operands before users.

    Depth first from the outputs: what a kernel needs is computed just before it, so that few values wait in memory.
    """
    return tuple(node for node in graph.nodes if node.has(*_WORK))
