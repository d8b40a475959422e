"""What a product or an attention may compute of its own operands, in its kernel.

A product's rows: a norm, an activation or any other work over the rows of the left operand. The kernel computes each
row once, before the product begins, and holds it; values of the rows that others read are stored by the way. So nothing
is computed twice, a kernel is started less, and what only the product reads never leaves the cache.

An attention's queries: each is read once, so that pointwise work on them is done where they are read. Its keys and
values where they lie in memory in fewer bytes: they become floats where they are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from ..ir import ops
from ..ir.node import Node, Trait, through_views
from ..ir.types import Shape, product

MAX_QUERY_NODES = 8  # operators on the queries of an attention


def refuse_rows(linear: Node, rows: Node, nodes: Sequence[Node], escaping: Iterable[Node]) -> str | None:
    """Why ``nodes``, which compute ``rows``, cannot go before a product in its kernel; None where they can.

    Args:
        linear: the product.
        rows: what it reads of the group.
        nodes: the group: pointwise work, reductions along the last axis.
        escaping: those of the group's values that are read elsewhere too.
    """
    shape = rows.shape
    if not linear.is_a(ops.linear, ops.quantized_linear) or linear.inputs[0] is not rows:
        return "operands of a product are read many times"
    terms = shape[-1]
    if not isinstance(terms, int) or terms < 2:
        return f"rows of {terms} elements cannot be held: the size must be a number"
    if any(n.has(Trait.CONCAT) or n.is_a(ops.slice_put) for n in nodes if n.shape == shape) and _no_reduction(nodes):
        return "values in pieces make a kernel of their own"
    if any(through_views(x) in nodes for x in linear.inputs[1:]):
        return "the weight or the bias of the product is computed"
    if any(through_views(x) is through_views(linear.inputs[1]) for n in nodes for x in n.inputs):
        return "the weight of the product is read for its rows too: it could not be packed"
    if any(n.shape != shape for n in escaping):
        return "a value of another shape than the rows is read elsewhere"
    return None


def chooses_matrices(product: Node, matrices: Node, nodes: Sequence[Node]) -> bool:
    """Whether ``matrices`` only chooses, for each product of a batch, a whole matrix as its right operand.

    The kernel then reads the matrices where they lie: a copy of them would be as large as all that were chosen.
    """
    if not product.is_a(ops.matmul) or not matrices.is_a(ops.index) or list(nodes) != [matrices]:
        return False
    right = product.inputs[1]
    while right is not matrices and right.is_a(ops.permute):
        right = right.inputs[0]
    places = matrices.inputs[1]
    batch = product.tensor_type.rank - 2
    one = len(matrices.inputs) == 2 and matrices.attrs["dim"] == 0 and places.tensor_type.rank == batch
    left = through_views(product.inputs[0])
    return one and right is matrices and matrices.inputs[0].tensor_type.rank == 3 and left is not matrices


def _no_reduction(nodes: Iterable[Node]) -> bool:
    return not any(n.has(Trait.REDUCTION, Trait.SCAN) for n in nodes)


def widens_cache(attention: Node, operand: Node, nodes: Sequence[Node], alone: bool) -> bool:
    """Whether ``nodes`` only make floats of keys or values that lie in memory in fewer bytes.

    Fewer bytes are read that way, and nothing as large as the cache is written. The arguments are those of
    :func:`refuse_queries`.
    """
    queries, keys, values, *masks = attention.inputs
    if not alone or operand not in (keys, values) or operand in (through_views(x) for x in (queries, *masks)):
        return False
    *before, last = nodes
    if last is not operand or any(n.shape != operand.shape for n in nodes):
        return False
    if not before:
        stored = last.inputs[0].dtype
        return last.is_a(ops.cast) and stored in ops.HALF and last.dtype.itemsize > stored.itemsize
    return len(before) == 1 and _scales_rows(before[0], last)


def _scales_rows(widened: Node, scaled: Node) -> bool:
    """Whether int8 becomes float32, and is then multiplied by one number for each row."""
    if not widened.is_a(ops.cast) or not scaled.is_a(ops.mul) or widened not in scaled.inputs:
        return False
    scales = [through_broadcast(x) for x in scaled.inputs if x is not widened]
    is_int8 = widened.inputs[0].dtype == torch.int8 and widened.dtype == torch.float32
    return is_int8 and len(scales) == 1 and scales[0].tensor_type.rank > 0 and scales[0].shape[-1] == 1


def through_broadcast(x: Node) -> Node:
    """What a value was before it was repeated along axes."""
    while x.is_a(ops.expand):
        x = x.inputs[0]
    return x


def refuse_queries(attention: Node, queries: Node, nodes: Sequence[Node], domain: Shape, alone: bool) -> str | None:
    """Why pointwise ``nodes`` cannot be computed where an attention reads its operands; None where they can.

    Args:
        attention: what reads them.
        queries: what it reads of the group, through views: its queries, unless they are keys or values of fewer bytes.
        nodes: the group.
        domain: the shape of the group's loops.
        alone: whether nothing else reads a value of the group.
    """
    if widens_cache(attention, queries, nodes, alone):
        return None
    q, *others = attention.inputs
    if through_views(q) is not queries or any(through_views(x) in nodes for x in others):
        return "keys, values and masks are read many times"
    if not alone:
        return "its value is read elsewhere too"
    if len(nodes) > MAX_QUERY_NODES or not all(n.has(Trait.POINTWISE) or n.is_a(ops.rope) for n in nodes):
        return "the queries are more than pointwise work"
    if product(q.shape) != product(domain) or any(n.shape != domain for n in nodes):
        return "it would be computed again for each element it is used for"
    return None
