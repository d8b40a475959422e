"""What is known of an entry of the kernel cache, and whether its library is still what was put there."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What is known of an entry: its key, and its library's file name, size in bytes and SHA-256."""

    format: int
    key: str
    library: str
    size: int
    sha256: str

    @classmethod
    def parse(cls, text: str) -> Manifest:
        """A manifest from its JSON.

        Raises:
            ValueError: it is not one.
        """
        found = json.loads(text)
        types = {"format": int, "key": str, "library": str, "size": int, "sha256": str}
        if not isinstance(found, dict) or {name: type(value) for name, value in found.items()} != types:
            raise ValueError("not a manifest")
        return cls(**found)


def digest_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fault_of(manifest: Manifest, key: str, library: Path) -> str | None:
    """What is wrong with an entry; None where nothing is."""
    if manifest.key != key:
        return "its manifest is that of another entry"
    try:
        if library.stat().st_size != manifest.size:
            return "its library has another size"
        return None if digest_of(library) == manifest.sha256 else "its library has another digest"
    except OSError as error:
        return f"its library cannot be read: {error.strerror}"
