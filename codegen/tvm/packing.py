"""Weights in the order in which the matmul kernels read them."""

from __future__ import annotations

import torch

ALIGNMENT = 64  # bytes: one cache line, one AVX-512 register


def aligned_empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised contiguous CPU tensor whose data starts at a multiple of 64 bytes."""
    count = 1
    for size in shape:
        count *= size
    spare = ALIGNMENT // dtype.itemsize
    flat = torch.empty(count + spare, dtype=dtype)
    offset = -flat.data_ptr() % ALIGNMENT // dtype.itemsize
    return flat[offset : offset + count].view(shape)


def pack_panels(matrix: torch.Tensor, tile: int) -> torch.Tensor:
    """A matrix [K, N] of any strides as panels [ceil(N / tile), K, tile], padded with zeros, aligned to 64 bytes."""
    k, n = matrix.shape
    full, rest = divmod(n, tile)
    panels = aligned_empty((full + (rest > 0), k, tile), matrix.dtype)
    if matrix.stride(0) == 1 and k > 1:
        # a transposed matrix: PyTorch copies it in blocks where it is two-dimensional, in less than half the time
        for number in range(full):
            panels[number] = matrix[:, number * tile : (number + 1) * tile]
    else:
        panels[:full] = matrix[:, : full * tile].reshape(k, full, tile).permute(1, 0, 2)
    if rest:
        panels[full, :, :rest] = matrix[:, full * tile :]
        panels[full, :, rest:] = 0
    return panels


def unpack_panels(panels: torch.Tensor, columns: int) -> torch.Tensor:
    """The matrix [K, columns] that :func:`pack_panels` packed."""
    count, k, tile = panels.shape
    return panels.permute(1, 0, 2).reshape(k, count * tile)[:, :columns].contiguous()
