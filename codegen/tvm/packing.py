"""Weights in the order in which the matmul kernels read them."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

import torch

from ..schedule import PanelLayout

ALIGNMENT = 64  # bytes: one cache line, one AVX-512 register
HUGE_PAGE = 2 << 20  # bytes
CHUNK = 32 << 20  # bytes that a pool takes from the system at a time; what is not written to takes no memory
WORK_BYTES = 4 << 20  # of panels that are filled in one go


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


def advise(address: int, nbytes: int, advice: int) -> None:
    """Tell the system something of the whole huge pages within some memory: a wish, which it may leave unheard."""
    first, last = -(-address // HUGE_PAGE), (address + nbytes) // HUGE_PAGE
    if last > first:
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(first * HUGE_PAGE), ctypes.c_size_t((last - first) * HUGE_PAGE), ctypes.c_int(advice)
        )


class Pool:
    """Memory for tensors that live equally long: those that fill no huge page alone lie together in some.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rest = torch.empty(0, dtype=torch.uint8)

    def close(self) -> None:
        """Nothing more is taken."""

    def take(self, nbytes: int) -> torch.Tensor:
        """Uninitialised bytes, uint8 [nbytes]."""
        if nbytes > CHUNK // 4:
            return memory(nbytes)
        with self._lock:
            if nbytes > self._rest.numel():
                self._rest = memory(CHUNK)
            taken, self._rest = self._rest[:nbytes], self._rest[nbytes:]
            return taken


def aligned_empty(shape: tuple[int, ...], dtype: torch.dtype, pool: Pool | None = None) -> torch.Tensor:
    """An uninitialised contiguous CPU tensor whose data starts at a multiple of 64 bytes."""
    count = 1
    for size in shape:
        count *= size
    nbytes = count * dtype.itemsize
    flat = memory(nbytes + ALIGNMENT) if pool is None else pool.take(nbytes + ALIGNMENT)
    offset = -flat.data_ptr() % ALIGNMENT
    return flat[offset : offset + nbytes].view(dtype).view(shape)


def pack_panels(matrix: torch.Tensor, layout: PanelLayout, pool: Pool | None = None) -> torch.Tensor:
    """A matrix [K, N] of any strides in panels: [ceil(N / tile), rows, tile, group], aligned to 64 bytes."""
    panels, work = panels_of([matrix], layout, pool)
    for fill in work:
        fill()
    return panels


def panels_of(
    matrices: Sequence[torch.Tensor], layout: PanelLayout, pool: Pool | None = None
) -> tuple[torch.Tensor, list[Callable[[], None]]]:
    """Memory for matrices [K, N] side by side in panels, as :func:`pack_panels` packs them as one, and what fills it.

    The functions are independent of each other and take about as long as each other, but for the last ones.
    """
    k, n = matrices[0].shape[0], sum(matrix.shape[1] for matrix in matrices)
    panels = aligned_empty((-(-n // layout.tile), layout.rows(k), layout.tile, layout.group), matrices[0].dtype, pool)
    most = max(1, WORK_BYTES // max(1, panels[:1].numel() * panels.itemsize))  # panels that one function fills
    work: list[Callable[[], None]] = []
    at = 0
    for whole in _whole_panels(matrices, layout.tile):
        for start in range(0, whole.shape[1], most * layout.tile):
            columns = whole[:, start : start + most * layout.tile]
            end = at + -(-columns.shape[1] // layout.tile)
            work.append(partial(_pack, panels[at:end], columns, layout))
            at = end
    return panels, work


def _whole_panels(matrices: Sequence[torch.Tensor], tile: int) -> Iterator[torch.Tensor]:
    """The same columns in matrices of whole panels, but for the last; only panels across two matrices are copied."""
    begun: list[torch.Tensor] = []  # columns of a panel that is not full yet
    missing = 0
    for matrix in matrices:
        if begun:
            begun.append(matrix[:, :missing])
            missing -= begun[-1].shape[1]
            if missing:
                continue
            yield torch.cat(begun, 1)
        start = begun[-1].shape[1] if begun else 0
        end = start + (matrix.shape[1] - start) // tile * tile
        if end > start:
            yield matrix[:, start:end]
        begun = [matrix[:, end:]] if end < matrix.shape[1] else []
        missing = tile - (matrix.shape[1] - end)
    if begun:
        yield torch.cat(begun, 1)


def _pack(panels: torch.Tensor, matrix: torch.Tensor, layout: PanelLayout) -> None:
    """Fill panels with a matrix [K, N]."""
    (k, n), group, extra = matrix.shape, layout.group, layout.extra_rows
    whole, rest = divmod(k, group)
    _fill(panels[:, extra : extra + whole], matrix[: whole * group].reshape(whole, group, n))
    if rest:
        panels[:, -1] = 0
        _fill(panels[:, -1:, :, :rest], matrix[whole * group :].unsqueeze(0))
    if extra:
        sums = matrix.new_zeros(len(panels) * layout.tile, dtype=torch.int32)
        sums[:n] = -128 * matrix.sum(0, dtype=torch.int32)
        panels[:, 0] = sums.view(matrix.dtype).view(-1, layout.tile, group)


def _fill(panels: torch.Tensor, matrix: torch.Tensor) -> None:
    """A matrix [rows, group, N] as [ceil(N / tile), rows, tile, group], padded with zeros."""
    columns, tile = matrix.permute(2, 0, 1), panels.shape[2]  # [N, rows, group]
    if _are_words(columns):
        columns, panels = columns.view(torch.int32), panels.view(torch.int32)
    (n, rows, group), whole = columns.shape, columns.shape[0] // tile
    if group == 1 and columns.stride(1) == 1 and rows > 1:
        # a transposed matrix: PyTorch copies it in blocks where it is two-dimensional, in less than half the time
        for number in range(whole):
            panels[number, :, :, 0] = columns[number * tile : (number + 1) * tile, :, 0].t()
    else:
        panels[:whole] = columns[: whole * tile].reshape(whole, tile, rows, group).permute(0, 2, 1, 3)
    if n % tile:
        panels[whole, :, : n % tile] = columns[whole * tile :].permute(1, 0, 2)
        panels[whole, :, n % tile :] = 0


def _are_words(columns: torch.Tensor) -> bool:
    """Whether groups [N, rows, group] are four bytes each, one after the other, in whole words of memory."""
    group = columns.shape[2]
    first, second, last = columns.stride()
    places = (first, second, columns.storage_offset())
    return group * columns.element_size() == 4 and group > 1 and last == 1 and all(x % group == 0 for x in places)


def unpack_panels(panels: torch.Tensor, k: int, n: int, layout: PanelLayout) -> torch.Tensor:
    """The matrix [k, n] that :func:`pack_panels` packed; the shape of ``panels`` does not matter."""
    count, rows = -(-n // layout.tile), layout.rows(k)
    groups = panels.reshape(count, rows, layout.tile, layout.group)[:, layout.extra_rows :]
    terms = groups.permute(1, 3, 0, 2).reshape((rows - layout.extra_rows) * layout.group, count * layout.tile)
    return terms[:k, :n].contiguous()
