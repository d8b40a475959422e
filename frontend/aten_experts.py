"""Lowerings of grouped products: rows sorted by expert, each multiplied with its expert's matrix."""

from __future__ import annotations

from typing import Any

import sympy
import torch

from ..ir import ops
from ..ir.node import Node
from ..ir.types import Dim
from .aten_order import sorted_numbers
from .aten_view import part
from .table import Call, NotLowered, cast, full, lowers, reshape

TILE = 16  # rows of one expert that are computed together


@lowers("_grouped_mm.default")
def _grouped_mm(
    call: Call, x: Node, weight: Node, offs: Node | None = None, bias: Node | None = None, out_dtype: Any = None
) -> Node:
    if offs is None or bias is not None or x.tensor_type.rank != 2 or weight.tensor_type.rank != 3:
        raise NotLowered("a grouped product of other operands than rows, matrices and offsets")
    return cast(grouped(x, weight, offs), call.dtype)


@lowers("grouped_mm_fallback.default", namespace="transformers")
def _grouped_mm_fallback(call: Call, input: Node, weight: Node, offs: Node) -> Node:
    return grouped(input, weight, offs)


def grouped(x: Node, weight: Node, offs: Node) -> Node:
    """Rows [S, K] times the matrix [K, N] of their group out of [E, K, N]; group e ends before row ``offs[e]``.

    Rows after the last group are zero.
    """
    rows, experts = x.shape[0], weight.shape[0]
    known = sorted_numbers(offs)
    group = _group_of_rows(rows, offs) if known is None else cast(known, torch.int64)
    inside = ops.lt(group, ops.scalar_like(experts, group))
    if known is None:
        group = ops.where(inside, group, ops.scalar_like(0, group))
    if isinstance(rows, int) and isinstance(experts, int) and rows <= rows // TILE + experts:
        y = _row_by_row(x, weight, group)
    else:
        y = _in_tiles(x, weight, group, offs)
    return y if known is not None else ops.where(reshape(inside, (rows, 1)), y, full((), 0, y.dtype))


def _group_of_rows(rows: Dim, offs: Node) -> Node:
    """Which group each of some rows is in [S]: the number of those that ended before; E for rows of none."""
    place = cast(ops.arange(size=rows), offs.dtype)
    return ops.sum(cast(ops.ge(reshape(place, (rows, 1)), offs), torch.int64), dims=(1,))


def _row_by_row(x: Node, weight: Node, group: Node) -> Node:
    """Each row by a matrix of its own, which is read where it lies: the least work for few rows.

    Of matrices that lie with their terms side by side, as those of linear layers do, each result is a sum along memory:
    a reduction reads them at the rate of memory, where a product would copy them to registers first.
    """
    if weight.is_a(ops.permute) and weight.attrs["dims"] == (0, 2, 1):
        wide = torch.float32 if x.dtype in ops.HALF else x.dtype
        matrices = ops.index(weight.inputs[0], group, dim=0)  # [S, N, K]
        terms = ops.mul(cast(matrices, wide), cast(ops.unsqueeze(x, 1), wide))
        return cast(ops.sum(terms, dims=(2,)), x.dtype)
    product = ops.matmul(ops.unsqueeze(x, 1), ops.index(weight, group, dim=0))
    return reshape(product, (x.shape[0], weight.shape[2]))


def _in_tiles(x: Node, weight: Node, group: Node, offs: Node) -> Node:
    """Rows in tiles of one group each, so that a matrix is read once for a tile.

    A group's last tile is filled with rows that nobody reads; so many tiles as there may be are computed.
    """
    rows, experts = x.shape[0], weight.shape[0]
    tiles = sympy.floor(sympy.sympify(rows) / TILE) + experts
    tiles = int(tiles) if tiles.is_Integer else tiles
    ends = cast(offs, torch.int64)
    zero = full((1,), 0, torch.int64)
    starts = ops.concat(zero, part(ends, 0, 0, experts - 1), dim=0) if experts != 1 else zero
    size, last = (ops.scalar_like(value, ends) for value in (TILE, TILE - 1))
    needed = ops.floor_div(ops.add(ops.sub(ends, starts), last), size)  # tiles of each group [E]
    tile_ends = ops.cumsum(needed, dim=0)
    tile_starts = ops.sub(tile_ends, needed)
    tile = ops.arange(size=tiles)
    done = ops.ge(reshape(tile, (tiles, 1)), tile_ends)  # [T, E]
    beyond = ops.sum(cast(done, torch.int64), dims=(1,))
    owner = ops.minimum(beyond, ops.scalar_like(experts - 1, beyond))  # the group of each tile [T]
    first = ops.add(ops.index(starts, owner, dim=0), ops.mul(ops.sub(tile, ops.index(tile_starts, owner, dim=0)), size))
    row = ops.add(reshape(first, (tiles, 1)), ops.arange(size=TILE))  # [T, TILE]
    row = ops.minimum(row, ops.scalar_like(rows - 1, row))
    product = ops.matmul(ops.index(x, row, dim=0), ops.index(weight, owner, dim=0))  # [T, TILE, N]
    slot = ops.add(
        ops.mul(ops.index(tile_starts, group, dim=0), size),
        ops.sub(ops.arange(size=rows), ops.index(starts, group, dim=0)),
    )
    return ops.index(reshape(product, (tiles * TILE, weight.shape[2])), slot, dim=0)
