"""Where captures are kept: files of text beside the kernels, found by their key, checked when they are read.

A file is two lines of JSON. The first says the format, the key and the digest of the second, which is the capture.
Nothing in it is ever executed: graphs are read by ``ir.parse``, and all else is JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...ir.errors import CacheError
from ..cache import KernelCache

FORMAT = 1
MOST_FILES = 512  # those that were used least recently go first
MOST_OF_ONE_KEY = 16


class Store:
    """The captures that lie in the folder of a kernel cache."""

    def __init__(self, cache: KernelCache) -> None:
        self.cache = cache
        self.folder = cache.folder / "captures"

    def get(self, key: str) -> Iterator[dict[str, Any]]:
        """The captures of a key, the last used first; damaged ones are left out, with a warning."""
        if not self._usable():
            return
        for path in sorted(self.folder.glob(f"{key}-*.json"), key=_used, reverse=True):
            body = self._read(path, key)
            if body is not None:
                yield body
                with suppress(OSError):
                    os.utime(path)

    def put(self, key: str, body: dict[str, Any]) -> bool:
        """Keep a capture; whether it was."""
        text = json.dumps(body, separators=(",", ":"), sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        head = json.dumps({"format": FORMAT, "key": key, "sha256": digest})
        try:
            self.cache.check()
            self.folder.mkdir(mode=0o700, exist_ok=True)
            self._write(self.folder / f"{key}-{digest[:16]}.json", f"{head}\n{text}\n")
            self._evict(key)
        except (CacheError, OSError) as error:
            self.cache.say("captures", f"captures cannot be kept in {self.folder} ({error})")
            return False
        return True

    # --- inside -------------------------------------------------------------------------------------------------------

    def _usable(self) -> bool:
        with suppress(CacheError, OSError):
            self.cache.check()
            return self.folder.is_dir()
        return False

    def _read(self, path: Path, key: str) -> dict[str, Any] | None:
        try:
            head_text, _, text = path.read_text(encoding="utf-8").partition("\n")
            head = json.loads(head_text)
            if head["format"] != FORMAT:
                return None
            text = text.removesuffix("\n")
            if head["key"] != key or head["sha256"] != hashlib.sha256(text.encode()).hexdigest():
                raise ValueError("its digest is another one")
            body: dict[str, Any] = json.loads(text)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.damaged(path.name, error)
            return None
        return body

    def damaged(self, name: str, error: Exception) -> None:
        """Say once that an entry cannot be used."""
        message = f"a kept capture in {self.folder} is damaged ({error}): the model is captured again"
        self.cache.say(f"damaged {name}", message)

    def _write(self, path: Path, text: str) -> None:
        """Write by renaming, so that a reader finds all or nothing."""
        handle, name = tempfile.mkstemp(prefix=".new-", dir=self.folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(name, path)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(name)

    def _evict(self, key: str) -> None:
        of_key = sorted(self.folder.glob(f"{key}-*.json"), key=_used)
        everything = sorted(self.folder.glob("*.json"), key=_used)
        for path in {*of_key[:-MOST_OF_ONE_KEY], *everything[:-MOST_FILES]}:
            with suppress(OSError):
                path.unlink()


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
