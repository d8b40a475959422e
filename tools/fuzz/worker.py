"""A process that checks programs, one JSON line in and one out: what crashes or hangs here ends nothing else."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO, Any

_START_SECONDS = 60.0  # to import PyTorch and TVM
_PATIENCE = 10  # how many times as long as its processor time a process may take


def main() -> None:
    """Serve requests until standard input ends."""
    serve(_checker)


def serve(prepare: Callable[[], Callable[[dict[str, Any]], Any]]) -> None:
    """Answer each line of standard input by one line, as what ``prepare`` returns says, until it ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing that a program prints is taken for an answer
    import torch

    torch.set_num_threads(1)
    answer = prepare()
    answers.write("{}\n")
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")


def _checker() -> Callable[[dict[str, Any]], Any]:
    from .check import check
    from .generate import program_of

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        source = request.get("source") or program_of(request["seed"], request["number"]).source()
        return answer_of(partial(check, source, request["native"]))

    return answer


def answer_of(run: Any) -> dict[str, Any]:
    """A verdict as JSON. An exception of the check itself is a finding too."""
    try:
        verdict = run()
    except Exception as error:
        return {"way": "check", "message": f"{type(error).__name__}: {error}"}
    found = verdict.finding
    counts = {name: getattr(verdict, name) for name in ("raised", "recaptured", "noisy", "kernels", "graph")}
    return {"way": found and found.way, "message": found and found.message, **counts}


def processor_seconds(pid: int) -> float:
    """The processor time that a process has used: what its load on a busy machine does not stretch.

    Where the system does not tell, it is the time of day.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return time.monotonic()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Worker:
    """A worker process, started when it is first asked, and again after it died; it runs ``module``, which serves."""

    def __init__(self, native: bool, seconds: float, module: str = __name__) -> None:
        self.native, self.seconds, self.module = native, seconds, module
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request; a finding of the way ``crash`` or ``hang`` where none came."""
        process = self._running()
        try:
            line = (json.dumps({"native": self.native, **request}) + "\n").encode()
            assert process.stdin is not None
            process.stdin.write(line)
            process.stdin.flush()
            answer = self._line(process, self.seconds, _PATIENCE)
        except BrokenPipeError:
            answer = b""
        if answer is None:
            self.close()
            return {"way": "hang", "message": f"no answer within {self.seconds:g} seconds"}
        if not answer:
            code = process.wait()
            self.close()
            return {"way": "crash", "message": f"the process ended with {code}"}
        found: dict[str, Any] = json.loads(answer)
        return found

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            places = os.pathsep.join(p for p in sys.path if p)
            env = {**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
            command = [sys.executable, "-m", self.module]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
            )
            self._line(self._process, _START_SECONDS, _PATIENCE)
        return self._process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], seconds: float, patience: int) -> bytes | None:
        """The next line, nothing at the end of the output; None where it takes more processor time, or waits long."""
        stream: IO[bytes] | None = process.stdout
        assert stream is not None
        used, end = processor_seconds(process.pid), time.monotonic() + patience * seconds
        while time.monotonic() < end and processor_seconds(process.pid) - used < seconds:
            ready, _, _ = select.select([stream], [], [], min(seconds, 1.0))
            if ready:
                return stream.readline()
        return None

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


if __name__ == "__main__":
    main()
