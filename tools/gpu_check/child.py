"""The process that computes rows, as its parent sees it: asked for a row, given so much time of day."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
START_SECONDS = 90.0  # to import PyTorch and find the GPU
WORKER = (sys.executable, "-m", f"{__package__}.worker")
LAST_LINES = 3  # of what it wrote, where it ended


class NoAnswer(Exception):
    """A row was not computed: the process ended, or took too long."""


class Child:
    """A process of ``worker``, started when it is first asked, and again after it ended.

    Args:
        env: environment variables to set.
        log: a file that gets what it writes.
        command: what is started.
    """

    def __init__(self, env: Mapping[str, str], log: Path, command: Sequence[str] = WORKER) -> None:
        self.env, self.log, self.command = dict(env), log, tuple(command)
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    def ask(self, request: Mapping[str, Any], seconds: float) -> Answer:
        """The answer to a request.

        Raises:
            NoAnswer: there was none within so many seconds, or the process ended.
        """
        until = time.monotonic() + seconds
        try:
            process = self._running(until)
            assert process.stdin is not None
            process.stdin.write((json.dumps(request) + "\n").encode())
            process.stdin.flush()
            found: Answer = json.loads(self._line(process, until, f"it took more than {seconds:.0f} seconds"))
            return found
        except BrokenPipeError:
            raise NoAnswer(self._ended()) from None
        except BaseException:  # or what it still answers would be taken for the answer to the next request
            self.close()
            raise

    def _running(self, until: float) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._rest = b""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self.env, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"},
                process_group=0,  # which compilers' processes are in as well
            )
        self._line(self._process, min(until, time.monotonic() + START_SECONDS), "it was not ready in time")
        return self._process

    def _line(self, process: subprocess.Popen[bytes], until: float, late: str) -> bytes:
        """The next line that it writes."""
        assert process.stdout is not None
        stream = process.stdout.fileno()
        while b"\n" not in self._rest:
            ready, _, _ = select.select([stream], [], [], max(until - time.monotonic(), 0))
            if not ready:
                raise NoAnswer(late)
            data = os.read(stream, 1 << 16)
            if not data:
                raise NoAnswer(self._ended())
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def _ended(self) -> str:
        assert self._process is not None
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        return f"the process ended with {how}: {' | '.join(line.strip() for line in lines)[-400:]}"

    def close(self) -> None:
        """End the process and those that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):  # what was not written yet
                    stream.close()
