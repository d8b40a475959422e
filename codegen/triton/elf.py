"""What a cubin says of itself: the GPU it is for, its functions, their parameters, what they take of a GPU.

A cubin is an ELF file of NVIDIA's machine. Each function has a section ``.text.NAME`` and one ``.nv.info.NAME`` of
records (format, attribute, length or value, data), which lists the parameters; ``.nv.info`` has records of all
functions. The format is what ``cuobjdump -res-usage`` reads; it is not documented. Nothing is run.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_FILE = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_MACHINE = 190  # EM_CUDA
_OLD, _NEW = 7, 8  # versions of the ABI, which keep the GPU's number in different bits
_LONG = 4  # a record of this format has data
_PARAMETER, _THREADS = 0x17, 0x10  # EIATTR_KPARAM_INFO, EIATTR_REQNTID
_REGISTERS, _FRAME = 0x2F, 0x11  # EIATTR_REGCOUNT, EIATTR_FRAME_SIZE: a symbol and a number
MOST_SECTIONS = 10_000


class ElfError(ValueError):
    """Bytes that are no cubin, or one that cannot be read."""


@dataclass(frozen=True)
class CubinFunction:
    """A function of a cubin: the bytes of each parameter, in order, and its threads; None where any number will do."""

    parameters: tuple[int, ...]
    threads: int | None


@dataclass(frozen=True)
class Usage:
    """What a thread of the function takes that needs the most: registers, and bytes of memory of its own."""

    registers: int
    frame: int


@dataclass(frozen=True)
class Cubin:
    """What is known of a cubin.

    Attributes:
        capability: the GPU that it is for, 90 for sm_90 and sm_90a.
        functions: by name.
    """

    capability: int
    functions: Mapping[str, CubinFunction]


def read_cubin(code: bytes) -> Cubin:
    """What a cubin says of itself.

    Raises:
        ElfError: it is none, or damaged.
    """
    try:
        return _read(code)
    except ElfError:
        raise
    except (struct.error, IndexError, OverflowError, ValueError) as error:
        raise ElfError(f"it is a damaged cubin ({type(error).__name__})") from None


def read_usage(code: bytes) -> Usage:
    """What the threads of a cubin's functions take. What a function calls, a division perhaps, is one of its own.

    Raises:
        ElfError: it is no cubin, or damaged.
    """
    try:
        records = [
            r for name, section in _sections(code).items() if name == ".nv.info" for r in _records(_data(code, section))
        ]
        counts = [(attribute, struct.unpack("<II", value)[1]) for attribute, value in records if len(value) == 8]
        registers, frame = (max(n for attribute, n in counts if attribute == kind) for kind in (_REGISTERS, _FRAME))
    except ElfError:
        raise
    except (struct.error, IndexError, OverflowError, ValueError) as error:
        raise ElfError(f"it is a damaged cubin ({type(error).__name__})") from None
    return Usage(registers, frame)


def _read(code: bytes) -> Cubin:
    ident, flags = _header(code)
    found = _sections(code)
    functions = {}
    for name in found:
        if name.startswith(".text."):
            function = name.removeprefix(".text.")
            functions[function] = _function(_data(code, found.get(f".nv.info.{function}")))
    return Cubin(flags & 0xFF if ident[8] == _OLD else flags >> 8 & 0xFF, functions)


def _header(code: bytes) -> tuple[bytes, int]:
    ident, _, machine, _, _, _, _, flags, *_ = _FILE.unpack_from(code)
    if ident[:6] != b"\x7fELF\x02\x01" or machine != _MACHINE:
        raise ElfError("it is no machine code of NVIDIA's GPUs")
    if ident[8] not in (_OLD, _NEW):
        raise ElfError(f"it is a cubin of version {ident[8]} of the ABI")
    return ident, flags


def _sections(code: bytes) -> dict[str, tuple[int, ...]]:
    """The rows of the table of sections, by name."""
    _header(code)
    *_, at, _, _, _, _, size, count, names = _FILE.unpack_from(code)
    if size != _SECTION.size or count > MOST_SECTIONS or names >= count:
        raise ElfError("its sections cannot be found")
    sections = [_SECTION.unpack_from(code, at + i * size) for i in range(count)]
    return {_name(code, sections[names][4] + section[0]): section for section in sections}


def _name(code: bytes, at: int) -> str:
    end = code.index(0, at)
    return code[at:end].decode("ascii")


def _data(code: bytes, section: tuple[int, ...] | None) -> bytes:
    if section is None:
        raise ElfError("it does not list the parameters of a function")
    start, size = section[4], section[5]
    if start + size > len(code):
        raise ElfError("a section ends after the file")
    return code[start : start + size]


def _function(data: bytes) -> CubinFunction:
    found: dict[int, int] = {}
    threads = None
    for attribute, value in _records(data):
        if attribute == _PARAMETER:
            _, ordinal, _, about = struct.unpack("<IHHI", value)
            found[ordinal] = about >> 18
        elif attribute == _THREADS:
            x, y, z = struct.unpack("<3I", value)
            threads = x * y * z
    if sorted(found) != list(range(len(found))):
        raise ElfError("it does not list all parameters of a function")
    return CubinFunction(tuple(found[i] for i in range(len(found))), threads)


def _records(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        form, attribute, length = struct.unpack_from("<BBH", data, at)
        at += 4
        if form != _LONG:
            continue
        if at + length > len(data):
            raise ElfError("a record of it ends after the section")
        yield attribute, data[at : at + length]
        at += length
