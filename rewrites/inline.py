"""Fused nodes taken apart again: what fusion made of a graph, written as the operators that it groups."""

from __future__ import annotations

from ..ir import ops
from ..ir.graph import Graph
from ..ir.node import Node


def inline(graph: Graph) -> Graph:
    """The graph with each fused node replaced by its region.

    Nodes are interned, so where fusion changed nothing but the grouping this is the graph it started from.
    """
    return graph.with_roots(inlined(graph).__getitem__)


def inlined(graph: Graph) -> dict[Node, Node]:
    """What each node of a graph is without regions; a fused node of several results stands for the first."""
    parts: dict[Node, tuple[Node, ...]] = {}
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.is_a(ops.item) and node.inputs[0] in parts:
            new[node] = parts[node.inputs[0]][int(node.attrs["index"])]  # type: ignore[arg-type]
            continue
        operands = tuple(new[x] for x in node.inputs)
        if node.is_a(ops.fused):
            parts[node] = expand(node, operands)
            new[node] = parts[node][0]
        else:
            new[node] = node.with_inputs(operands)
    return new


def applied(region: Graph, operands: tuple[Node, ...]) -> tuple[Node, ...]:
    """The outputs of a region on other operands."""
    new = dict(zip(region.inputs, operands, strict=True))
    for node in region.nodes:
        if node not in new:
            new[node] = node.with_inputs(tuple(new[x] for x in node.inputs))
    return tuple(new[x] for x in region.outputs)


def expand(node: Node, operands: tuple[Node, ...]) -> tuple[Node, ...]:
    """The results of a fused node's region on other operands."""
    region = node.attrs["region"]
    assert isinstance(region, Graph)
    return applied(region, operands)
