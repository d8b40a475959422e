"""Weights in the order in which the matmul kernels read them."""

from __future__ import annotations

import contextlib
import mmap

import torch

from ..schedule import PanelLayout

ALIGNMENT = 64  # bytes: one cache line, one AVX-512 register
HUGE_PAGE = 2 << 20  # bytes


def memory(nbytes: int) -> torch.Tensor:
    """Uninitialised bytes, uint8 [nbytes], in huge pages where the system has them and they fill some.

    Streaming weights in pages of 4 kB misses the address cache at every page, and prefetching stops there.
    """
    if nbytes < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(nbytes, dtype=torch.uint8)
    pages = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # of a kernel without them
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


def pack_panels(matrix: torch.Tensor, layout: PanelLayout) -> torch.Tensor:
    """A matrix [K, N] of any strides in panels: [ceil(N / tile), rows, tile, group], aligned to 64 bytes."""
    (k, n), group, extra = matrix.shape, layout.group, layout.extra_rows
    panels = aligned_empty((-(-n // layout.tile), layout.rows(k), layout.tile, group), matrix.dtype)
    whole, rest = divmod(k, group)
    _fill(panels[:, extra : extra + whole], matrix[: whole * group].reshape(whole, group, n))
    if rest:
        panels[:, -1] = 0
        _fill(panels[:, -1:, :, :rest], matrix[whole * group :].unsqueeze(0))
    if extra:
        sums = matrix.new_zeros(len(panels) * layout.tile, dtype=torch.int32)
        sums[:n] = -128 * matrix.sum(0, dtype=torch.int32)
        panels[:, 0] = sums.view(matrix.dtype).view(-1, layout.tile, group)
    return panels


def _fill(panels: torch.Tensor, matrix: torch.Tensor) -> None:
    """A matrix [rows, group, N] as [ceil(N / tile), rows, tile, group], padded with zeros."""
    (rows, group, n), tile = matrix.shape, panels.shape[2]
    full, rest = divmod(n, tile)
    panels[:full] = matrix[:, :, : full * tile].reshape(rows, group, full, tile).permute(2, 0, 3, 1)
    if rest:
        panels[full, :, :rest] = matrix[:, :, full * tile :].permute(0, 2, 1)
        panels[full, :, rest:] = 0


def unpack_panels(panels: torch.Tensor, k: int, n: int, layout: PanelLayout) -> torch.Tensor:
    """The matrix [k, n] that :func:`pack_panels` packed; the shape of ``panels`` does not matter."""
    count, rows = -(-n // layout.tile), layout.rows(k)
    groups = panels.reshape(count, rows, layout.tile, layout.group)[:, layout.extra_rows :]
    terms = groups.permute(1, 3, 0, 2).reshape((rows - layout.extra_rows) * layout.group, count * layout.tile)
    return terms[:k, :n].contiguous()
