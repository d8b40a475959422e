"""Convolutions: what the taps of a kernel read of an input is a view, and a convolution is a product of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..ir import ops
from ..ir.node import Node
from ..ir.types import Dim, product
from .aten_view import part
from .table import cast, permute, reshape


@dataclass(frozen=True)
class Steps:
    """How a kernel moves over an input, a number for each of its axes.

    Attributes:
        kernel: how many taps there are along an axis.
        grid: how many places the kernel is laid at.
        stride: how far one place is from the next.
        low, high: zeros before the first and after the last element.
        dilation: how far one tap is from the next.
    """

    kernel: tuple[int, ...]
    grid: tuple[Dim, ...]
    stride: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def rank(self) -> int:
        """How many axes a kernel has."""
        return len(self.kernel)


def per_axis(value: Any, count: int) -> tuple[int, ...]:
    """An option of PyTorch's as a number for each of ``count`` axes: one number is meant for all."""
    given = (value,) if isinstance(value, int) else tuple(value)
    return given * count if len(given) == 1 else given


def padded(x: Node, steps: Steps) -> Node:
    """An input [B, C, spatial ...] with zeros around it, channels last."""
    x = permute(x, (0, *range(2, 2 + steps.rank), 1))
    if any(steps.low) or any(steps.high):
        x = ops.pad(x, low=(0, *steps.low, 0), high=(0, *steps.high, 0), value=0.0)
    return x


def patches(x: Node, steps: Steps) -> Node:
    """What each tap reads of an input [B, C, spatial ...], as [B, grid ..., kernel ..., C]."""
    x, n = padded(x, steps), steps.rank
    for i in range(n):
        x = ops.windows(
            x,
            dim=1 + 2 * i,
            size=steps.kernel[i],
            step=steps.stride[i],
            apart=steps.dilation[i],
            count=steps.grid[i],
        )
    return permute(x, (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1))


def tiled(x: Node, weight: Node, bias: Node | None, steps: Steps) -> Node:
    """Patches side by side: each is a row of one linear layer, in the order in which the weight has its terms."""
    (batch, channels), outputs = x.shape[:2], weight.shape[0]
    n, grid, kernel = steps.rank, steps.grid, steps.kernel
    for at, (cells, size) in enumerate(zip(grid, kernel, strict=True)):
        x = part(x, at + 2, 0, product((cells, size)))
    # [B, C, h, p, w, q] -> [B, h, w, C, p, q] -> rows of C p q
    split = reshape(x, (batch, channels, *(d for pair in zip(grid, kernel, strict=True) for d in pair)))
    order = (0, *range(2, 2 + 2 * n, 2), 1, *range(3, 3 + 2 * n, 2))
    rows = reshape(permute(split, order), (batch, product(grid), product((channels, *kernel))))
    matrix = reshape(weight, (outputs, product(weight.shape[1:])))
    y = ops.linear(rows, matrix) if bias is None else ops.linear(rows, matrix, bias)
    return reshape(permute(y, (0, 2, 1)), (batch, outputs, *grid))


def dense(x: Node, weight: Node, bias: Node | None, steps: Steps) -> Node:
    """All channels with all others: one linear layer over the taps side by side; [B, O, grid ...]."""
    outputs, channels = weight.shape[:2]
    batch, n = x.shape[0], steps.rank
    width = product((*steps.kernel, channels))
    rows = reshape(patches(x, steps), (batch, product(steps.grid), width))
    matrix = reshape(permute(weight, (0, *range(2, 2 + n), 1)), (outputs, width))
    y = ops.linear(rows, matrix) if bias is None else ops.linear(rows, matrix, bias)
    return reshape(permute(y, (0, 2, 1)), (batch, outputs, *steps.grid))


def grouped(x: Node, weight: Node, bias: Node | None, steps: Steps, groups: int) -> Node:
    """The channels of each group with one another: a product for each group; [B, O, grid ...]."""
    n, batch = steps.rank, x.shape[0]
    outputs, channels = weight.shape[0] // groups, weight.shape[1]
    terms, cells = product((*steps.kernel, channels)), product(steps.grid)
    split = reshape(patches(x, steps), (batch, *steps.grid, *steps.kernel, groups, channels))
    rows = permute(split, (0, 2 * n + 1, *range(1, 2 * n + 1), 2 * n + 2))
    rows = reshape(rows, (batch, groups, cells, terms))  # [B, G, T, K c]
    filters = reshape(weight, (groups, outputs, channels, *steps.kernel))
    matrices = reshape(permute(filters, (0, *range(3, 3 + n), 2, 1)), (groups, terms, outputs))
    y = ops.matmul(rows, matrices)
    if bias is not None:
        y = ops.add(y, reshape(bias, (groups, 1, outputs)))
    side_by_side = reshape(permute(y, (0, 2, 1, 3)), (batch, cells, groups * outputs))
    return reshape(permute(side_by_side, (0, 2, 1)), (batch, groups * outputs, *steps.grid))


def depthwise(x: Node, weight: Node, bias: Node | None, steps: Steps) -> Node:
    """Each channel for itself: a sum over the taps; [B, C, grid ...]."""
    channels, n = weight.shape[0], steps.rank
    wide = torch.float32 if weight.dtype in ops.HALF else weight.dtype
    factors = permute(reshape(weight, (channels, *steps.kernel)), (*range(1, n + 1), 0))
    taps = tuple(range(n + 1, 2 * n + 1))
    y = ops.sum(ops.mul(cast(patches(x, steps), wide), cast(factors, wide)), dims=taps)
    if bias is not None:
        y = ops.add(y, cast(bias, wide))
    return permute(cast(y, weight.dtype), (0, n + 1, *range(1, n + 1)))
