"""Weights in the order in which the matmul kernels read them."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch

ALIGNMENT = 64  # bytes: one cache line, one AVX-512 register
HUGE_PAGE = 2 << 20  # bytes


def memory(nbytes: int) -> torch.Tensor:
    """Uninitialised bytes, uint8 [nbytes], in huge pages where the system has them and they fill some.

    Streaming weights in pages of 4 kB misses the address cache at every page, and prefetching stops there.
    """
    if nbytes < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(nbytes, dtype=torch.uint8)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a system that was built without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def aligned_empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised contiguous CPU tensor whose data starts at a multiple of 64 bytes."""
    count = 1
    for size in shape:
        count *= size
    flat = memory(count * dtype.itemsize + ALIGNMENT)
    offset = -flat.data_ptr() % ALIGNMENT
    return flat[offset : offset + count * dtype.itemsize].view(dtype).view(shape)


def pack_panels(matrix: torch.Tensor, tile: int) -> torch.Tensor:
    """A matrix [K, N] of any strides as panels [ceil(N / tile), K, tile], padded with zeros, aligned to 64 bytes."""
    k, n = matrix.shape
    full, rest = divmod(n, tile)
    panels = aligned_empty((full + (rest > 0), k, tile), matrix.dtype)
    panels[:full] = matrix[:, : full * tile].reshape(k, full, tile).permute(1, 0, 2)
    if rest:
        panels[full, :, :rest] = matrix[:, full * tile :]
        panels[full, :, rest:] = 0
    return panels


def unpack_panels(panels: torch.Tensor, columns: int) -> torch.Tensor:
    """The matrix [K, columns] that :func:`pack_panels` packed."""
    count, k, tile = panels.shape
    return panels.permute(1, 0, 2).reshape(k, count * tile)[:, :columns].contiguous()
