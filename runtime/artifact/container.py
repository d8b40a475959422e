"""The file that an artifact is: a zip of members that are stored as they are, of which not one byte is free.

Any zip tool lists and unpacks it. A reader of ours trusts nothing in it: the archive's comment tells the size and the
digest of the manifest, the manifest tells every member, and from those follow all headers, which must be there byte for
byte. So no name, size or offset of the zip itself is ever used, and a flipped bit is found wherever it is. Each member
begins at a multiple of 4096 bytes, so that it can be mapped into memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import stat
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...ir.errors import ArtifactError
from .names import member_name

ALIGNMENT = 4096
CHUNK = 8 << 20  # bytes of a large member that have a digest of their own: they are checked by several threads
MANIFEST = "manifest.json"
MOST_MANIFEST = 64 << 20  # bytes
MOST_MEMBERS = 10_000
_MAGIC = b"smelt artifact 1 "

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END64 = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_END = struct.Struct("<4s4H2LH")
_WIDE, _SHORT = 0xFFFFFFFF, 0xFFFF  # the value stands in a field of 64 bits elsewhere
_VERSION, _DATE = 45, 0x21  # with 64-bit sizes; 1 January 1980
_COMMENT = len(_MAGIC) + 16 + 1 + 64


@dataclass(frozen=True)
class Member:
    """A member: its name, size in bytes, CRC-32 and SHA-256; of a large one, the SHA-256 of each ``CHUNK`` bytes."""

    name: str
    size: int
    crc: int
    sha256: str
    chunks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The member as data for JSON."""
        chunks = {"chunks": list(self.chunks)} if self.chunks else {}
        return {"name": self.name, "size": self.size, "crc32": self.crc, "sha256": self.sha256} | chunks

    @classmethod
    def of(cls, data: Any) -> Member:
        """The member that :meth:`to_dict` wrote.

        Raises:
            ArtifactError: the data is not that of a member.
        """
        match data:
            case {"name": name, "size": int(size), "crc32": int(crc), "sha256": str(digest), **rest}:
                chunks: Any = rest.get("chunks", [])
                known = size >= 0 and 0 <= crc <= _WIDE and set(rest) <= {"chunks"} and isinstance(chunks, list)
                wanted = -(-size // CHUNK) if size > CHUNK else 0
                if known and len(chunks) == wanted and all(map(_is_digest, (digest, *chunks))):
                    return cls(member_name(name), size, crc, digest, tuple(chunks))
        raise ArtifactError("the manifest lists something that is no member")


def _is_digest(text: object) -> bool:
    return isinstance(text, str) and len(text) == 64 and set(text) <= set("0123456789abcdef")


# --- layout -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """Where everything lies: for each member its header and the offset of its data; and what stands behind them all."""

    headers: tuple[bytes, ...]
    offsets: tuple[int, ...]
    tail: bytes

    @property
    def size(self) -> int:
        """The bytes of the whole file."""
        return self._end + len(self.tail)

    _end: int = 0


def layout_of(members: Sequence[Member]) -> Layout:
    """The layout of a file of these members, the last of which is the manifest."""
    at, headers, offsets, entries = 0, [], [], []
    for member in members:
        start = at
        header = _header(member, start)
        headers.append(header)
        offsets.append(start + len(header))
        entries.append(_entry(member, start))
        at = start + len(header) + member.size
    return Layout(tuple(headers), tuple(offsets), _tail(b"".join(entries), members, at), at)


def _header(member: Member, start: int) -> bytes:
    name = member.name.encode()
    sizes = struct.pack("<2H2Q", 1, 16, member.size, member.size)
    begun = start + _LOCAL.size + len(name) + len(sizes) + 6
    padding = -begun % ALIGNMENT
    extra = sizes + struct.pack("<3H", 0xD935, padding + 2, ALIGNMENT) + bytes(padding)
    fixed = (b"PK\x03\x04", _VERSION, 0, 0, 0, _DATE, member.crc, _WIDE, _WIDE, len(name), len(extra))
    return _LOCAL.pack(*fixed) + name + extra


def _entry(member: Member, start: int) -> bytes:
    name = member.name.encode()
    extra = struct.pack("<2H3Q", 1, 24, member.size, member.size, start)
    made_by = 3 << 8 | _VERSION  # Unix, for the mode below
    fixed = (b"PK\x01\x02", made_by, _VERSION, 0, 0, 0, _DATE, member.crc, _WIDE, _WIDE, len(name), len(extra))
    return _CENTRAL.pack(*fixed, 0, 0, 0, 0o100644 << 16, _WIDE) + name + extra


def _tail(entries: bytes, members: Sequence[Member], at: int) -> bytes:
    count, manifest = len(members), members[-1]
    end64 = _END64.pack(b"PK\x06\x06", 44, 3 << 8 | _VERSION, _VERSION, 0, 0, count, count, len(entries), at)
    locator = _LOCATOR.pack(b"PK\x06\x07", 0, at + len(entries), 1)
    comment = _MAGIC + f"{manifest.size:016x} {manifest.sha256}".encode()
    end = _END.pack(b"PK\x05\x06", 0, 0, _SHORT, _SHORT, _WIDE, _WIDE, len(comment))
    return entries + end64 + locator + end + comment


# --- writing ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """What becomes a member: its bytes, in parts."""

    name: str
    size: int
    parts: Callable[[], Iterable[bytes | memoryview]]

    @classmethod
    def of(cls, name: str, data: bytes | str) -> Source:
        """A member of some bytes, or of a text in UTF-8."""
        raw = data.encode() if isinstance(data, str) else data
        return cls(name, len(raw), lambda: (raw,))


def write(
    path: str | os.PathLike[str], sources: Sequence[Source], manifest: Callable[[Sequence[Member]], bytes]
) -> str:
    """Write an artifact, by renaming, so that a reader finds all or nothing; the digest of its manifest.

    ``manifest`` makes the manifest's bytes from the other members.

    Raises:
        ArtifactError: the file cannot be written.
    """
    target = Path(path)
    made = target.parent / f".new-{secrets.token_hex(8)}"
    try:
        with made.open("xb") as file:
            digest = _write(file, sources, manifest)
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, target)
    except OSError as error:
        raise ArtifactError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            made.unlink()
    return digest


