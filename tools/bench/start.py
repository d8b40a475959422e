"""Start-up measured in a process of its own: from a model in memory to its first result.

Run as ``python -m smelt.tools.bench.start MODEL PEER THREADS DTYPE``; prints JSON. Where the kernel caches are is said
by the environment: ``SMELT_CACHE_DIR`` and ``TORCHINDUCTOR_CACHE_DIR``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import smelt

from ...ir.errors import SmeltError


class StartError(SmeltError, RuntimeError):
    """The process that measures a start failed; the message is the end of what it said."""


def measure_start(spec: str, peer: str, threads: int, folder: Path, dtype: str = "f32") -> dict[str, float]:
    """Seconds of a start in a new process, with kernel caches in a folder.

    Returns:
        ``first``: from a model in memory to its first result, compilation included; ``process``: from the start of the
        process to the same; ``peak_bytes``: the most memory that the process held.

    Raises:
        StartError: the process failed.
    """
    caches = {"SMELT_CACHE_DIR": str(folder / "smelt"), "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    command = [sys.executable, "-m", "smelt.tools.bench.start", spec, peer, str(threads), dtype]
    # The package is found where this process found it, installed or not.
    paths = [str(package_parent()), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | caches | {"PYTHONPATH": os.pathsep.join(paths)}
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, text=True, capture_output=True)
    whole = time.perf_counter() - start
    if done.returncode != 0:
        raise StartError(f"measuring the start of {peer} failed: {' '.join(done.stderr.split()[-40:])}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | {"process": whole}


def package_parent() -> Path:
    """The folder to import the package from."""
    return Path(next(iter(smelt.__path__))).parent


def main(spec: str, peer: str, threads: str, dtype: str) -> None:
    """Load the model, then time its first call."""
    from .peers import prepare
    from .run import load

    model = load(spec, dtype)
    start = time.perf_counter()
    prepare(peer, model, int(threads), dtype)()
    found = {"first": time.perf_counter() - start, "peak_bytes": peak_bytes()}
    print(json.dumps(found))


def peak_bytes() -> float:
    """The most memory that this process has held; 0 where the system does not tell."""
    with suppress(OSError, IndexError, ValueError):  # Linux: what getrusage tells there begins with the parent's
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return float(status.partition("VmHWM:")[2].split()[0]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
