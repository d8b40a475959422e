"""Products that read windows which slide along an input: convolutions, of all channels and in groups."""

from __future__ import annotations

import torch

from smelt.ir import ops
from smelt.ir.node import Node
from smelt.ir.types import Dim, symbol

from .cases import Case, operand

B, T = symbol("b"), symbol("t")
SIZES = [{"b": b, "t": t} for b, t in ((1, 1), (2, 17), (3, 70))]
RTOL = {torch.float32: 1e-4, torch.float64: 1e-11, torch.bfloat16: 5e-2, torch.float16: 5e-3}


def _windows(x: Node, dim: int, size: int, step: int = 1, apart: int = 1, count: Dim = T) -> Node:
    return ops.windows(x, dim=dim, size=size, step=step, apart=apart, count=count)


def along(
    channels: int, taps: int, columns: int, step: int = 1, apart: int = 1, dtype: torch.dtype = torch.float32
) -> Case:
    """Taps of all channels, side by side, times a packed weight, with an activation behind it."""
    reach = canonical(T * step + (taps - 1) * apart)
    x, width = operand(0, (B, reach, channels), dtype), taps * channels
    w, b = operand(1, (columns, width), dtype), operand(2, (columns,), dtype)
    rows = ops.reshape(_windows(x, 1, taps, step, apart), shape=(B, T, width))
    return Case([x, w, b], [ops.relu(ops.linear(rows, w, b))], SIZES, weights=frozenset([1]), rtol=RTOL[dtype])


def canonical(dim: Dim) -> Dim:
    """A size as types hold it."""
    return operand(0, (dim,)).shape[0]


def image(channels: int, columns: int, apart: int = 1, dtype: torch.dtype = torch.float32) -> Case:
    """Three taps by three of an image [B, T + ..., 20, C]."""
    x, width = operand(0, (B, canonical(T + 2 * apart), 9 + 2 * apart, channels), dtype), 9 * channels
    w = operand(1, (columns, width), dtype)
    seen = _windows(_windows(x, 1, 3, 1, apart), 3, 3, 1, apart, 9)
    rows = ops.reshape(ops.permute(seen, dims=(0, 1, 3, 2, 4, 5)), shape=(B, canonical(9 * T), width))
    return Case([x, w], [ops.linear(rows, w)], SIZES, weights=frozenset([1]), rtol=RTOL[dtype])


def grouped(groups: int, channels: int, taps: int, columns: int, dtype: torch.dtype = torch.float32) -> Case:
    """Channels in groups, each with matrices of its own, which lie in memory terms first."""
    x = operand(0, (B, canonical(T + taps - 1), groups * channels), dtype)
    w = operand(1, (groups, taps * channels, columns), dtype)
    split = ops.reshape(_windows(x, 1, taps), shape=(B, T, taps, groups, channels))
    rows = ops.reshape(ops.permute(split, dims=(0, 3, 1, 2, 4)), shape=(B, groups, T, taps * channels))
    return Case([x, w], [ops.gelu(ops.matmul(rows, w))], SIZES, weights=frozenset([1]), rtol=RTOL[dtype])


def cases() -> dict[str, Case]:
    """By name: runs of terms longer and shorter than a block of them, of odd length, broken and unbroken ones."""
    found = {
        "one run": along(24, 3, 40, step=2),
        "taps apart": along(24, 3, 40, apart=2),
        "odd runs apart": along(17, 5, 150, step=3, apart=4),
        "long runs": along(600, 2, 130, apart=2),
        "short runs, brought together": along(3, 5, 130, apart=2),
        "short runs, in place": along(3, 5, 30, apart=2),
        "one channel": along(1, 10, 48, step=5),
        "image": image(16, 130),
        "image, taps apart": image(16, 130, apart=2),
        "image of three channels": image(3, 40),
        "groups": grouped(3, 12, 10, 48),
        "groups of one vector": grouped(2, 20, 7, 16),
        "groups of odd columns": grouped(4, 5, 20, 9),
        "groups, one tap": grouped(3, 16, 1, 32),
    }
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        found[f"taps apart {dtype}"] = along(24, 3, 140, apart=2, dtype=dtype)
        found[f"odd runs {dtype}"] = along(17, 4, 140, apart=2, dtype=dtype)
        found[f"groups {dtype}"] = grouped(3, 12, 10, 48, dtype)
        found[f"image {dtype}"] = image(16, 130, dtype=dtype)
    return found
