"""Lowerings of ATen's operators that make tensors from sizes and numbers."""

from __future__ import annotations

from typing import Any

import torch

from ..ir import ops
from ..ir.node import Node
from ..ir.types import Dim
from .table import Call, NotLowered, Scalar, as_node, cast, expand, full, lowers, reshape


@lowers("full.default", "full_like.default", "new_full.default")
def _full(call: Call, *args: Any, **named: Any) -> Node:
    value = named["fill_value"] if "fill_value" in named else args[-1]
    return (
        expand(as_node(value, call.dtype), call.shape)
        if isinstance(value, Node)
        else full(call.shape, value, call.dtype)
    )


# the values of an empty tensor are nobody's business: zeros, so that results repeat
@lowers(
    "zeros.default", "zeros_like.default", "new_zeros.default", "empty.memory_format", "empty_like.default",
    "new_empty.default", "empty_strided.default", "new_empty_strided.default", "empty_permuted.default",
)  # fmt: skip
def _zeros(call: Call, *_: Any, **__: Any) -> Node:
    return full(call.shape, 0, call.dtype)


@lowers("ones.default", "ones_like.default", "new_ones.default")
def _ones(call: Call, *_: Any, **__: Any) -> Node:
    return full(call.shape, 1, call.dtype)


@lowers("scalar_tensor.default")
def _scalar_tensor(call: Call, value: Scalar, **_: Any) -> Node:
    return full((), value, call.dtype)


@lowers("fill.Scalar", "fill.Tensor")
def _fill(call: Call, x: Node, value: Any) -> Node:
    return expand(as_node(value, x.dtype), x.shape)


@lowers("copy.default")
def _copy(call: Call, x: Node, source: Node, non_blocking: bool = False) -> Node:
    return expand(cast(source, x.dtype), x.shape)


@lowers("zero.default")
def _zero(call: Call, x: Node) -> Node:
    return full(x.shape, 0, x.dtype)


@lowers("arange.default", "arange.start", "arange.start_step")
def _arange(call: Call, first: Scalar, *rest: Scalar, step: Scalar = 1, **_: Any) -> Node:
    start = first if rest else 0
    step = rest[1] if len(rest) > 1 else step
    if call.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.float32, torch.float64):
        wide = ops.arange(size=call.shape[0], start=start, step=step, dtype=torch.float32)
        return cast(wide, call.dtype)
    return ops.arange(size=call.shape[0], start=start, step=step, dtype=call.dtype)


@lowers("linspace.default")
def _linspace(call: Call, start: Any, end: Any, steps: Dim, **_: Any) -> Node:
    if isinstance(start, Node) or isinstance(end, Node) or not isinstance(steps, int):
        raise NotLowered("linspace between values that are known only when the model runs")
    if not call.dtype.is_floating_point:
        raise NotLowered("linspace of integers")
    step = (end - start) / (steps - 1) if steps > 1 else 0.0
    wide = torch.float32 if call.dtype in ops.HALF else call.dtype
    # from both ends, as PyTorch does
    half = steps // 2
    head = ops.arange(size=half, start=float(start), step=step, dtype=wide)
    tail = ops.arange(size=steps - half, start=float(end) - step * (steps - 1 - half), step=step, dtype=wide)
    if steps == 1:
        return full((1,), start, call.dtype)
    return cast(ops.concat(head, tail, dim=0), call.dtype)


@lowers("eye.default", "eye.m")
def _eye(call: Call, *_: Any, **__: Any) -> Node:
    rows, columns = call.shape
    same = ops.eq(
        reshape(ops.arange(size=rows), (rows, 1)),
        reshape(ops.arange(size=columns), (1, columns)),
    )
    return cast(same, call.dtype)


@lowers("one_hot.default")
def _one_hot(call: Call, x: Node, num_classes: int = -1) -> Node:
    count = call.shape[-1]
    return cast(ops.eq(reshape(x, (*x.shape, 1)), cast(ops.arange(size=count), x.dtype)), torch.int64)
