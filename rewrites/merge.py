"""Linear layers of one input as one product: query, key and value; gate and up; experts side by side."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from ..ir import ops
from ..ir.graph import Graph
from ..ir.node import Node, Trait
from .context import Context
from .hoist import constant_nodes

# How many nodes behind a layer are searched for a place where it meets another.
REACH = 64


def merge_linears(graph: Graph, context: Context) -> Graph:
    """The graph with linear layers merged that read one node and meet before the next product.

    Layers that meet later, or never, stay apart: their results would be kept for long for little. The merged layer
    has the weights and biases one below the other, and each result is a slice of its own.
    """
    parts: dict[Node, _Merger] = {}
    for group in _groups(graph):
        merger = _Merger(group)
        replaced = [(layer, merger.part(layer, layer.inputs)) for layer in group]
        if context.take("merge-linears", *replaced[0], *replaced[1:]):
            parts.update(dict.fromkeys(group, merger))
    if not parts:
        return graph
    return graph.rebuild(
        lambda node, inputs: parts[node].part(node, inputs) if node in parts else node.with_inputs(inputs)
    )


def _groups(graph: Graph) -> Iterator[tuple[Node, ...]]:
    by_input: dict[Node, list[Node]] = {}
    constant = constant_nodes(graph)
    for node in graph.nodes:
        if node.op is ops.linear and node.inputs[0] not in constant and constant.issuperset(node.inputs[1:]):
            by_input.setdefault(node.inputs[0], []).append(node)
    for layers in by_input.values():
        if len(layers) > 1:
            yield from (group for group in _meeting(layers, graph.users) if len(group) > 1)


def _meeting(layers: Sequence[Node], users: Mapping[Node, Sequence[Node]]) -> list[tuple[Node, ...]]:
    """The layers grouped by what they reach before the next product, in order."""
    groups: dict[int, list[Node]] = {}  # by the number of the layer that came last
    joined: dict[int, int] = {}  # of a group that is no more, the one that it is a part of
    reaches: dict[Node, int] = {}  # the group that reaches a node
    for number, layer in enumerate(layers):
        reached = _reached(layer, users)
        met = {_last(reaches[node], joined) for node in reached if node in reaches}
        members: list[Node] = []
        for group in [x for x in groups if x in met] if len(met) > 1 else met:
            members = members + groups.pop(group) if members else groups.pop(group)
            joined[group] = number
        members.append(layer)
        groups[number] = members
        reaches.update(dict.fromkeys(reached, number))
    return [tuple(members) for members in groups.values()]


def _last(group: int, joined: dict[int, int]) -> int:
    """The group that one is a part of by now."""
    end = group
    while end in joined:
        end = joined[end]
    while group != end:  # shorter the next time
        joined[group], group = end, joined[group]
    return end


def _reached(layer: Node, users: Mapping[Node, Sequence[Node]]) -> set[Node]:
    """What reads a layer's result, up to the next products, nearest first and at most ``REACH`` nodes."""
    found: dict[Node, None] = {}
    waiting = [layer]
    for node in waiting:
        if node is not layer and node.has(Trait.CONTRACTION, Trait.ATTENTION, Trait.RECURRENCE):
            continue
        new = [user for user in users[node] if user not in found]
        found.update(dict.fromkeys(new))
        waiting.extend(new)
        if len(found) > REACH:
            break
    return set(found)


def _merged(x: Node, layers: Sequence[Node]) -> Node:
    weight = ops.concat(*(layer.inputs[1] for layer in layers), dim=0)
    if all(len(layer.inputs) == 2 for layer in layers):
        return ops.linear(x, weight)
    return ops.linear(x, weight, ops.concat(*map(_bias, layers), dim=0))


def _bias(layer: Node) -> Node:
    """The bias of a layer; -0.0, which changes no number, where it has none."""
    if len(layer.inputs) == 3:
        return layer.inputs[2]
    return ops.full(shape=layer.inputs[1].shape[:1], value=-0.0, dtype=layer.dtype)


class _Merger:
    """The layers of one group as one product, and each layer's part of it."""

    def __init__(self, group: tuple[Node, ...]) -> None:
        self.group = group
        widths = [int(layer.shape[-1]) for layer in group]
        self.start = dict(zip(group, itertools.accumulate(widths, initial=0), strict=False))
        self.merged: dict[Node, Node] = {}  # by the layers' input

    def part(self, node: Node, inputs: Sequence[Node]) -> Node:
        """What a layer becomes: its slice of the merged layer on the layer's new operands."""
        x = inputs[0]
        if x not in self.merged:
            self.merged[x] = _merged(x, self.group)
        merged = self.merged[x].keep_origin(node.origin)
        start = self.start[node]
        part = ops.slice_(merged, dim=-1, start=start, stop=start + node.shape[-1])
        return part.keep_origin(node.origin)
