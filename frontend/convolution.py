"""Convolutions whose patches overlap: the input shifted by each tap of the kernel, side by side, times the weight."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import product as combinations

import torch

from ..ir import ops
from ..ir.node import Node
from ..ir.types import Dim, product
from .aten_view import part
from .table import cast, permute, reshape

MOST_TAPS = 64  # of a kernel: the input is held so many times


def shifted(
    x: Node,
    kernel: Sequence[int],
    grid: Sequence[Dim],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[Node]:
    """What each tap of a kernel reads of an input [B, spatial ..., C], as [B, grid ..., C]; zeros past its ends."""
    if any(padding):
        widths = (0, *padding, 0)
        x = ops.pad(x, low=widths, high=widths, value=0.0)
    found = []
    for tap in combinations(*map(range, kernel)):
        view = x
        for d, (at, cells, step, apart) in enumerate(zip(tap, grid, stride, dilation, strict=True), 1):
            view = part(view, d, at * apart, cells, step)
        found.append(view)
    return found


def dense(taps: Sequence[Node], weight: Node, bias: Node | None) -> Node:
    """All channels with all others: one linear layer over the taps side by side; [B, O, grid ...]."""
    outputs, channels, *kernel = weight.shape
    batch, *grid = taps[0].shape[:-1]
    rows = ops.concat(*taps, dim=-1) if len(taps) > 1 else taps[0]
    width = product((*kernel, channels))
    rows = reshape(rows, (batch, product(grid), width))
    rank = len(kernel) + 2
    matrix = reshape(permute(weight, (0, *range(2, rank), 1)), (outputs, width))
    y = ops.linear(rows, matrix) if bias is None else ops.linear(rows, matrix, bias)
    return reshape(permute(y, (0, 2, 1)), (batch, outputs, *grid))


def depthwise(taps: Sequence[Node], weight: Node, bias: Node | None) -> Node:
    """Each channel for itself: a sum over the taps; [B, C, grid ...]."""
    channels = weight.shape[0]
    wide = torch.float32 if weight.dtype in ops.HALF else weight.dtype
    factors = cast(reshape(weight, (channels, len(taps))), wide)
    terms = [ops.mul(cast(tap, wide), reshape(part(factors, 1, i, 1), (channels,))) for i, tap in enumerate(taps)]
    y = reduce(ops.add, terms)
    if bias is not None:
        y = ops.add(y, cast(bias, wide))
    rank = taps[0].tensor_type.rank
    return permute(cast(y, weight.dtype), (0, rank - 1, *range(1, rank - 1)))
