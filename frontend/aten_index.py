"""Lowerings of ATen's operators that are addressed by values: gather, scatter and their kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..ir import ops
from ..ir.node import Node
from ..ir.ops.base import axis
from ..ir.types import Dim
from .aten_view import position
from .table import Call, NotLowered, Scalar, as_node, broadcast, cast, expand, full, lowers, permute, plain, reshape

MASKS = (torch.bool, torch.uint8)


@lowers("embedding.default")
def _embedding(
    call: Call, weight: Node, indices: Node, padding_idx: int = -1, scale_grad: bool = False, sparse: bool = False
) -> Node:
    return ops.embedding(weight, indices)


def _by_integers(indices: Sequence[Node | None]) -> list[tuple[int, Node]]:
    """The given indices with their axes."""
    given = [(at, i) for at, i in enumerate(indices) if i is not None]
    if any(i.dtype in MASKS for _, i in given):
        raise NotLowered("an index that is a mask: the size of the result depends on its values")
    return given


@lowers("index.Tensor", "_unsafe_index.Tensor")
def _index(call: Call, x: Node, indices: Sequence[Node | None]) -> Node:
    given = _by_integers(indices)
    if not given:
        return x
    front, dim, _ = _adjacent(x, given)
    return ops.index(front, *(i for _, i in given), dim=dim)


def _adjacent(x: Node, given: list[tuple[int, Node]]) -> tuple[Node, int, tuple[int, ...]]:
    """The operand with its indexed axes side by side, where they start, and the order of axes that was needed.

    Indexed axes that are apart come first in the result, which is what PyTorch does as well.
    """
    axes = [at for at, _ in given]
    rank = x.tensor_type.rank
    if axes == list(range(axes[0], axes[0] + len(axes))):
        return x, axes[0], tuple(range(rank))
    order = (*axes, *(d for d in range(rank) if d not in axes))
    return permute(x, order), 0, order


@lowers("index_put.default", "_unsafe_index_put.default")
def _index_put(
    call: Call, x: Node, indices: Sequence[Node | None], values: Node, accumulate: bool = False, unsafe: bool = False
) -> Node:
    value = cast(values, x.dtype)
    first = indices[0]
    if len(indices) == 1 and first is not None and first.dtype == torch.bool and value.tensor_type.numel == 1:
        return _put_under_mask(x, first, reshape(value, ()), accumulate)
    given = _by_integers(indices)
    if not given:
        return expand(value, x.shape) if not accumulate else ops.add(x, value)
    front, dim, order = _adjacent(x, given)
    put = ops.index_put(front, value, *(i for _, i in given), dim=dim, accumulate=accumulate)
    return permute(put, [order.index(d) for d in range(len(order))])


def _put_under_mask(x: Node, mask: Node, value: Node, accumulate: bool) -> Node:
    wide = reshape(mask, (*mask.shape, *[1] * (x.tensor_type.rank - mask.tensor_type.rank)))
    return ops.where(wide, ops.add(x, value) if accumulate else value, x)


@lowers("index_select.default")
def _index_select(call: Call, x: Node, dim: int, index: Node) -> Node:
    if not x.tensor_type.rank:
        return x
    line = reshape(index, (1,)) if not index.tensor_type.rank else index
    return ops.index(x, line, dim=dim, wrap=False)


@lowers("gather.default")
def _gather(call: Call, x: Node, dim: int, index: Node, *, sparse_grad: bool = False) -> Node:
    if not x.tensor_type.rank or not index.tensor_type.rank:
        flat = ops.gather(reshape(x, (x.tensor_type.numel,)), reshape(index, (index.tensor_type.numel,)), dim=0)
        return reshape(flat, call.shape)
    return ops.gather(x, index, dim=dim)


@lowers("take_along_dim.default")
def _take_along_dim(call: Call, x: Node, index: Node, dim: int | None = None) -> Node:
    if dim is None:
        flat = reshape(index, (index.tensor_type.numel,))
        return ops.gather(reshape(x, (x.tensor_type.numel,)), flat, dim=0)
    at = axis(dim, x.tensor_type.rank)
    shape = [a if i == at or a != 1 else b for i, (a, b) in enumerate(zip(x.shape, index.shape, strict=True))]
    wide = expand(x, shape)
    # as in PyTorch, where an index beyond the axis goes around it, however far
    index = ops.remainder(index, ops.scalar_like(x.shape[at], index))
    return ops.gather(
        wide,
        expand(index, [b if i == at else a for i, (a, b) in enumerate(zip(shape, index.shape, strict=True))]),
        dim=at,
    )


@lowers("take.default")
def _take(call: Call, x: Node, index: Node) -> Node:
    return ops.index(reshape(x, (x.tensor_type.numel,)), index, dim=0)


@lowers("scatter.src", "scatter.value", "scatter_add.default")
def _scatter(call: Call, x: Node, dim: int, index: Node, src: Any) -> Node:
    if not x.tensor_type.rank or not index.tensor_type.rank:
        raise NotLowered("a scatter of a 0-d tensor")
    source = cast(src, x.dtype) if isinstance(src, Node) else full(index.shape, src, x.dtype)
    return ops.scatter(x, index, source, dim=dim, reduce="add" if "add" in call.name else "none")


@lowers("index_copy.default", "index_add.default")
def _index_copy(call: Call, x: Node, dim: int, index: Node, source: Node, *, alpha: Scalar = 1) -> Node:
    if not x.tensor_type.rank:
        raise NotLowered("an index into a 0-d tensor")
    line = reshape(index, (1,)) if not index.tensor_type.rank else index
    at = axis(dim, x.tensor_type.rank)
    value = reshape(cast(source, x.dtype), (*x.shape[:at], line.shape[0], *x.shape[at + 1 :]))
    if alpha != 1:
        value = ops.mul(value, ops.scalar_like(plain(alpha, x.dtype), x))
    return ops.index_put(x, value, line, dim=at, accumulate="add" in call.name)


@lowers("index_fill.int_Scalar", "index_fill.int_Tensor")
def _index_fill(call: Call, x: Node, dim: int, index: Node, value: Any) -> Node:
    if not x.tensor_type.rank:
        raise NotLowered("an index into a 0-d tensor")
    line = reshape(index, (1,)) if not index.tensor_type.rank else index
    return ops.index_put(x, as_node(value, x.dtype), line, dim=dim)


@lowers("slice_scatter.default")
def _slice_scatter(
    call: Call, x: Node, src: Node, dim: int = 0, start: Dim | None = None, end: Dim | None = None, step: int = 1
) -> Node:
    at = axis(dim, x.tensor_type.rank)
    if src.shape[at] == x.shape[at] and step == 1:
        return cast(src, x.dtype)
    first = position(start, x.shape[at], call.sizes, 0)
    return ops.slice_put(x, cast(src, x.dtype), dim=at, start=first, step=step)


@lowers("select_scatter.default")
def _select_scatter(call: Call, x: Node, src: Node, dim: int, index: Dim) -> Node:
    at = axis(dim, x.tensor_type.rank)
    row = ops.unsqueeze(cast(src, x.dtype), at)
    first = position(index, x.shape[at], call.sizes, 0)
    return row if x.shape[at] == 1 else ops.slice_put(x, row, dim=at, start=first)


@lowers("isin.Tensor_Tensor")
def _isin(call: Call, x: Node, tests: Node, *, assume_unique: bool = False, invert: bool = False) -> Node:
    flat = reshape(tests, (tests.tensor_type.numel,))
    left, right = broadcast(ops.unsqueeze(x, -1), flat)
    found = ops.any(ops.eq(left, right), dims=(x.tensor_type.rank,))
    return ops.bit_not(found) if invert else found
