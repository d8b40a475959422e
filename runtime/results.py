"""Memory for the results of a call, which the caller keeps."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor

from ..codegen.tvm.packing import HUGE_PAGE, advise

LARGE_BYTES = 2 * HUGE_PAGE  # results of at least so many fill a huge page wherever they begin
HUGE_PAGES = getattr(mmap, "MADV_HUGEPAGE", None)


def _empty_strided(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty_strided(shape, strides, dtype=dtype, device="cpu")


# Inductor's way past the dispatcher, in half the time; not part of PyTorch's public interface.
_allocate: Callable[[Sequence[int], Sequence[int], torch.dtype], Tensor] = getattr(
    torch._C._dynamo.guards, "_empty_strided_cpu", _empty_strided
)


def empty_result(shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor in memory of PyTorch's, in huge pages where it is large and the system has them.

    A large result is memory that the system hands out anew in each call. A page at a time that costs more than it costs
    to write it: of 262 MB, 125 ms and 36 ms to give them back, against 27 ms and 1 ms in huge pages.
    """
    result = _allocate(shape, strides, dtype)
    if result.nbytes >= LARGE_BYTES and HUGE_PAGES is not None:
        advise(result.data_ptr(), result.untyped_storage().nbytes(), HUGE_PAGES)
    return result


class ResultMemory:
    """The memory of large results, for the next calls once nobody has any of them any more.

    Of each result the last one's is kept. Not safe to use from several threads at once.
    """

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}  # a tensor of our own in the same memory

    def maker(
        self, position: int, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype
    ) -> Callable[[], Tensor]:
        """What makes a tensor as :meth:`empty` does, again and again: in less time where nothing of it is kept."""
        if prod(shape) * dtype.itemsize < LARGE_BYTES:
            return partial(_allocate, shape, strides, dtype)
        return partial(self.empty, position, shape, strides, dtype)

    def empty(self, position: int, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor for the result at a position of a plan."""
        result = empty_result(shape, strides, dtype)
        if result.nbytes < LARGE_BYTES:
            return result
        with torch.no_grad():
            kept = self._kept.get(position)
            if kept is not None and _is_free(kept, result.untyped_storage().nbytes()):
                return result.set_(kept.untyped_storage(), 0, shape, strides)
            self._kept[position] = result.detach()
        return result


def _is_free(kept: Tensor, nbytes: int) -> bool:
    """Whether nobody else has a tensor in the memory of one, or its storage, and no other process may read it."""
    if _holders(kept) != ALONE:
        return False
    storage = kept.untyped_storage()
    return storage.nbytes() == nbytes and not storage.is_shared()


def _holders(tensor: Tensor) -> tuple[int, int]:
    """How many references there are to a tensor's storage in Python, and to its memory."""
    storage = tensor.untyped_storage()
    return sys.getrefcount(storage), int(torch._C._storage_Use_Count(storage._cdata))


ALONE = _holders(torch.empty(1, device="cpu"))  # of a tensor that nobody else has
