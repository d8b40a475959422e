"""Sums of products: matmul, the one primitive contraction."""

from __future__ import annotations

import torch

from ..node import Node, Trait
from ..types import Dim, TensorType, broadcast_shapes
from .base import declare, elements, is_number, require, require_dtype, same_dtype


def _matmul_type(a: TensorType, b: TensorType) -> TensorType:
    require(a.rank >= 2 and b.rank >= 2, f"matmul: operands of rank {a.rank} and {b.rank}; both need at least 2")
    require_dtype("matmul", a, is_number)
    require(a.shape[-1] == b.shape[-2], f"matmul: inner dims differ: {a} and {b}")
    batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return TensorType((*batch, a.shape[-2], b.shape[-1]), same_dtype("matmul", (a, b)))


def matmul_flops(node: Node) -> Dim:
    """A multiply and an add for each term."""
    return 2 * elements(node) * node.inputs[0].shape[-1]


# a [..., M, K], b [..., K, N] -> [..., M, N]; batch dims broadcast
matmul = declare(
    "matmul",
    infer=_matmul_type,
    evaluate=torch.matmul,
    arity=(2, 2),
    traits={Trait.CONTRACTION},
    flops=matmul_flops,
)
