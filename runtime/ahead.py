"""Memory for packed weights, made ready while their model is captured, or looked for among kept captures.

The system hands out new memory page by page, when it is first written to: a tenth of a second for the weights of BERT,
and on a virtual machine, whose own memory comes from a host in the same way, up to two seconds. Capturing keeps one
core busy, so another thread writes to that memory meanwhile.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..codegen.tvm.packing import ALIGNMENT, HUGE_PAGE, Pool, advise, memory
from .shared import nothing_shared
from .target import usable_cores

LEAST_BYTES = 32 << 20  # what less takes is not worth a thread
# Bytes that are written before the thread looks whether it is still wanted. It then waits for Python's lock, which a
# thread that computes gives up every 5 ms: as long as two megabytes take that a host must hand out first.
STEP = 4 * HUGE_PAGE


class Ahead(Pool):
    """A pool whose first bytes are made ready by a thread."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        self._region, self._used = memory(nbytes), 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._write, name="smelt-memory", daemon=True)
        self._thread.start()

    def _write(self) -> None:
        address, nbytes = self._region.data_ptr(), self._region.numel()
        for start in range(0, nbytes, STEP):
            if self._done.is_set():
                return
            ctypes.memset(address + start, 0, min(STEP, nbytes - start))  # which lets other threads of Python run

    def take(self, nbytes: int) -> Tensor:
        """Uninitialised bytes, uint8 [nbytes]. What was begun to be made ready is waited for."""
        self._stop()
        with self._lock:
            start = -(-self._used // ALIGNMENT) * ALIGNMENT
            if start + nbytes <= self._region.numel():
                self._used = start + nbytes
                return self._region[start : self._used]
        return super().take(nbytes)

    def _stop(self) -> None:
        self._done.set()
        self._thread.join()

    def close(self) -> None:
        """Nothing more is taken: the system gets back what nobody took."""
        self._stop()
        rest = self._region[self._used :]
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if rest.numel() and advice is not None:
            advise(rest.data_ptr(), rest.numel(), advice)


def memory_for(model: Callable[..., Any]) -> Ahead | None:
    """Memory for the packed weights of a model; None where they are few, or where others are packed already.

    Graphs of one model share their packed weights, and a second one needs little. None too where the system refuses.
    """
    if not isinstance(model, nn.Module) or usable_cores() < 2 or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    nbytes = packed_bytes(model)
    nbytes += nbytes // 16  # panels are whole
    if nbytes < LEAST_BYTES or not nothing_shared():
        return None
    try:
        return Ahead(nbytes)
    except (OSError, RuntimeError):  # no such memory, or no thread: fewer bytes may be needed, asked for one by one
        return None


def packed_bytes(model: nn.Module) -> int:
    """The bytes of the matrices that products of a model read: all of its parameters with two axes but tables.

    A table that a linear layer has too, as where a language model's head is tied to its embedding, is read by both.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    tables -= {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    matrices = {id(p): p for p in model.parameters() if p.ndim == 2 and id(p) not in tables and p.device == _CPU}
    return sum(p.nbytes for p in matrices.values())


_CPU = torch.device("cpu")
