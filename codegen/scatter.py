"""Lowering of operators that write where data says: a copy of the tensor, then stores to indices from data."""

from __future__ import annotations

from ..ir import ops
from ..ir.errors import UnsupportedError
from ..ir.node import Node
from . import attrs
from .indexing import broadcast_index, replaced
from .lowering import Lowering, index_of, loops
from .program import Store
from .values import chosen


def stores(lowering: Lowering) -> list[Store]:
    """The stores of a region whose only result is an ``index_put`` or a ``scatter``.

    Raises:
        UnsupportedError: there are more results, or the operator's result is read again.
    """
    region = lowering.region
    if len(region.outputs) != 1 or not region.outputs[0].is_a(ops.index_put, ops.scatter):
        raise UnsupportedError("a scatter with anything after it in one kernel")
    (node,) = region.outputs
    axes = lowering.axes_for(node.shape)
    index = index_of(axes)
    copy = Store("out0", loops(axes), index, lowering.value(node.inputs[0], index))
    return [copy, _index_put(lowering, node) if node.is_a(ops.index_put) else _scatter(lowering, node)]


def _index_put(lowering: Lowering, node: Node) -> Store:
    """x[..., i, j] = value: the indices choose along the axes from ``dim`` on."""
    x, value, *indices = node.inputs
    dim = attrs.integer(node, "dim")
    picked = ops.index(x, *indices, dim=dim).shape  # what would be read at these places
    rank = len(picked) - (len(x.shape) - len(indices))
    axes = lowering.axes_for(picked)
    at = index_of(axes)
    places = chosen(lowering, x, tuple(indices), dim, at[dim : dim + rank], wrap=True)
    return Store(
        "out0",
        loops(axes),
        (*at[:dim], *places, *at[dim + rank :]),
        lowering.value(value, broadcast_index(value.shape, at)),
        attrs.flag(node, "accumulate"),
    )


def _scatter(lowering: Lowering, node: Node) -> Store:
    """x[a, i[a, b]] = src[a, b] for dim = 1."""
    x, i, src = node.inputs
    axes = lowering.axes_for(i.shape)
    at = index_of(axes)
    accumulate = node.attrs["reduce"] == "add"
    if not at:  # of one element, which any index names
        return Store("out0", loops(axes), at, lowering.value(src, at), accumulate)
    dim = attrs.integer(node, "dim")
    (place,) = chosen(lowering, x, (i,), dim, at, wrap=False)
    return Store("out0", loops(axes), replaced(at, dim, place), lowering.value(src, at), accumulate)
