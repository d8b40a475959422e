"""What machine code takes of a GPU: the registers of a thread, and what of them lies in memory."""

from __future__ import annotations

import re

from .elf import read_usage

_ALIGNED = 8  # bytes of a frame


def registers_of(code: bytes) -> int:
    """The registers of a thread of the kernel that a cubin holds.

    Raises:
        ElfError: it is no cubin of a kernel.
    """
    return read_usage(code).registers


def frame_of(code: bytes) -> int:
    """The bytes of memory of a thread of the kernel that a cubin holds: registers that do not fit, and arrays.

    Raises:
        ElfError: it is no cubin of a kernel.
    """
    return read_usage(code).frame


def spills_of(code: bytes, ptx: str) -> int:
    """The bytes of a thread's registers that lie in memory. Arrays are none (libdevice's sine has one).

    Raises:
        ElfError: it is no cubin of a kernel.
    """
    frame = frame_of(code)
    arrays = sum(int(n) for n in re.findall(r"^\s*\.local\b[^\[\n]*\[(\d+)\]", ptx, re.MULTILINE)) if frame else 0
    return max(frame - -(-arrays // _ALIGNED) * _ALIGNED, 0)
