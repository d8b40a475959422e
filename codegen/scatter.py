"""Lowering of operators that write where data says: a copy of the tensor, then stores to indices from data."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir import ops
from ..ir.errors import UnsupportedError
from ..ir.node import Node
from ..ir.types import Shape
from . import attrs
from .indexing import broadcast_index, plus, replaced
from .lowering import Lowering, index_of, loops
from .pieces import Box, boxes_of
from .program import Store
from .values import chosen


def stores(lowering: Lowering) -> list[Store]:
    """The stores of a region whose results are those of ``index_put`` and ``scatter``, each of a tensor of its own.

    Raises:
        UnsupportedError: there is another result, or an operator's result is read again.
    """
    outputs = lowering.region.outputs
    if not all(node.is_a(ops.index_put, ops.scatter) for node in outputs):
        raise UnsupportedError("a scatter with anything after it in one kernel")
    return [store for i, node in enumerate(outputs) for store in _stores(lowering, f"out{i}", node)]


def _stores(lowering: Lowering, name: str, node: Node) -> list[Store]:
    axes = lowering.axes_for(node.shape)
    index = index_of(axes)
    copy = Store(name, loops(axes), index, lowering.value(node.inputs[0], index))
    return [copy, *(_index_put if node.is_a(ops.index_put) else _scatter)(lowering, name, node)]


def _index_put(lowering: Lowering, name: str, node: Node) -> list[Store]:
    """x[..., i, j] = value: the indices choose along the axes from ``dim`` on."""
    x, value, *indices = node.inputs
    picked = ops.index(x, *indices, dim=attrs.integer(node, "dim")).shape  # what would be read at these places
    whole = [tuple((0, size) for size in picked)]
    # a box has no guards in it, but which of two writers is the last must not change
    boxes = boxes_of(value, lowering.bounds) if value.shape == picked and _is_one_place(indices) else whole
    return [_box(lowering, name, node, picked, box) for box in boxes]


def _is_one_place(indices: Sequence[Node]) -> bool:
    """Whether indices name one place alone, so that no element is written twice."""
    return all(i.tensor_type.numel == 1 for i in indices)


def _box(lowering: Lowering, name: str, node: Node, picked: Shape, box: Box) -> Store:
    x, value, *indices = node.inputs
    dim = attrs.integer(node, "dim")
    rank = len(picked) - (len(x.shape) - len(indices))
    axes = lowering.axes_for(tuple(size for _, size in box))
    at = tuple(plus(start, i) for (start, _), i in zip(box, index_of(axes), strict=True))
    places = chosen(lowering, x, tuple(indices), dim, at[dim : dim + rank], wrap=True)
    return Store(
        name,
        loops(axes),
        (*at[:dim], *places, *at[dim + rank :]),
        lowering.value(value, broadcast_index(value.shape, at)),
        attrs.flag(node, "accumulate"),
    )


def _scatter(lowering: Lowering, name: str, node: Node) -> list[Store]:
    """x[a, i[a, b]] = src[a, b] for dim = 1."""
    x, i, src = node.inputs
    axes = lowering.axes_for(i.shape)
    at = index_of(axes)
    accumulate = node.attrs["reduce"] == "add"
    if not at:  # of one element, which any index names
        return [Store(name, loops(axes), at, lowering.value(src, at), accumulate)]
    dim = attrs.integer(node, "dim")
    (place,) = chosen(lowering, x, (i,), dim, at, wrap=False)
    return [Store(name, loops(axes), replaced(at, dim, place), lowering.value(src, at), accumulate)]