def _write(file: BinaryIO, sources: Sequence[Source], manifest: Callable[[Sequence[Member]], bytes]) -> str:
    made: list[Member] = []
    for source in sources:
        made.append(_copy(file, source, made))
    last = Source.of(MANIFEST, manifest(made))
    made.append(_copy(file, last, made))
    layout = layout_of(made)
    for header, offset in zip(layout.headers, layout.offsets, strict=True):
        file.seek(offset - len(header))
        file.write(header)
    file.seek(layout.size - len(layout.tail))
    file.write(layout.tail)
    return made[-1].sha256


def _copy(file: BinaryIO, source: Source, before: Sequence[Member]) -> Member:
    """Write a member's data where it will lie; its header, which needs the digest, comes later."""
    blank = Member(member_name(source.name), source.size, 0, "0" * 64)
    file.seek(layout_of([*before, blank]).offsets[-1])
    whole, crc, written = hashlib.sha256(), 0, 0
    chunks, chunk = [], hashlib.sha256()
    for part in source.parts():
        view = memoryview(part).cast("B") if part else memoryview(b"")
        file.write(view)
        whole.update(view)
        crc = zlib.crc32(view, crc)
        while view:
            room = CHUNK - written % CHUNK
            chunk.update(view[:room])
            written += len(view[:room])
            view = view[room:]
            if written % CHUNK == 0:
                chunks.append(chunk.hexdigest())
                chunk = hashlib.sha256()
    if written % CHUNK:
        chunks.append(chunk.hexdigest())
    if written != source.size:
        raise ArtifactError(f"{source.name} became {written} bytes, not {source.size}, while it was written")
    large = written > CHUNK
    return Member(source.name, written, crc, whole.hexdigest(), tuple(chunks) if large else ())


# --- reading ----------------------------------------------------------------------------------------------------------


