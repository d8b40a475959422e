"""What was tuned, kept as lines of JSON: one for each schedule that was tried, one for each that was chosen.

A line stands for itself, so that files are merged by putting one behind the other, and a line that is damaged costs
nothing but itself. A kernel is known by the digest of its program's text, its target and its threads; what was found
with another version of the emitter or of TVM does not count.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..codegen.program import Program
from ..codegen.schedule import Schedule
from ..codegen.schedule_data import schedule_from_dict, schedule_to_dict
from ..codegen.text import print_program
from ..ir.errors import CacheError
from .cache import KernelCache
from .target import Target

FORMAT = 1
FILE = "tuning.jsonl"
LOCK_SECONDS = 10.0


@dataclass(frozen=True)
class Trial:
    """A schedule that was tried.

    Attributes:
        key: of the kernel.
        versions: what it was built with.
        sizes: that it was called at, by the names of symbols.
        status: ok, wrong, refused, crash or hang.
        ratio: how long it took relative to the default schedule; 0 where it was not timed.
    """

    key: str
    versions: str
    sizes: Mapping[str, int]
    schedule: Schedule
    status: str
    ratio: float = 0.0
    message: str = ""


@dataclass(frozen=True)
class Choice:
    """The schedule that was chosen for a kernel.

    Attributes:
        kernel: what it was called, for people.
        target: what it was tuned for, for people.
        default: the schedule that it was held against.
        seconds, default_seconds: of a call, the medians of the last comparison.
        tried: how many schedules were looked at.
    """

    key: str
    versions: str
    sizes: Mapping[str, int]
    schedule: Schedule
    default: Schedule
    seconds: float
    default_seconds: float
    tried: int
    kernel: str = ""
    target: str = ""
    date: str = ""

    @property
    def gain(self) -> float:
        """How many times as long the default schedule takes."""
        return self.default_seconds / self.seconds if self.seconds else 1.0


Record = Trial | Choice


def key_of(program: Program, target: Target) -> str:
    """What a kernel is known by, whatever model it is in."""
    facts = [FORMAT, print_program(program), target.fingerprint, asdict(target.machine)]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def versions() -> str:
    """What a record depends on beside its key."""
    from ..codegen.tvm.kernel import version  # only a target that runs on TVM needs it

    return version()


# --- text -------------------------------------------------------------------------------------------------------------


def record_to_dict(record: Record) -> dict[str, Any]:
    """A record as data for JSON."""
    data = {"format": FORMAT, "what": "trial" if isinstance(record, Trial) else "choice"} | vars(record)
    return {name: schedule_to_dict(x) if name in ("schedule", "default") else x for name, x in data.items()}


def record_from_dict(data: Any) -> Record:
    """The record that :func:`record_to_dict` made data of.

    Raises:
        ValueError: it is none, or one of another format.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ValueError("not a record of this format")
    made = {name: value for name, value in data.items() if name not in ("format", "what")}
    for name in ("schedule", "default"):
        if name in made:
            made[name] = schedule_from_dict(made[name])
    numbers = [made.get(name, 0.0) for name in ("seconds", "default_seconds", "ratio", "tried")]
    texts = [made.get(name) for name in ("key", "versions")]
    sizes = made.get("sizes")
    if not all(isinstance(x, int | float) for x in numbers) or not all(isinstance(x, str) for x in texts):
        raise ValueError("a record with a field of another type")
    if not isinstance(sizes, dict) or not all(isinstance(x, int) for x in sizes.values()):
        raise ValueError("a record without sizes")
    try:
        return Trial(**made) if data.get("what") == "trial" else Choice(**made)
    except TypeError as error:
        raise ValueError(str(error)) from None


def records_in(text: str) -> list[Record]:
    """The records in some lines; those that are damaged are left out."""
    found = []
    for line in text.splitlines():
        with suppress(ValueError):
            found.append(record_from_dict(json.loads(line)))
    return found


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass
class Records:
    """A file of records, read when it is first asked for.

    Attributes:
        path: the file, which need not exist.
    """

    path: Path
    _read: list[Record] | None = field(default=None, repr=False)

    @classmethod
    def of_user(cls, cache: KernelCache | None = None) -> Records:
        """Those beside the kernel cache."""
        return cls((cache or KernelCache()).folder / FILE)

    def all(self) -> list[Record]:
        """Every record, the oldest first."""
        if self._read is None:
            try:
                self._read = records_in(self.path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                self._read = []
        return self._read

    def choices(self) -> list[Choice]:
        """The choices; a later one for the same kernel, versions and sizes replaces an earlier one."""
        found = (r for r in self.all() if isinstance(r, Choice))
        return list({(c.key, c.versions, _frozen(c.sizes)): c for c in found}.values())

    def trials(self, key: str, built_with: str, sizes: Mapping[str, int]) -> list[Trial]:
        """What was tried for a kernel at some sizes."""
        wanted = (key, built_with, _frozen(sizes))
        return [r for r in self.all() if isinstance(r, Trial) and (r.key, r.versions, _frozen(r.sizes)) == wanted]

    def add(self, records: Iterable[Record]) -> None:
        """Write records behind the others.

        Raises:
            CacheError: the file cannot be written.
        """
        made = list(records)
        text = "".join(json.dumps(record_to_dict(r)) + "\n" for r in made)
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock"), timeout=LOCK_SECONDS), self.path.open("ab+") as file:
                if file.tell() and not _ends_a_line(self.path):
                    text = "\n" + text  # an end that a process did not live to write
                file.write(text.encode())
        except OSError as error:
            raise CacheError(f"{self.path} cannot be written: {error}") from error
        if self._read is not None:
            self._read += made

    def merge(self, other: Records) -> int:
        """Take over the records of another file that are not here; returns how many."""
        known = {json.dumps(record_to_dict(r), sort_keys=True) for r in self.all()}
        new = [r for r in other.all() if json.dumps(record_to_dict(r), sort_keys=True) not in known]
        if new:
            self.add(new)
        return len(new)


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _frozen(sizes: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(sizes.items()))
