"""The processor that code is generated for, kept in the cache folder: finding it out takes TVM's Python package."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from ..codegen.processor import Processor
from ..frontend.tracing import load_tracer
from ..ir.errors import CacheError
from .cache import KernelCache

FORMAT = 2
_CPUINFO = Path("/proc/cpuinfo")
_FEATURES = ("flags", "Features")
_TELLING = frozenset(_FEATURES) | {
    *("vendor_id", "cpu family", "model", "model name", "stepping"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision"),
}


def kept_processor(*, compiles: bool = False) -> Processor:
    """This machine's processor, from the user's cache folder where it was found before.

    Where it was not, kernels were not compiled either: with ``compiles``, the process for that is started, and asked.

    It is kept under what decides it: what the system tells of the processors, and the version of TVM, whose LLVM finds
    a name for them. Where the system tells nothing, it is found anew in each process.
    """
    told = _told()
    if told is None:
        return _found()
    cache = KernelCache()
    key = hashlib.sha256(json.dumps([FORMAT, told, version("apache-tvm")]).encode()).hexdigest()
    path = cache.folder / f"processor-{key}.facts"
    try:
        cache.check()
        return _read(path, key) or _find(path, key, compiles)
    except (CacheError, OSError):
        return _found()


def _find(path: Path, key: str, compiles: bool) -> Processor:
    """The processor found anew, and kept.

    Raises:
        OSError: it cannot be kept.
    """
    # imported here, as below: a process that finds it kept needs neither TVM nor its libraries for this
    from ..codegen.tvm.processor import ask
    from ..codegen.tvm.service import service

    if compiles:
        service().start(processor=True)
    if (compiles and service().is_running) or ask() is not None:
        load_tracer()  # meanwhile
    found = _found()
    _write(path, key, found)
    return found


def _found() -> Processor:
    from ..codegen.tvm.processor import host_processor

    return host_processor()


def _told() -> list[str] | None:
    """What Linux tells of the processors that LLVM's name and features follow from, each line once."""
    with suppress(OSError):
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.partition(":")[0].strip() in _TELLING]
        if any(line.startswith(_FEATURES) for line in lines):
            return list(dict.fromkeys(lines))
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
