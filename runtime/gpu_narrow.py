"""Values between kernels in the half type that they are widened from: half the bytes, and nothing is lost.

Where a kernel ends by widening a half type to float32, as before a product with a weight of few bits, the half is
stored and each reader widens it. Then its product may take the half type itself (``codegen/triton/few_bits.py``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..ir import ops
from ..ir.graph import Graph
from ..ir.node import Node
from .kernels import in_place_of, region_of


def narrowed(graph: Graph) -> Graph:
    """The fused graph with such values in their half type."""
    wide = {value for value in graph.nodes if _may_be_narrow(graph, value)}
    if not wide:
        return graph

    def transform(node: Node, inputs: tuple[Node, ...]) -> Node:
        if not node.is_a(ops.fused):
            return node.with_inputs(inputs)
        region = region_of(node)
        read = [i for i, x in enumerate(node.inputs) if x in wide]
        made = [i for i, x in enumerate(_results(graph, node)) if x in wide]
        if not read and not made:
            return node.with_inputs(inputs)
        changed = _widening(_without_casts(region, made), {i: inputs[i].dtype for i in read})
        return ops.fused(*inputs, **{**node.attrs, "region": changed}).keep_origin(node.origin)

    return graph.rebuild(transform)


def _may_be_narrow(graph: Graph, value: Node) -> bool:
    """Whether a value is widened last in its kernel, and only kernels read it, none in place of it."""
    source, index = (value.inputs[0], int(value.attrs["index"])) if value.is_a(ops.item) else (value, 0)  # type: ignore[arg-type]
    if not source.is_a(ops.fused) or (source is value and len(region_of(source).outputs) > 1):
        return False
    if in_place_of(source) or value in graph.root_set or any(m.target is value for m in graph.mutations):
        return False
    users = graph.users[value]
    return _half_of(region_of(source).outputs[index]) is not None and all(
        user.is_a(ops.fused) and not in_place_of(user) for user in users
    )


def _half_of(value: Node) -> Node | None:
    """The half type that a value is widened from."""
    if value.is_a(ops.cast) and value.dtype == torch.float32 and value.inputs[0].dtype in ops.HALF:
        return value.inputs[0]
    return None


def _results(graph: Graph, node: Node) -> list[Node | None]:
    """The values that a fused node's results are in the graph; None for one that nothing reads."""
    count = len(region_of(node).outputs)
    if count == 1:
        return [node]
    items = {int(u.attrs["index"]): u for u in graph.users[node] if u.is_a(ops.item)}  # type: ignore[arg-type]
    return [items.get(i) for i in range(count)]


def _without_casts(region: Graph, made: list[int]) -> Graph:
    outputs = list(region.outputs)
    for i in made:
        half = _half_of(outputs[i])
        assert half is not None
        outputs[i] = half
    return Graph(region.inputs, outputs, symbols=region.symbols)


def _widening(region: Graph, halves: Mapping[int, torch.dtype]) -> Graph:
    """A region that gets some of its operands, by number, in a half type, and widens them."""
    inputs, new = list(region.inputs), dict[Node, Node]()
    for i, dtype in halves.items():
        old = inputs[i]
        inputs[i] = ops.input(name=old.attrs["name"], shape=old.shape, dtype=dtype)
        new[old] = ops.cast(inputs[i], dtype=old.dtype)
    for node in region.nodes:
        if node not in new:
            new[node] = node.with_inputs(tuple(new[x] for x in node.inputs))
    return Graph(inputs, [new[x] for x in region.outputs], symbols=region.symbols)
