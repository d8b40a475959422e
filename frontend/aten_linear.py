"""Lowerings of ATen's products: matrices, linear layers, attention, and convolutions that are products of patches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..ir import ops
from ..ir.node import Node
from ..ir.types import Dim, broadcast_shapes, product
from .convolution import Steps, dense, depthwise, grouped, per_axis, tiled
from .table import Call, NeedsFixed, NotLowered, Scalar, cast, expand, lowers, plain, reshape


@lowers("mm.default", "bmm.default")
def _mm(call: Call, a: Node, b: Node) -> Node:
    return ops.matmul(a, b)


@lowers("matmul.default", "linalg_matmul.default", "dot.default", "vdot.default", "inner.default", "mv.default")
def _matmul(call: Call, a: Node, b: Node) -> Node:
    if call.name == "aten.inner.default":
        if not a.tensor_type.rank or not b.tensor_type.rank:
            return ops.mul(a, b)
        b = ops.transpose(b, -1, -2) if b.tensor_type.rank > 1 else b
        if a.tensor_type.rank > 1 and b.tensor_type.rank > 2:
            raise NotLowered("an inner product of tensors of higher rank")
    left = a if a.tensor_type.rank > 1 else reshape(a, (1, a.shape[0]))
    right = b if b.tensor_type.rank > 1 else reshape(b, (b.shape[0], 1))
    return reshape(ops.matmul(left, right), call.shape)


@lowers("outer.default", "ger.default")
def _outer(call: Call, a: Node, b: Node) -> Node:
    column, row = reshape(a, (a.shape[0], 1)), reshape(b, (1, b.shape[0]))
    return ops.mul(cast(column, call.dtype), cast(row, call.dtype))


@lowers("linear.default")
def _linear(call: Call, x: Node, weight: Node, bias: Node | None = None) -> Node:
    if weight.tensor_type.rank == 1:
        y = reshape(ops.linear(x, reshape(weight, (1, weight.shape[0]))), call.shape)
        return y if bias is None else ops.add(y, bias)
    if bias is not None and bias.shape != weight.shape[:1]:
        return ops.add(ops.linear(x, weight), bias)
    return ops.linear(x, weight) if bias is None else ops.linear(x, weight, bias)


@lowers("addmm.default", "baddbmm.default", "addmv.default")
def _addmm(call: Call, x: Node, a: Node, b: Node, *, beta: Scalar = 1, alpha: Scalar = 1) -> Node:
    if (beta, alpha) == (1, 1) and b.op is ops.weight and b.tensor_type.rank == 2 and x.shape == b.shape[1:]:
        # a layer that keeps its weight the other way round
        return ops.linear(a, ops.transpose(b, 0, 1), x)
    wide = torch.float32 if call.dtype in ops.HALF and (beta, alpha) != (1, 1) else call.dtype
    right = reshape(b, (b.shape[0], 1)) if b.tensor_type.rank == 1 else b
    y = cast(reshape(ops.matmul(a, right), call.shape), wide)
    if alpha != 1:
        y = ops.mul(y, ops.scalar(plain(alpha, wide), wide))
    if beta == 0:
        return cast(y, call.dtype)
    x = cast(x, wide)
    if beta != 1:
        x = ops.mul(x, ops.scalar(plain(beta, wide), wide))
    return cast(ops.add(y, x), call.dtype)


# --- attention --------------------------------------------------------------------------------------------------------


@lowers("scaled_dot_product_attention.default")
def _attention(
    call: Call,
    query: Node,
    key: Node,
    value: Node,
    attn_mask: Node | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Node:
    if dropout_p:
        raise NotLowered("attention with dropout")
    width = query.shape[-1]
    if not isinstance(width, int):
        raise NeedsFixed([width], "the width of an attention head")
    factor = scale if scale is not None else 1 / math.sqrt(max(width, 1))
    rank = max(x.tensor_type.rank for x in (query, key, value))
    q, k, v = (_of_rank_four(x, rank, heads) for x, heads in ((query, False), (key, True), (value, True)))
    q, k, v = _common_batch(q, k, v)
    heads = q.shape[1], k.shape[1]
    if heads[0] != heads[1] and not all(isinstance(h, int) for h in heads):
        raise NeedsFixed(heads, "the grouped heads of an attention")
    mask = [] if attn_mask is None else [_mask(attn_mask, rank, q, k)]
    return reshape(ops.attention(q, k, v, *mask, causal=bool(is_causal), scale=float(factor)), call.shape)


def _of_rank_four(x: Node, rank: int, _: bool) -> Node:
    """[..., S, D] as [B, H, S, D]: leading axes of 1, or the leading axes as one."""
    shape = (*[1] * (rank - x.tensor_type.rank), *x.shape)
    if rank <= 4:
        return reshape(x, _padded(shape, rank))
    return reshape(x, (product(shape[:-3]), *shape[-3:]))


def _padded(shape: tuple[Dim, ...], rank: int) -> tuple[Dim, ...]:
    # [B, S, D] is [B, 1, S, D]: its first axis may be symbolic, heads may not
    return {2: (1, 1, *shape), 3: (shape[0], 1, *shape[1:]), 4: shape}[rank]


def _common_batch(q: Node, k: Node, v: Node) -> tuple[Node, Node, Node]:
    """Batch dims broadcast; key and value heads too."""
    (batch,) = broadcast_shapes(q.shape[:1], k.shape[:1], v.shape[:1])
    (heads,) = broadcast_shapes(k.shape[1:2], v.shape[1:2])
    all_heads = q.shape[1] if q.shape[1] != 1 else heads
    return (
        expand(q, (batch, all_heads, *q.shape[2:])),
        expand(k, (batch, heads, *k.shape[2:])),
        expand(v, (batch, heads, *v.shape[2:])),
    )


def _mask(mask: Node, rank: int, q: Node, k: Node) -> Node:
    if mask.dtype != torch.bool:
        mask = cast(mask, q.dtype)
    if rank == 3 and mask.tensor_type.rank == 3:
        return reshape(mask, _padded(mask.shape, 3))
    if mask.tensor_type.rank <= 4 and rank <= 4:
        return mask
    raise NotLowered("a mask of attention over more than two leading axes")


# --- convolution ------------------------------------------------------------------------------------------------------


@lowers(
    *("conv1d.default", "conv2d.default", "conv3d.default"),
    *("conv1d.padding", "conv2d.padding", "conv3d.padding"),
)
def _conv(
    call: Call,
    x: Node,
    weight: Node,
    bias: Node | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Node:
    return _of_patches(call, x, weight, bias, stride, padding, dilation, groups)


@lowers("convolution.default")
def _convolution(
    call: Call,
    x: Node,
    weight: Node,
    bias: Node | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Node:
    if transposed:
        raise NotLowered("a transposed convolution")
    return _of_patches(call, x, weight, bias, stride, padding, dilation, groups)


def _of_patches(
    call: Call, x: Node, weight: Node, bias: Node | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> Node:
    """A convolution as products of what its taps read."""
    kernel = tuple(size for size in weight.shape[2:] if isinstance(size, int))
    count = weight.tensor_type.rank - 2
    if len(kernel) != count or not all(isinstance(d, int) for d in weight.shape):
        raise NeedsFixed(weight.shape, "the kernel of a convolution")
    unbatched = x.tensor_type.rank == count + 1
    if unbatched:
        x = ops.unsqueeze(x, 0)
    apart = per_axis(dilation, count)
    low, high = _padding(padding, kernel, apart)
    steps = Steps(kernel, call.shape[-count:], per_axis(stride, count), low, high, apart)
    y = _convolved(x, weight, bias, steps, groups)
    return reshape(y, call.shape) if unbatched else y


def _padding(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The zeros before and after each axis. Those that "same" cannot share evenly stand after it."""
    if padding == "same":
        widths = [apart * (size - 1) for apart, size in zip(dilation, kernel, strict=True)]
        return tuple(w // 2 for w in widths), tuple(w - w // 2 for w in widths)
    both = per_axis(0 if padding == "valid" else padding, len(kernel))
    return both, both


def _convolved(x: Node, weight: Node, bias: Node | None, steps: Steps, groups: int) -> Node:
    if groups == 1:
        is_tiled = steps.stride == steps.kernel and not any(steps.low) and set(steps.dilation) == {1}
        return (tiled if is_tiled else dense)(x, weight, bias, steps)
    if groups != weight.shape[0] or weight.shape[1] != 1:
        return grouped(x, weight, bias, steps, groups)
    return depthwise(x, weight, bias, steps)
