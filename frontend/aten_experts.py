"""Lowerings of grouped products: rows sorted by expert, each multiplied with its expert's matrix."""

from __future__ import annotations

from typing import Any

import torch

from ..ir import ops
from ..ir.node import Node
from .table import Call, NotLowered, cast, full, lowers, reshape


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
    rows = x.shape[0]
    experts = weight.shape[0]
    place = cast(ops.arange(size=rows), offs.dtype)
    ended = ops.ge(reshape(place, (rows, 1)), offs)  # [S, E]
    group = ops.sum(cast(ended, torch.int64), dims=(1,))  # [S]
    inside = ops.lt(group, ops.scalar_like(experts, group))
    chosen = ops.where(inside, group, ops.scalar_like(0, group))
    matrices = ops.index(weight, chosen, dim=0)  # [S, K, N]
    product = ops.matmul(ops.unsqueeze(x, 1), matrices)
    y = reshape(product, (rows, weight.shape[2]))
    return ops.where(reshape(inside, (rows, 1)), y, full((), 0, y.dtype))
