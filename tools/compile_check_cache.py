"""What equal functions take of a GPU is found out once: within a run, and between runs in the cache folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

from ..codegen.gpu import GpuMachine
from ..codegen.triton import cubin
from ..codegen.triton.cubin import Resources, signature_of, versions
from ..codegen.triton.file import KernelFile, Launch
from ..ir.errors import SmeltError
from ..runtime.cache import default_folder

FOLDER = "gpu-functions"
# what a function calls, and how it is compiled and read
_MODULES = ("cubin", "device", "elf", "file", "fitted", "launch", "library", "machine_code", "storage")
_FUNCTION = re.compile(r"(?=^@triton\.jit)", re.MULTILINE)


class Known:
    """What functions take, by all that decides it.

    Args:
        folder: where it is kept; None for memory alone. Files that cannot be read or written are as if they were not.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.compiled = folder, 0
        self._found: dict[str, Resources] = {}

    def get(self, key: str, kernel: KernelFile, launch: Launch) -> Resources | None:
        """What is known of a function, under its name here."""
        found = self._found.get(key) or self._read(key)
        return None if found is None else replace(found, function=launch.function, bits=kernel.bits)

    def put(self, key: str, found: Resources) -> None:
        """Keep what was found out."""
        self._found[key] = found
        self.compiled += 1
        if self.folder is None:
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{key}.{os.getpid()}"
            path.write_text(json.dumps(asdict(found)), encoding="utf-8")
            path.replace(self.folder / f"{key}.json")

    def _read(self, key: str) -> Resources | None:
        if self.folder is None:
            return None
        try:
            self._found[key] = Resources(**json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return self._found[key]


def kept() -> Known:
    """What is known from earlier runs, in the cache folder."""
    return Known(default_folder() / FOLDER)


def key_of(kernel: KernelFile, launch: Launch, machine: GpuMachine) -> str:
    """A digest of all that decides what a function takes: source but for its name, types, how it is compiled."""
    types = list(signature_of(kernel, launch).values())
    how = [source_of(kernel.text, launch.function), types, launch.warps, launch.stages, repr(machine), *_surroundings()]
    return hashlib.sha256(json.dumps(how).encode()).hexdigest()


def source_of(text: str, function: str) -> str:
    """The source of one function of a kernel's file, in which it is called ``kernel``."""
    named: Sequence[str] = [part for part in _FUNCTION.split(text) if f"\ndef {function}(" in part]
    (found,) = named
    return re.sub(rf"\b{re.escape(function)}\b", "kernel", found)


@cache
def _surroundings() -> tuple[str, ...]:
    """Versions, and the modules of ours that machine code depends on."""
    folder = Path(__file__).resolve().parents[1] / "codegen" / "triton"
    texts = (hashlib.sha256((folder / f"{name}.py").read_bytes()).hexdigest() for name in _MODULES)
    return (*map(str, sorted(versions().items())), *texts)


Unit = tuple[KernelFile, Launch, GpuMachine]


def units_of(kernel: KernelFile, machine: GpuMachine) -> list[Unit]:
    """The functions of a kernel: all that may be launched, whichever way its sizes decide."""
    return [(file, launch, machine) for file in kernel.all for launch in file.launches]


def resources(unit: Unit) -> Resources | str:
    """What a function takes, or why it cannot be compiled."""
    try:
        return cubin.compile_function(*unit)
    except SmeltError as error:
        return str(error)
