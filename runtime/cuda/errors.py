"""The error of a GPU whose memory is full."""

from __future__ import annotations

import torch

from ...ir.errors import SmeltError


class OutOfMemoryError(SmeltError, torch.OutOfMemoryError):
    """The GPU has too little memory for a call. The model can be called again, as with fewer rows.

    It is also PyTorch's ``torch.cuda.OutOfMemoryError``.

    Attributes:
        needed: bytes that were asked for; None where PyTorch asked for them in a step of its own.
        free: bytes that were free then; None where nobody knows.
    """

    def __init__(self, message: str, needed: int | None, free: int | None) -> None:
        super().__init__(message)
        self.needed, self.free = needed, free


def amount(nbytes: int | None) -> str:
    """Bytes as a text."""
    return "an unknown number of bytes" if nbytes is None else f"{nbytes:,} bytes"
