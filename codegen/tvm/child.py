"""Processes of Python that help this one: they run a module of this package, found where this process finds it.

They have no PyTorch, which takes a second to import: TVM's libraries import it where they can, and do without.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_BOOT = """import json, sys
sys.path[:], sys.modules["torch"] = json.loads(sys.argv[1]), None
from {} import main
main()"""


def can_start() -> bool:
    """Whether the program that runs this process is Python, which can run another module."""
    name = Path(sys.executable or "").name.lower()
    return name.startswith(("python", "pypy")) and not getattr(sys, "frozen", False)


def command(module: str, *arguments: str) -> list[str]:
    """The command that calls ``main`` of a module, which finds the arguments in ``sys.argv[2:]``."""
    places = [place for place in sys.path if isinstance(place, str)]
    return [sys.executable, "-c", _BOOT.format(module), json.dumps(places), *arguments]


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that has nothing to finish, and close the pipes to it."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):  # what was not written yet
                stream.close()


def environment() -> dict[str, str]:
    """The environment to start it in: numpy's library starts no threads, which a forked process would be without."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
