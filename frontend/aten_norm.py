"""Lowerings of ATen's normalisation layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..ir import ops
from ..ir.node import Node
from ..ir.types import Dim, product
from .table import Call, NeedsFixed, NotLowered, cast, lowers, reshape


@lowers("layer_norm.default")
def _layer_norm(
    call: Call,
    x: Node,
    shape: Sequence[Dim],
    weight: Node | None = None,
    bias: Node | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Node:
    axes = len(shape)
    if weight is None and bias is not None:
        weight = ops.full(shape=bias.shape, value=1.0, dtype=bias.dtype)
    affine = [a for a in (weight, bias) if a is not None]
    return ops.layer_norm(x, *affine, eps=float(eps), axes=axes)


@lowers("native_layer_norm.default")
def _native_layer_norm(
    call: Call, x: Node, shape: Sequence[Dim], weight: Node | None, bias: Node | None, eps: float
) -> tuple[Node, Node, Node]:
    y = _layer_norm(call, x, shape, weight, bias, eps)
    rank = x.tensor_type.rank
    dims = tuple(range(rank - len(shape), rank))
    dtype = call.types[1].dtype
    wide = cast(x, torch.float32) if x.dtype in ops.HALF else x
    variance = ops.var(wide, dims=dims, keepdim=True, correction=0)
    deviation = ops.rsqrt(ops.add(variance, ops.scalar_like(float(eps), wide)))
    return y, cast(ops.mean(wide, dims=dims, keepdim=True), dtype), cast(deviation, dtype)


@lowers("rms_norm.default")
def _rms_norm(call: Call, x: Node, shape: Sequence[Dim], weight: Node | None = None, eps: float | None = None) -> Node:
    epsilon = torch.finfo(torch.float32 if x.dtype in ops.HALF else x.dtype).eps if eps is None else float(eps)
    if len(shape) == 1:
        affine = [] if weight is None else [cast(weight, x.dtype)]
        return cast(ops.rms_norm(x, *affine, eps=epsilon), call.dtype)
    # over several axes: as one axis
    rank = x.tensor_type.rank
    flat = reshape(x, (*x.shape[: rank - len(shape)], product(shape)))
    affine = [] if weight is None else [reshape(cast(weight, x.dtype), (product(shape),))]
    return cast(reshape(ops.rms_norm(flat, *affine, eps=epsilon), x.shape), call.dtype)


def _scaled_rows(x: Node, weight: Node | None, bias: Node | None, dtype: torch.dtype) -> Node:
    """Channel-wise weight and bias on [B, C, ...]."""
    line = (-1, *[1] * (x.tensor_type.rank - 2))
    for op, vector in ((ops.mul, weight), (ops.add, bias)):
        if vector is not None:
            x = op(x, reshape(cast(vector, x.dtype), (vector.shape[0], *line[1:])))
    return cast(x, dtype)


@lowers("group_norm.default")
def _group_norm(
    call: Call,
    x: Node,
    num_groups: int,
    weight: Node | None = None,
    bias: Node | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Node:
    batch, channels = x.shape[:2]
    if not isinstance(channels, int):
        raise NeedsFixed([channels], "the channels of a group norm")
    wide = cast(x, torch.float32) if x.dtype in ops.HALF else x
    group = channels // num_groups * product(x.shape[2:])
    rows = reshape(wide, (batch, num_groups, group))
    return _scaled_rows(reshape(ops.layer_norm(rows, eps=float(eps)), x.shape), weight, bias, call.dtype)


@lowers("batch_norm.default")
def _batch_norm(
    call: Call,
    x: Node,
    weight: Node | None,
    bias: Node | None,
    running_mean: Node | None,
    running_var: Node | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> Node:
    if training or running_mean is None or running_var is None:
        raise NotLowered("a batch norm over the statistics of its batch")
    if x.tensor_type.rank < 2:
        raise NotLowered("a batch norm without an axis of channels")
    wide = torch.float32 if x.dtype in ops.HALF else x.dtype
    shape = (x.shape[1], *[1] * (x.tensor_type.rank - 2))
    mean, variance = (cast(v, wide) for v in (running_mean, running_var))
    # the statistics are constants: scale and shift fold into one multiply and one add
    scale = ops.rsqrt(ops.add(variance, ops.scalar(float(eps), wide)))
    if weight is not None:
        scale = ops.mul(scale, cast(weight, wide))
    shift = ops.neg(ops.mul(mean, scale))
    if bias is not None:
        shift = ops.add(shift, cast(bias, wide))
    y = ops.add(ops.mul(cast(x, wide), reshape(scale, shape)), reshape(shift, shape))
    return cast(y, call.dtype)


@lowers("_native_batch_norm_legit_no_training.default")
def _native_batch_norm(
    call: Call, x: Node, weight: Any, bias: Any, mean: Node, var: Node, momentum: float, eps: float
) -> tuple[Node, Node, Node]:
    y = _batch_norm(call, x, weight, bias, mean, var, False, momentum, eps)
    empty = ops.full(shape=(0,), value=0.0, dtype=call.types[1].dtype)
    return y, empty, empty
