"""What was found, as one JSON file: a part that is run again replaces its rows, and nothing else."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import Any

from ..._version import __version__
from ...ir.errors import SmeltError

VERSION = 1
PACKAGES = ("torch", "triton", "numpy", "transformers")
DRY = "dry-run"


class RecordError(SmeltError, ValueError):
    """A file is not what a check of a GPU wrote."""


class Results:
    """The record, which is written each time that a row is added."""

    def __init__(self, path: Path, dry: bool, environment: Mapping[str, Any]) -> None:
        self.path, self.dry, self.environment = path, dry, dict(environment)
        self._lock = Lock()
        self.data: dict[str, Any] = {"version": VERSION, "dry": dry, "parts": {}}
        if path.exists():
            self.data = load(path)
            if self.data["dry"] != dry:
                raise RecordError(f"{path} is of a {'dry' if self.data['dry'] else 'real'} run: name another file")

    def add(self, part: str, row: str, record: Mapping[str, Any]) -> None:
        """Keep the record of a row."""
        with self._lock:
            found = self.data["parts"].setdefault(part, {"rows": {}})
            found["when"], found["environment"] = datetime.now(UTC).isoformat(timespec="seconds"), self.environment
            found["rows"][row] = dict(record)
            self._save()

    def _save(self) -> None:
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.data, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(self.path)


def load(path: Path) -> dict[str, Any]:
    """A record.

    Raises:
        RecordError: the file holds none.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict) or found.get("version") != VERSION or "parts" not in found:
        raise RecordError(f"{path} is not a record of version {VERSION}")
    return found


def environment(gpu: Mapping[str, Any]) -> dict[str, Any]:
    """Versions and the machine; ``gpu`` is what the process that uses it found."""
    packages = {name: _version(name) for name in PACKAGES}
    return {
        "gpu": dict(gpu),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "versions": {"smelt": __version__, "python": platform.python_version(), **packages},
        "commit": _output("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": os.cpu_count(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """The first line that a command writes; None where it cannot be run."""
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(found.stdout.strip().splitlines()), None)


def name_of(gpu: Mapping[str, Any]) -> str:
    """A file's name for a GPU: ``h200`` for "NVIDIA H200"."""
    plain = re.sub(r"(?i)nvidia|geforce|tesla", "", str(gpu.get("name", DRY)))
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-") or "gpu"