class Container:
    """An artifact that is open for reading.

    Attributes:
        manifest: the manifest, read from JSON; its digest was checked.
        digest: the SHA-256 of the manifest, in hexadecimal.
        members: the members by name, the manifest left out.
        size: the bytes of the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.descriptor = os.open(
                self.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
            )
        except OSError as error:
            raise ArtifactError(f"{self.path} cannot be read: {error.strerror}") from error
        try:
            self._read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def read(self, name: str) -> bytes:
        """The bytes of a member, with its digest checked.

        Raises:
            ArtifactError: there is none of this name, or it is damaged.
        """
        member = self.member(name)
        data = self._bytes(self.offsets[name], member.size)
        if hashlib.sha256(data).hexdigest() != member.sha256:
            raise self.fault(f"{name} has another digest")
        return data

    def json(self, name: str) -> Any:
        """A member that is JSON.

        Raises:
            ArtifactError: there is none of this name, or it is damaged.
        """
        return self._json(name, self.read(name))

    def text(self, name: str) -> str:
        """A member that is text.

        Raises:
            ArtifactError: there is none of this name, or it is damaged.
        """
        try:
            return self.read(name).decode()
        except UnicodeDecodeError:
            raise self.fault(f"{name} is not UTF-8") from None

    def member(self, name: str) -> Member:
        """What is known of a member.

        Raises:
            ArtifactError: there is none of this name.
        """
        if name not in self.members:
            raise self.fault(f"it has no member {name}")
        return self.members[name]

    def fault(self, what: str) -> ArtifactError:
        """The error that says what is wrong with the file."""
        return ArtifactError(f"{self.path} is damaged or not an artifact: {what}")

    # --- inside -------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        found = os.fstat(self.descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise self.fault("it is not a file")
        self.size = found.st_size
        comment = self._bytes(self.size - _COMMENT, _COMMENT)
        size, self.digest = self._comment(comment)
        end = self._end_of_manifest()
        raw = self._bytes(end - size, size)
        if hashlib.sha256(raw).hexdigest() != self.digest:
            raise self.fault("the manifest has another digest")
        self.manifest = self._json(MANIFEST, raw)
        self._lay_out(Member(MANIFEST, size, zlib.crc32(raw), self.digest))

    def _comment(self, comment: bytes) -> tuple[int, str]:
        text = comment.decode("ascii", "replace").removeprefix(_MAGIC.decode())
        size, _, digest = text.partition(" ")
        if (
            not comment.startswith(_MAGIC)
            or len(size) != 16
            or not _is_digest(f"{size:0>64}")
            or not _is_digest(digest)
        ):
            raise self.fault("it does not end as one")
        if int(size, 16) > MOST_MANIFEST:
            raise self.fault(f"its manifest is larger than {MOST_MANIFEST} bytes")
        return int(size, 16), digest

    def _end_of_manifest(self) -> int:
        """Where the list of members begins, which is where the manifest ends. What it tells is checked later."""
        fixed = _END64.size + _LOCATOR.size + _END.size + _COMMENT
        *_, listed, at = _END64.unpack(self._bytes(self.size - fixed, _END64.size))
        if at + listed + fixed != self.size:
            raise self.fault("its list of members is not where it must be")
        return int(at)

    def _lay_out(self, manifest: Member) -> None:
        listed = self.manifest.get("members") if isinstance(self.manifest, dict) else None
        if not isinstance(listed, list) or len(listed) >= MOST_MEMBERS:
            raise self.fault("its manifest lists no members, or too many")
        members = [*map(Member.of, listed), manifest]
        self.members = {member.name: member for member in members[:-1]}
        if len({member.name.lower() for member in members}) < len(members):
            raise self.fault("two members have one name")
        layout = layout_of(members)
        if layout.size != self.size:
            raise self.fault(f"it has {self.size} bytes, its members need {layout.size}")
        self.offsets = dict(zip(self.members, layout.offsets[:-1], strict=True))
        for header, offset, member in zip(layout.headers, layout.offsets, members, strict=True):
            if self._bytes(offset - len(header), len(header)) != header:
                raise self.fault(f"the header of {member.name} is another one")
        if self._bytes(self.size - len(layout.tail), len(layout.tail)) != layout.tail:
            raise self.fault("its list of members is another one")

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise self.fault("it is too short")
        parts = bytearray()
        while len(parts) < size:
            part = os.pread(self.descriptor, size - len(parts), offset + len(parts))
            if not part:
                raise self.fault("it became shorter while it was read")
            parts += part
        return bytes(parts)

    def _json(self, name: str, raw: bytes) -> Any:
        try:
            return json.loads(raw, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise self.fault(f"{name} is not JSON ({type(error).__name__})") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
