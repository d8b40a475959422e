"""Weights-only work, done once: what depends on weights alone becomes a weight of its own, computed at load."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import sympy
import torch

from ..ir import ops
from ..ir.errors import SmeltError
from ..ir.graph import Graph
from ..ir.interpret import evaluate
from ..ir.node import Node, Trait, topological
from ..ir.types import TensorType
from .context import Context

# Views that code generation reads in place, for any strides.
STRIDED = (ops.permute, ops.reshape, ops.slice_, ops.expand)
# A derived weight that is larger than what it is computed from may have so many elements.
MAX_ELEMENTS = 1 << 20


def hoist(graph: Graph, context: Context) -> Graph:
    """The graph with each largest computation on weights and constants replaced by a weight ``derived.N``.

    Its definition is kept in ``context.derived``. Equal elements become a constant instead. What depends on a symbolic
    size, on a weight that the graph changes, or on an effect stays. Views and widening casts of a result stay as well:
    they are read in place.
    """
    found: dict[Node, Node] = {}
    names = _new_names({str(w.attrs["name"]) for w in graph.weights()} | context.derived.keys())
    for node in dict.fromkeys(_targets(graph, constant_nodes(graph), context)):
        replacement = None if node.has(Trait.SOURCE, Trait.CREATION) else _replacement(node, names)
        if replacement is not None and context.take("hoist", node, replacement):
            found[node] = replacement.keep_origin(node.origin)
            if replacement.op is ops.weight:
                context.derived[str(replacement.attrs["name"])] = node
    if not found:
        return graph
    return graph.rebuild(lambda node, inputs: found.get(node) or node.with_inputs(inputs))


def _new_names(taken: set[str]) -> Iterator[str]:
    return (name for name in map("derived.{}".format, itertools.count()) if name not in taken)


def constant_nodes(graph: Graph) -> set[Node]:
    """The nodes that have one value for all calls: of weights that do not change and constants, and of fixed size."""
    changed = {m.target for m in graph.mutations}
    constant: set[Node] = set()
    for node in graph.nodes:
        if (
            node not in changed
            and _is_pure(node)
            and all(x in constant for x in node.inputs)
            and not _has_symbols(node)
        ):
            constant.add(node)
    return constant


def _is_pure(node: Node) -> bool:
    return node.op is not ops.input and not node.has(Trait.REGION) and not node.attrs.get("serial")


def _has_symbols(node: Node) -> bool:
    return any(isinstance(value, sympy.Expr) for value in _flat(tuple(node.attrs.values())))


def _flat(values: tuple[Any, ...]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple):
            yield from _flat(value)
        elif isinstance(value, TensorType):
            yield from value.shape
        else:
            yield value


def _targets(graph: Graph, constant: set[Node], context: Context) -> Iterator[Node]:
    """What to compute ahead: constants that others read, without the views around them."""
    for node in graph.nodes:
        if node not in constant:
            for at, x in enumerate(node.inputs):
                if x in constant:
                    stored = _is_matrix(node, at) and _is_stored(x, context)
                    yield x if stored or _is_across(node, x) else _without_views(x)
    yield from (_without_views(root) for root in graph.roots if root in constant)


def _is_matrix(user: Node, at: int) -> bool:
    return at == 1 and user.op in (ops.matmul, ops.linear)


def _is_stored(matrix: Node, context: Context) -> bool:
    """Whether a view becomes a weight of its own: of filters as matrices, so that they are read as others are.

    Where the terms of a filter stand in order that takes no memory, since PyTorch makes a view of it.
    """
    if matrix.op is ops.permute:
        return context.target.store_transposes
    filters = matrix
    while filters.op in (ops.reshape, ops.permute):
        filters = filters.inputs[0]
    is_read_in_place = filters.op in STRIDED or _widens(filters)
    return matrix.op is ops.reshape and matrix.tensor_type.rank in (2, 3) and not is_read_in_place


def _is_across(user: Node, x: Node) -> bool:
    """Whether pointwise work reads a weight across the order in which it lies: its vectors would be gathered."""
    if not user.has(Trait.POINTWISE) or x.op is not ops.permute or len(x.shape) < 2:
        return False
    dims, size = x.attrs["dims"], x.tensor_type.numel
    moved = dims[-1] != len(x.shape) - 1 and x.shape[-1] != 1  # type: ignore[index]
    return moved and isinstance(size, int) and size <= MAX_ELEMENTS


def _without_views(node: Node) -> Node:
    while node.op in STRIDED or _widens(node):
        node = node.inputs[0]
    return node


def _widens(node: Node) -> bool:
    """Whether a node is a cast to a larger dtype: done on reading, it saves the bytes."""
    return node.op is ops.cast and node.dtype.itemsize > node.inputs[0].dtype.itemsize


def _replacement(node: Node, names: Iterator[str]) -> Node | None:
    """The weight or constant for a computation; None where it is too large to keep or has no value."""
    sources = [x for x in topological((node,)) if x.op is ops.weight]
    if not is_worth_keeping(node, sources):
        return None
    if not sources:
        try:
            value = evaluate([node], {})[0]
        except (SmeltError, RuntimeError, IndexError):
            return None  # PyTorch refuses it: let it do so when the model runs
        if _is_uniform(value):
            element = value.flatten()[0].item() if value.numel() else 0
            return ops.full(shape=node.shape, value=element, dtype=node.dtype)
    return ops.weight(name=next(names), shape=node.shape, dtype=node.dtype)


def is_worth_keeping(node: Node, sources: Iterable[Node]) -> bool:
    """Whether a value computed from these weights is small enough to be kept."""
    size = node.tensor_type.numel
    return isinstance(size, int) and size <= max(MAX_ELEMENTS, 2 * sum(int(w.tensor_type.numel) for w in sources))


def _is_uniform(value: torch.Tensor) -> bool:
    flat = value.flatten()
    if not flat.numel():
        return True
    same = (flat == flat[0]).all()
    return bool(same and (not flat.dtype.is_floating_point or (flat.signbit() == flat[0].signbit()).all()))
