"""The kernel cache: native code kept between processes, named by what it was made from, checked when it is read.

An entry is a shared library and a manifest of a few lines of JSON beside it. The manifest names its key, the library's
file, size and digest; it is written last, and by renaming, so that whoever finds it finds the library whole. Processes
that write take turns by a lock; those that read need none, since a library is named after its content.

The cache never makes a compilation fail: what goes wrong is said once, as a CacheWarning, and the kernels are compiled
again in every process.
"""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..ir.errors import BackendError, CacheError
from .linker import LINKER_ADVICE, find_linker
from .manifest import FORMAT, Manifest, digest_of, fault_of

DEFAULT_LIMIT = 2 << 30
LOCK_SECONDS = 10.0
# A file used this recently may be about to be loaded by another process, or still be written.
GRACE_SECONDS = 600.0

_KEY = re.compile(r"[0-9a-f]{64}")
_SIZE = re.compile(r"\s*(\d+)\s*([KMGT]?)(i?B)?\s*", re.IGNORECASE)
_said: set[tuple[str, str]] = set()


class CacheWarning(UserWarning):
    """The kernel cache is not used, or not for one entry; nothing is lost but time."""


class KernelCache:
    """A folder of native code.

    Args:
        folder: where; made with access for its owner only. By default :func:`default_folder`.
        limit: how many bytes to keep at most; the least recently used entries go first. By default what
            ``SMELT_CACHE_LIMIT`` says (``500M``, ``2G``), and 2 GiB where it is not set.
        grace: seconds for which a used entry is kept whatever the limit.
    """

    def __init__(
        self, folder: str | os.PathLike[str] | None = None, *, limit: int | None = None, grace: float = GRACE_SECONDS
    ) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()
        self.limit = default_limit() if limit is None else limit
        self.grace = grace
        self.hits = 0
        self.misses = 0

    # --- what callers use ---------------------------------------------------------------------------------------------

    def get(self, key: str) -> Path | None:
        """The library kept under a key, found whole; None where there is none."""
        path = self._get(key) if self._usable() else None
        self.hits += path is not None
        self.misses += path is None
        return path

    def put(self, key: str, build: Callable[[Path], Any]) -> Path | None:
        """Keep the library that ``build`` writes to the path it is given, and return where it lies.

        None where it cannot be kept; the reason is said once. ``build`` is not called where it would be in vain.

        Raises:
            BackendError: ``build`` cannot compile what it was to write.
        """
        _check_key(key)
        if not self._usable() or not self._can_link():
            return None
        try:
            return self._put(key, build)
        except BackendError:  # the kernels cannot be compiled, kept or not
            raise
        except CacheError as error:
            self.say("put", str(error))
        except Exception as error:
            # Whatever the linker or the disk says: the kernels are compiled already and run without being kept.
            reason = str(error).strip().splitlines() or [type(error).__name__]
            self.say("put", f"kernels cannot be kept in {self.folder} ({reason[0]}): they will be compiled again")
        return None

    def check(self) -> None:
        """Make the folder if need be, and see that it can be used.

        Raises:
            CacheError: it cannot, for the reason given.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.folder.stat()
        except OSError as error:
            raise CacheError(f"the kernel cache {self.folder} cannot be made or read: {error.strerror}") from error
        advice = "give a folder of your own in SMELT_CACHE_DIR"
        if not stat.S_ISDIR(found.st_mode):
            raise CacheError(f"the kernel cache {self.folder} is not a folder: {advice}")
        if hasattr(os, "geteuid") and found.st_uid != os.geteuid():
            raise CacheError(f"the kernel cache {self.folder} belongs to another user: {advice}")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise CacheError(f"others may write to the kernel cache {self.folder}: run chmod 700 on it, or {advice}")

    def size(self) -> int:
        """The bytes that libraries and manifests take."""
        return sum(size for _, _, size in self._files())

    # --- reading ------------------------------------------------------------------------------------------------------

    def _get(self, key: str) -> Path | None:
        path = self._manifest(_check_key(key))
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._say_damaged(key, f"its manifest cannot be read: {error}")
            return None
        try:
            manifest = Manifest.parse(text)
        except ValueError:
            self._say_damaged(key, "its manifest is damaged")
            return None
        if manifest.format != FORMAT:
            return None
        library = self.folder / Path(manifest.library).name
        reason = fault_of(manifest, key, library)
        if reason is not None:
            self._say_damaged(key, reason)
            return None
        with suppress(OSError):
            os.utime(path)
            os.utime(library)
        return library

    def _say_damaged(self, key: str, reason: str) -> None:
        self.say(f"damaged {key}", f"an entry of the kernel cache {self.folder} is damaged ({reason}): compiled again")

    # --- writing ------------------------------------------------------------------------------------------------------

    def _put(self, key: str, build: Callable[[Path], Any]) -> Path:
        with self._temporary(".so") as built:
            build(built)
            size, digest = built.stat().st_size, digest_of(built)
            if size > self.limit:
                raise CacheError(f"kernels of {size} bytes are not kept: the cache's limit is {self.limit}")
            manifest = Manifest(FORMAT, key, f"{key}-{digest[:16]}.so", size, digest)
            library = self.folder / manifest.library
            with self._lock():
                os.replace(built, library)
                self._write_manifest(manifest)
                self._evict()
        return library

    def _write_manifest(self, manifest: Manifest) -> None:
        with self._temporary(".json") as written:
            written.write_text(json.dumps(asdict(manifest), indent=1) + "\n", encoding="utf-8")
            os.replace(written, self._manifest(manifest.key))

    @contextmanager
    def _temporary(self, suffix: str) -> Iterator[Path]:
        """A new file in the folder, which is removed unless it was renamed."""
        handle, name = tempfile.mkstemp(prefix=".new-", suffix=suffix, dir=self.folder)
        os.close(handle)
        path = Path(name)
        try:
            yield path
        finally:
            with suppress(OSError):
                path.unlink(missing_ok=True)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        lock = FileLock(str(self.folder / ".lock"), timeout=LOCK_SECONDS, mode=0o600)
        try:
            lock.acquire()
        except Timeout as error:
            raise CacheError(f"another process has held the kernel cache {self.folder} for {LOCK_SECONDS} s") from error
        try:
            yield
        finally:
            lock.release()

    # --- room ---------------------------------------------------------------------------------------------------------

    def _files(self) -> list[tuple[float, Path, int]]:
        """The files of the cache, the least recently used first: when it was used, where it lies, its bytes."""
        found = []
        for path in self.folder.glob("*") if self.folder.is_dir() else ():
            with suppress(OSError):
                known = path.lstat()
                if path.suffix in (".so", ".json") and stat.S_ISREG(known.st_mode):
                    found.append((known.st_mtime, path, known.st_size))
        return sorted(found)

    def _evict(self) -> None:
        """Remove what belongs to no entry, then the least recently used entries above the limit. Under the lock.

        The folder is listed once: a cache of 2 GiB has thousands of files, and other processes wait for the lock.
        """
        known = self._files()
        sizes = {path: size for _, path, size in known}
        old = time.time() - self.grace
        files = [path for used, path, _ in known if used <= old]
        entries = {path: self.folder / self._library_of(path) for path in sizes if path.match("[0-9a-f]*.json")}
        named = set(entries.values())

        def remove(path: Path) -> None:
            _remove(path)
            sizes.pop(path, None)

        for path in files:
            if path.suffix == ".so" and path not in named:
                remove(path)
        for path in files:
            if path.suffix == ".json" and (path not in entries or entries[path] not in sizes):
                remove(path)
        left = sum(sizes.values())
        for path in files:
            if left <= self.limit:
                return
            if path in entries and path in sizes:
                left -= sizes[path] + sizes.get(entries[path], 0)
                remove(path)
                remove(entries[path])

    def _library_of(self, manifest: Path) -> str:
        try:
            return Manifest.parse(manifest.read_text(encoding="utf-8")).library
        except (OSError, ValueError):
            return ""

    # --- whether it works ---------------------------------------------------------------------------------------------

    def _manifest(self, key: str) -> Path:
        return self.folder / f"{key}.json"

    def _usable(self) -> bool:
        try:
            self.check()
        except CacheError as error:
            self.say("folder", f"{error}; kernels are compiled again in every process until then")
            return False
        return True

    def _can_link(self) -> bool:
        if find_linker() is not None:
            return True
        _say_once("linker", "", f"kernels are compiled again in every process: {LINKER_ADVICE}")
        return False

    def say(self, topic: str, message: str) -> None:
        """Warn of what goes wrong in this folder, once for each topic."""
        _say_once(topic, str(self.folder), message)


def default_folder() -> Path:
    """``SMELT_CACHE_DIR``, or ``smelt`` in the user's cache folder."""
    given = os.environ.get("SMELT_CACHE_DIR")
    if given:
        return Path(given).expanduser()
    # imported here: a machine with PyTorch and Triton alone, which `make gpu-check` is for, need not have it
    from platformdirs import user_cache_path

    return user_cache_path("smelt", appauthor=False)


def default_limit() -> int:
    """``SMELT_CACHE_LIMIT`` in bytes, with a unit K, M, G or T if wanted; 2 GiB where it is not set or not a size."""
    given = os.environ.get("SMELT_CACHE_LIMIT")
    if not given:
        return DEFAULT_LIMIT
    match = _SIZE.fullmatch(given)
    if match is None:
        _say_once("limit", given, f"SMELT_CACHE_LIMIT is {given!r}: give a size such as 500M or 2G; 2G is used")
        return DEFAULT_LIMIT
    return int(match[1]) << (10 * " KMGT".index(match[2].upper() or " "))


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _check_key(key: str) -> str:
    if not _KEY.fullmatch(key):
        raise ValueError(f"a key is the SHA-256 of what an entry is made from, in hexadecimal: got {key!r}")
    return key


def _say_once(topic: str, where: str, message: str) -> None:
    """Warn, unless this process was told before."""
    if (topic, where) not in _said:
        _said.add((topic, where))
        warnings.warn(message, CacheWarning, stacklevel=2)
