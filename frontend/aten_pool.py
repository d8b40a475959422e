"""Lowerings of pooling: the largest or the mean of windows, as elements of shifted inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from itertools import product as combinations
from typing import Any

import torch

from ..ir import ops
from ..ir.node import Node
from ..ir.types import Dim
from .aten_view import part
from .convolution import per_axis
from .table import Call, NotLowered, cast, constant, full, lowers, reshape

MOST_TAPS = 64  # of a window


def _taps(
    call: Call,
    x: Node,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    fill: float,
) -> list[Node]:
    """What each place of a window reads of an input [..., spatial ...], as [..., grid ...]; ``fill`` past its ends."""
    if math.prod(kernel) > MOST_TAPS:
        raise NotLowered(f"a window of more than {MOST_TAPS} elements")
    count, grid = len(kernel), call.shape[-len(kernel) :]
    first = x.tensor_type.rank - count
    # with ceil_mode the last window may reach further than the padding
    high = []
    for d, (cells, size, step, low, apart) in enumerate(zip(grid, kernel, stride, padding, dilation, strict=True)):
        width = x.shape[first + d]
        if not isinstance(cells, int) or not isinstance(width, int):
            beyond: Any = low
        else:
            beyond = max(0, (cells - 1) * step + (size - 1) * apart + 1 - low - width)
        high.append(beyond)
    if any(padding) or any(high):
        none = (0,) * first
        x = ops.pad(x, low=(*none, *padding), high=(*none, *high), value=fill)
    found = []
    for tap in combinations(*map(range, kernel)):
        view = x
        for d, (at, cells, step, apart) in enumerate(zip(tap, grid, stride, dilation, strict=True), first):
            view = part(view, d, at * apart, cells, step)
        found.append(view)
    return found


@lowers("max_pool1d.default", "max_pool2d.default", "max_pool3d.default")
def _max_pool(
    call: Call,
    x: Node,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Node:
    if not x.dtype.is_floating_point:
        raise NotLowered("the largest of windows of whole numbers")
    count = int(call.name[len("aten.max_pool")])
    _check_ceil(call, ceil_mode)
    kernel = per_axis(kernel_size, count)
    steps = per_axis(stride, count) if stride not in ((), []) else kernel
    taps = _taps(call, x, kernel, steps, per_axis(padding, count), per_axis(dilation, count), -math.inf)
    return reduce(ops.maximum, taps)


@lowers("avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default")
def _avg_pool(
    call: Call,
    x: Node,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Node:
    count = int(call.name[len("aten.avg_pool")])
    if not x.dtype.is_floating_point:
        raise NotLowered("the mean of windows of whole numbers")
    _check_ceil(call, ceil_mode)
    kernel = per_axis(kernel_size, count)
    steps = per_axis(stride, count) if stride not in ((), []) else kernel
    around, ones = per_axis(padding, count), (1,) * count
    wide = torch.float32 if x.dtype in ops.HALF else x.dtype
    total = reduce(ops.add, _taps(call, cast(x, wide), kernel, steps, around, ones, 0.0))
    if divisor_override is None and (ceil_mode or (any(around) and not count_include_pad)):
        own = [2 * width if count_include_pad else 0 for width in around]  # what counts besides the input
        sizes = [size + more for size, more in zip(x.shape[-count:], own, strict=True)]
        before = (0,) * count if count_include_pad else around
        number = reduce(ops.add, _taps(call, full(sizes, 1.0, wide), kernel, steps, before, ones, 0.0))
        return cast(ops.div(total, number), x.dtype)
    by = math.prod(kernel) if divisor_override is None else divisor_override
    return cast(ops.div(total, constant(total, float(by))), x.dtype)


def _check_ceil(call: Call, ceil_mode: bool) -> None:
    if ceil_mode and not all(isinstance(d, int) for d in call.shape[1:]):
        raise NotLowered("windows of a symbolic size with ceil_mode")


@lowers("adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "adaptive_avg_pool3d.default",
        "_adaptive_avg_pool2d.default", "_adaptive_avg_pool3d.default")  # fmt: skip
def _adaptive(call: Call, x: Node, output_size: Sequence[Dim]) -> Node:
    """Means of windows that share out each axis: the mean along one axis after another."""
    rank, count = x.tensor_type.rank, len(output_size)
    wide = torch.float32 if x.dtype in ops.HALF else x.dtype
    y = cast(x, wide)
    for dim, cells in zip(range(rank - count, rank), output_size, strict=True):
        y = _shared_out(y, dim, cells)
    return cast(y, x.dtype)


def _shared_out(x: Node, dim: int, cells: Dim) -> Node:
    """The means of windows that share out one axis."""
    size = x.shape[dim]
    if cells == size:
        return x
    if cells == 1:
        return ops.mean(x, dims=(dim,), keepdim=True)
    if not isinstance(cells, int) or not isinstance(size, int):
        raise NotLowered("windows that share out a symbolic size")
    if cells == 0:
        return part(x, dim, 0, 0)
    if size % cells == 0:
        return ops.mean(reshape(x, (*x.shape[:dim], cells, size // cells, *x.shape[dim + 1 :])), dims=(dim + 1,))
    if cells > MOST_TAPS:
        raise NotLowered(f"more than {MOST_TAPS} windows of unequal widths")
    edges = [(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]
    means = [ops.mean(part(x, dim, low, high - low), dims=(dim,), keepdim=True) for low, high in edges]
    return ops.concat(*means, dim=dim)
