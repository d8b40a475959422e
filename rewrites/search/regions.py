"""The parts of a graph that are searched: connected nodes of the operators that equations speak of."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from ...ir import ops
from ...ir.graph import Graph
from ...ir.node import Node, OpDef, Trait
from ..hoist import constant_nodes


@dataclass(frozen=True)
class Region:
    """A part of a graph as a graph of its own, which is one object for equal parts.

    Attributes:
        graph: the part; its operands are inputs ``x0``, ``x1``, … and, where they have one value for all calls, weights
            of such names.
        leaves: what these stand for.
        roots: the nodes that the graph's outputs stand for: those that others read.
    """

    graph: Graph
    leaves: Mapping[Node, Node]
    roots: tuple[Node, ...]


def regions(graph: Graph, operators: Collection[OpDef], limit: int) -> Iterator[Region]:
    """The regions of at most ``limit`` nodes, in the order of their last nodes.

    What others read is computed in any case, so a region ends there: a residual sum that a norm reads belongs to the
    layer before it, and layers stay apart.
    """
    constant = constant_nodes(graph)
    for members in _groups(graph, operators, limit):
        if _worth_it(members):
            yield _region(graph, members, constant)


def _groups(graph: Graph, operators: Collection[OpDef], limit: int) -> list[tuple[Node, ...]]:
    """The nodes of each region, operands first."""
    group: dict[Node, list[Node]] = {}
    roots = set(graph.roots)
    inner: set[Node] = set()  # nodes that only nodes of these operators read
    for node in graph.nodes:
        if node.op not in operators:
            continue
        if node not in roots and all(user.op in operators for user in graph.users[node]):
            inner.add(node)
        below = {id(group[x]): group[x] for x in node.inputs if x in inner}
        if sum(map(len, below.values())) >= limit:
            below = {}
        members = max(below.values(), key=len, default=[])
        for other in below.values():
            if other is not members:
                members.extend(other)
                group.update(dict.fromkeys(other, members))
        members.append(node)
        group[node] = members
    place = {node: i for i, node in enumerate(graph.nodes)}
    found = {id(members): members for members in group.values()}
    ordered = [sorted(members, key=place.__getitem__) for members in found.values()]
    return [tuple(members) for members in sorted(ordered, key=lambda members: place[members[-1]])]


def _worth_it(members: tuple[Node, ...]) -> bool:
    """Whether there may be something to gain: a product with company, or two permutations."""
    products = sum(node.has(Trait.CONTRACTION) for node in members)
    permutes = sum(node.op is ops.permute for node in members)
    return (products > 0 and len(members) > 1) or permutes > 1


def _region(graph: Graph, members: tuple[Node, ...], constant: Collection[Node]) -> Region:
    inside = set(members)
    roots = set(graph.roots)
    read = [n for n in members if n in roots or any(user not in inside for user in graph.users[n])]
    new: dict[Node, Node] = {}
    leaves: dict[Node, Node] = {}
    for node in members:
        for x in node.inputs:
            if x not in inside and x not in new:
                new[x] = _leaf(x, len(leaves), x in constant)
                leaves[new[x]] = x
        new[node] = node.op(*(new[x] for x in node.inputs), **node.attrs)
    # equal nodes of the graph are one object, and so are those of the region
    inputs = [leaf for leaf in leaves if leaf.op is ops.input]
    return Region(Graph(inputs, [new[n] for n in read], symbols=graph.symbols), leaves, tuple(read))


def _leaf(node: Node, number: int, constant: bool) -> Node:
    if node.op is ops.full and node.shape == ():
        return node
    source = ops.weight if constant else ops.input
    return source(name=f"x{number}", shape=node.shape, dtype=node.dtype)


def grown(graph: Graph, leaves: Mapping[Node, Node]) -> tuple[Node, ...]:
    """The outputs of a region's graph on the nodes that its leaves stand for."""
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        new[node] = leaves[node] if node in leaves else node.with_inputs(tuple(new[x] for x in node.inputs))
    return tuple(new[node] for node in graph.outputs)
