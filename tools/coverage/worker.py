"""A process that measures architectures one after another: what crashes or hangs in it is one row of the table.

Run as ``python -m smelt.tools.coverage.worker NAME...``; prints a line of JSON for each.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO

from ..bench.start import package_parent
from .architectures import ARCHITECTURES
from .measure import Outcome, Row, row_of

SECONDS = 300.0  # for one architecture


def main(*names: str) -> None:
    """Measure architectures, and print each as it is done."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing that a model prints is taken for an answer
    from .measure import measure

    for name in names:
        answers.write(json.dumps(measure(ARCHITECTURES[name]).to_dict()) + "\n")


def rows(names: Sequence[str], seconds: float = SECONDS) -> Iterator[Row]:
    """The row of each architecture, in order. A process that ends or hangs is followed by one for those that are left.

    Args:
        names: of the architectures.
        seconds: for one of them.
    """
    left = list(names)
    while left:
        with _started(left) as process:
            assert process.stdout is not None
            lines = _Lines(process.stdout)
            while left:
                line = lines.next(seconds)
                if not line:
                    yield _lost(process, left.pop(0), seconds)
                    break
                left.pop(0)
                yield row_of(json.loads(line))
            process.kill()


def _started(names: Sequence[str]) -> subprocess.Popen[bytes]:
    paths = [str(package_parent()), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "smelt.tools.coverage.worker", *names]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


class _Lines:
    """The lines that a process writes."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._read = stream, b""

    def next(self, seconds: float) -> str:
        """The next line; empty where the process ends or the time is over."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._stream], [], [], max(deadline - time.monotonic(), 0.0))
            piece = os.read(self._stream.fileno(), 1 << 16) if ready else b""
            if not piece:
                return ""
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        return line.decode()


def _lost(process: subprocess.Popen[bytes], name: str, seconds: float) -> Row:
    """The row of an architecture at which a process ended, or was still busy."""
    try:
        code = process.wait(timeout=1.0)
        error = f"the process ended with code {code}"
    except subprocess.TimeoutExpired:
        error = f"not done after {seconds:.0f} s"
    return Row(name, ARCHITECTURES[name].kind, (Outcome("forward", error=error),))


if __name__ == "__main__":
    main(*sys.argv[1:])
