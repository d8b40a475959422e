"""The GPU's clocks while it is timed, by nvidia-smi where there is one; nothing is set."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

FIELDS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "clocks_event_reasons.active")
OLD_NAME = ("clocks_event_reasons", "clocks_throttle_reasons")  # of drivers before 535
IDLE = 0x1  # nvidia-smi's bit of "the GPU is idle", which slows nothing that runs
APPLICATION_CLOCKS = 0x2


def state_of(lines: str) -> dict[str, Any]:
    """What lines of nvidia-smi with ``FIELDS`` say: ranges, and the reasons for lower clocks as bits."""
    rows = [[cell.strip() for cell in line.split(",")] for line in lines.splitlines()]
    rows = [row for row in rows if len(row) == len(FIELDS)]
    found: dict[str, Any] = {"samples": len(rows)}
    for position, name in enumerate(("sm_mhz", "memory_mhz", "celsius", "watts")):
        numbers = [x for x in (_number(row[position]) for row in rows) if x is not None]
        if numbers:
            found[name] = [min(numbers), max(numbers)]
    reasons = 0
    for row in rows:
        reasons |= _bits(row[-1])
    found["slowed_by"] = hex(reasons & ~(IDLE | APPLICATION_CLOCKS))
    return found


def _number(text: str) -> float | None:
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):
        return None


def _bits(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return 0


@cache
def _command() -> tuple[str, ...]:
    """What asks for ``FIELDS`` of the first GPU, by names that the driver knows; nothing where there is no answer."""
    program = shutil.which("nvidia-smi") or "nvidia-smi"
    fields = ",".join(FIELDS)
    for names in (fields, fields.replace(*OLD_NAME)):
        command = (program, f"--query-gpu={names}", "--format=csv,noheader,nounits", "--id=0")
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(command, capture_output=True, check=True, timeout=20)
            return command
    return ()


@contextmanager
def watched(found: dict[str, Any], every: int = 200) -> Iterator[None]:
    """Ask nvidia-smi every so many milliseconds meanwhile; what it says is put into ``found``."""
    command = _command()
    if not command:
        yield
        return
    process = subprocess.Popen(
        [*command, f"--loop-ms={every}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield
    finally:
        process.terminate()
        try:
            lines, _ = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            lines, _ = process.communicate()
        found |= state_of(lines)
