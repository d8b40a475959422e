"""The errors of a GPU: its memory is full, or its driver refuses something."""

from __future__ import annotations

import torch

from ...ir.errors import BackendError, SmeltError


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


class DriverError(BackendError):
    """The CUDA driver refused a call.

    Attributes:
        function, code, name: what was called, the driver's number of the error, and its name.
    """

    def __init__(self, function: str, code: int, name: str) -> None:
        super().__init__(f"the CUDA driver refused {function}: {name}")
        self.function, self.code, self.name = function, code, name


def amount(nbytes: int | None) -> str:
    """Bytes as a text."""
    return "an unknown number of bytes" if nbytes is None else f"{nbytes:,} bytes"
