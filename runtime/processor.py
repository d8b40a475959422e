"""The processor that code is generated for, kept in the cache folder: finding it out takes TVM's Python package."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ..frontend.tracing import load_tracer
from ..ir.errors import CacheError
from .cache import KernelCache

if TYPE_CHECKING:
    from ..codegen.tvm.processor import Processor

FORMAT = 1
_CPUINFO = Path("/proc/cpuinfo")


def kept_processor() -> Processor:
    """This machine's processor, from the user's cache folder where it was found before.

    It is kept under what decides it: LLVM's name, the flags that the system tells, and the version of TVM. Where the
    system tells none, it is found anew in each process.
    """
    # imported here: only a target that runs on TVM needs it
    from ..codegen.tvm.native import tvm_version
    from ..codegen.tvm.processor import ask, host_name, host_processor

    flags = _flags()
    if flags is None:
        return host_processor()
    cache = KernelCache()
    key = hashlib.sha256(json.dumps([FORMAT, host_name(), flags, tvm_version()]).encode()).hexdigest()
    path = cache.folder / f"processor-{key}.facts"
    try:
        cache.check()
        kept = _read(path, key)
        if kept is not None:
            return kept
        if ask() is not None:
            load_tracer()  # meanwhile
        found = host_processor()
        _write(path, key, found)
        return found
    except (CacheError, OSError):
        return host_processor()


def _flags() -> str | None:
    """The features of the first processor, as Linux lists them."""
    with suppress(OSError):
        for line in _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return None


def _read(path: Path, key: str) -> Processor | None:
    """What is kept; None where there is nothing, or it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        name, features, digest = data["name"], data["features"], data["digest"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not isinstance(name, str) or not isinstance(features, list) or not all(isinstance(f, str) for f in features):
        return None
    from ..codegen.tvm.processor import Processor

    found = Processor(name, tuple(features))
    return found if digest == _digest(key, found) else None


def _write(path: Path, key: str, found: Processor) -> None:
    """Write by renaming, so that a reader finds all or nothing."""
    handle, name = tempfile.mkstemp(prefix=".new-", dir=path.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(json.dumps({"name": found.name, "features": found.features, "digest": _digest(key, found)}))
    os.replace(name, path)


def _digest(key: str, found: Processor) -> str:
    return hashlib.sha256(json.dumps([key, *found]).encode()).hexdigest()
