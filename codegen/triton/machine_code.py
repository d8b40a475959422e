"""What machine code says of itself: the registers of a thread, and what of them lies in memory."""

from __future__ import annotations

import re
import struct

# of an ELF file of 64 bits: where the table of its sections is said to be, and what stands in a row of it
_TABLE, _COUNTS, _SECTION = 0x28, 0x3A, "<IIQQQQIIQQ"
_INFO = ".nv.info"
_SIZED = 4  # the form of an attribute that is followed by its bytes: here a symbol and a number
_REGISTERS, _FRAME = 0x2F, 0x11
_ALIGNED = 8  # bytes of a frame


def registers_of(code: bytes) -> int:
    """The registers of a thread of the kernel that a cubin holds.

    Raises:
        ValueError: it is no cubin of a kernel.
    """
    return _attribute(code, _REGISTERS)


def frame_of(code: bytes) -> int:
    """The bytes of memory of a thread of the kernel that a cubin holds: registers that do not fit, and arrays.

    Raises:
        ValueError: it is no cubin of a kernel.
    """
    return _attribute(code, _FRAME)


def spills_of(code: bytes, ptx: str) -> int:
    """The bytes of a thread's registers that lie in memory. Arrays are none (libdevice's sine has one).

    Raises:
        ValueError: it is no cubin of a kernel.
    """
    frame = frame_of(code)
    arrays = sum(int(n) for n in re.findall(r"^\s*\.local\b[^\[\n]*\[(\d+)\]", ptx, re.MULTILINE)) if frame else 0
    return max(frame - -(-arrays // _ALIGNED) * _ALIGNED, 0)


def _attribute(code: bytes, wanted: int) -> int:
    try:  # what it calls, a division perhaps, is a function of its own
        return max(number for kind, number in _attributes(code) if kind == wanted)
    except (struct.error, IndexError, ValueError) as error:
        raise ValueError("this is no machine code of a kernel for an NVIDIA GPU") from error


def _attributes(code: bytes) -> list[tuple[int, int]]:
    """What is said of functions, as kind and number. The format is that of ``cuobjdump -res-usage``, not documented."""
    (table,), (size, count, names) = struct.unpack_from("<Q", code, _TABLE), struct.unpack_from("<HHH", code, _COUNTS)
    sections = [struct.unpack_from(_SECTION, code, table + i * size) for i in range(count)]
    start = sections[names][4]
    found = []
    for name, _, _, _, offset, length, *_ in sections:
        if code[start + name : start + name + len(_INFO) + 1] != f"{_INFO}\0".encode():
            continue
        at = offset
        while at < offset + length:
            form, kind, size_or_value = struct.unpack_from("<BBH", code, at)
            at += 4
            if form == _SIZED:
                if size_or_value >= 8:
                    found.append((kind, struct.unpack_from("<II", code, at)[1]))
                at += size_or_value
    return found
