"""Kernels compiled by a process of their own, which is started before they are known: see :mod:`.worker`.

A process of Python's has one such process, which later compilations use too. Whatever goes wrong with it is no error:
the kernels are compiled by whoever asked.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from .child import can_start, command, end, environment
from .host import Host

MOST_PROCESSES = 8
ANSWER_SECONDS = 120.0  # for a request; whoever asked compiles after that
PROCESSOR_SECONDS = 30.0  # to find out what this machine's processor is
_WAITS = os.name == "posix"  # elsewhere there is no select on pipes


class Service:
    """The process that compiles for this one, started when that is asked for, and again after it ended."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._says_processor = False  # on a line that was not read yet
        self._lock = threading.Lock()  # of a request and its answer

    @property
    def is_running(self) -> bool:
        """Whether there is a process to ask."""
        process = self._process
        return process is not None and process.poll() is None

    def start(self, *, processor: bool = False) -> None:
        """Start the process, unless it runs; it makes itself ready meanwhile.

        A process that is started with ``processor`` finds out this machine's, see :meth:`processor`.
        """
        if self.is_running or not can_start():
            return
        processor = processor and hasattr(os, "fork")
        with self._lock:
            if not self.is_running:
                self._close()
                with suppress(OSError):
                    self._process = _started(*(["processor"] if processor else []))
                    self._says_processor = processor

    def processor(self) -> bytes:
        """What the process says of this machine's processor; nothing where it was not asked when it was started."""
        with self._lock:
            return self._processor()

    def _processor(self) -> bytes:
        process = self._process
        if not self._says_processor or process is None:
            return b""
        self._says_processor = False
        assert process.stdout is not None
        try:
            _wait(process.stdout, time.monotonic() + PROCESSOR_SECONDS, to_write=False)
            return process.stdout.readline()
        except OSError:
            self._close()
            return b""

    def make_library(self, texts: Sequence[str], hosts: Sequence[Host], cpu: str, path: Path, processes: int) -> bool:
        """Have kernels and host functions compiled to a shared library, beside which objects may be left lying.

        Returns:
            Whether that was done; if not, the process is not there, gives no answer in time, or refuses the kernels.
        """
        calls = [
            (h.name, [(c.kernel, c.buffers) for c in h.calls], h.addresses, [str(s) for s in h.symbols]) for h in hosts
        ]
        request = {
            "texts": list(texts),
            "hosts": calls,
            "cpu": cpu,
            "library": str(path),
            "processes": min(processes, MOST_PROCESSES),
        }
        with self._lock:
            answer: object = None
            try:
                answer = self._ask(json.dumps(request))
            except (OSError, ValueError):  # it has ended, or takes too long
                pass
            finally:
                if answer is None:  # or the answer of this request would be taken for that of the next
                    self._close()
            return answer == {"status": "ok"}

    def _ask(self, request: str) -> object:
        process = self._process
        if process is None:
            return None
        assert process.stdin is not None
        assert process.stdout is not None
        until = time.monotonic() + ANSWER_SECONDS
        self._processor()  # which nobody asked for
        _send(process.stdin, request.encode() + b"\n", until)
        if _WAITS:
            _wait(process.stdout, until, to_write=False)
        return json.loads(process.stdout.readline())

    def close(self) -> None:
        """End the process, which does nothing that must be finished."""
        self._close()

    def _close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            end(process)


def _send(stream: IO[bytes], data: bytes, end: float) -> None:
    """Write to a process, which may not read it.

    Raises:
        OSError: it ended, or did not read it in time.
    """
    if not _WAITS:
        stream.write(data)
        stream.flush()
        return
    os.set_blocking(stream.fileno(), False)
    rest = memoryview(data)
    while rest:
        _wait(stream, end, to_write=True)
        rest = rest[os.write(stream.fileno(), rest) :]


def _wait(stream: IO[bytes], end: float, *, to_write: bool) -> None:
    """Raise TimeoutError unless a pipe can be written to, or read, before the end."""
    seconds = max(0.0, end - time.monotonic())
    found = select.select([], [stream], [], seconds) if to_write else select.select([stream], [], [], seconds)
    if not any(found):
        raise TimeoutError


def _started(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command(f"{__package__}.worker", *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )


_services: list[Service] = []
_of_parents: list[Service] = []  # kept, or Popen would warn of a process that is not this one's


def service() -> Service:
    """That of this process."""
    if not _services:
        _services.append(Service())
    return _services[0]


def _forget() -> None:
    """After a fork: the process belongs to the parent, and its lock may be held."""
    _of_parents.extend(_services)
    _services.clear()


def _end() -> None:
    for one in _services:
        one.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(_end)
