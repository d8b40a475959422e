"""State updated in place: which results of kernels may take over the memory of the tensor that they are to replace.

A mutation owes the caller a tensor of new values. Where one kernel computes them from the old ones and nothing else
reads those, it may write into the tensor itself: a cache of keys and values is then never copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..ir import ops
from ..ir.graph import Graph, Mutation
from ..ir.node import Node

InPlace = tuple[tuple[int, int], ...]  # pairs of a result and an operand, by number


@dataclass(frozen=True)
class Update:
    """Result ``result`` of a fused node could lie in the memory of its operand ``operand``."""

    node: Node
    result: int
    operand: int


def update_in_place(graph: Graph, allowed: Callable[[Node], bool]) -> Graph:
    """The graph with what is mutated computed in place, where ``allowed`` finds that a kernel can do it.

    ``allowed`` is asked for fused nodes with the attribute ``in_place``; a pair that it refuses is left out.
    """
    wanted: dict[Node, InPlace] = {}
    for update in updates(graph):
        wanted[update.node] = (*wanted.get(update.node, ()), (update.result, update.operand))
    chosen = {node: pairs for node, all_ in wanted.items() if (pairs := _allowed(node, all_, allowed))}
    if not chosen:
        return graph
    return graph.rebuild(lambda node, inputs: _with_pairs(node, inputs, chosen.get(node, ())))


def _allowed(node: Node, pairs: InPlace, allowed: Callable[[Node], bool]) -> InPlace:
    """All pairs where they go together, or as many as go, one after another."""
    if allowed(_with_pairs(node, node.inputs, pairs)):
        return pairs
    kept: InPlace = ()
    for pair in pairs if len(pairs) > 1 else ():
        if allowed(_with_pairs(node, node.inputs, (*kept, pair))):
            kept = (*kept, pair)
    return kept


def updates(graph: Graph) -> Iterator[Update]:
    """What could be done in place, one update for each mutation at most."""
    values = [m.value for m in graph.mutations]
    for mutation in graph.mutations:
        if values.count(mutation.value) == 1:
            found = _update(graph, mutation)
            if found is not None:
                yield found


def _update(graph: Graph, mutation: Mutation) -> Update | None:
    value, target = mutation.value, mutation.target
    node = value.inputs[0] if value.is_a(ops.item) else value
    if not node.is_a(ops.fused) or node.inputs.count(target) != 1 or value.type != target.type:
        return None
    # once it is overwritten, the old value is gone
    if graph.users[target] != (node,) or target in graph.roots:
        return None
    result = value.attrs["index"] if value.is_a(ops.item) else 0
    assert isinstance(result, int)
    layout = node.attrs["layouts"][result]  # type: ignore[index]
    return Update(node, result, node.inputs.index(target)) if layout == tuple(range(len(target.shape))) else None


def _with_pairs(node: Node, inputs: tuple[Node, ...], pairs: InPlace) -> Node:
    if not pairs:
        return node.with_inputs(inputs)
    return ops.fused(*inputs, **{**node.attrs, "in_place": pairs}).keep_origin(node.origin)
