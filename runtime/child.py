"""Processes that answer requests, one JSON line in and one out: what crashes or hangs there ends nothing else."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..codegen.tvm.child import end

START_SECONDS = 60.0  # to import PyTorch and TVM
PATIENCE = 4  # how many times as long as its processor time a request may take on a busy machine

Answer = dict[str, Any]


class NoAnswer(Exception):
    """A process gave no answer. ``kind`` is ``crash`` where it ended, ``hang`` where it took too long."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind, self.message = kind, message


def serve(make: Callable[[], Callable[[Answer], Answer]]) -> None:
    """Answer requests until standard input ends; called by the main function of such a process.

    ``make`` imports what is needed, and returns what answers a request.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing that others print is taken for an answer
    answer = make()
    answers.write("ready\n")
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")


class Child:
    """Such a process, started when it is first asked, and again after it died.

    Args:
        command: what to start.
        env: environment variables to set; None takes one away.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str | None]) -> None:
        self.command, self.env = tuple(command), dict(env)
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: Mapping[str, Any], seconds: float) -> Answer:
        """The answer to a request, which may use so many seconds of processor time.

        Raises:
            NoAnswer: it used more, or waited ``PATIENCE`` times as long, or the process ended, or was never ready.
        """
        try:
            return _answer(self._running(), request, seconds)
        except BaseException:  # or what it still answers would be taken for the answer to the next request
            self.close()
            raise

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            return self._process
        places = os.pathsep.join(p for p in sys.path if p)
        env = {**os.environ, "PYTHONPATH": places, "PYTHONWARNINGS": "ignore", **self.env}
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in env.items() if value is not None},
        )
        if _line(self._process, START_SECONDS) is None:  # where it ended, the request finds out
            raise NoAnswer("hang", f"the process was not ready within {START_SECONDS:g} seconds")
        return self._process

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            end(process)


def _answer(process: subprocess.Popen[bytes], request: Mapping[str, Any], seconds: float) -> Answer:
    line: bytes | None
    try:
        assert process.stdin is not None
        process.stdin.write((json.dumps(request) + "\n").encode())
        process.stdin.flush()
        line = _line(process, seconds)
    except BrokenPipeError:
        line = b""
    if line is None:
        raise NoAnswer("hang", f"no answer within {seconds:g} seconds")
    if not line:
        raise NoAnswer("crash", f"the process ended with {process.wait()}")
    found: Answer = json.loads(line)
    return found


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """The next line, nothing at the end of the output; None where it takes more processor time, or waits long."""
    stream: IO[bytes] | None = process.stdout
    assert stream is not None
    used, until = processor_seconds(process.pid), time.monotonic() + PATIENCE * seconds
    while time.monotonic() < until and processor_seconds(process.pid) - used < seconds:
        ready, _, _ = select.select([stream], [], [], min(seconds, 0.5))
        if ready:
            return stream.readline()
    return None


def processor_seconds(pid: int) -> float:
    """The processor time that a process has used: what a busy machine does not stretch.

    Where the system does not tell, it is the time of day.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
