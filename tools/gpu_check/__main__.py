"""``python -m smelt.tools.gpu_check``: the GPU's tests, then its benchmark, as JSON and a table printed last."""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from ...ir.errors import SmeltError, UnsupportedError
from . import record, supervisor
from .child import Child, NoAnswer
from .row import PARTS, Row
from .rows import rows_of
from .table import faults, text

MINUTES = 9.0
OUT = Path("build/gpu-check")
KERNELS = "kernels.tar.gz"
INDUCTOR = "triton_"  # what the names of its kernels begin with
NO_GPU = "PyTorch finds no GPU here: say --dry-run to check without one what can be checked"


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """What a command line says."""
    parser = argparse.ArgumentParser(prog="python -m smelt.tools.gpu_check", description=__doc__)
    parser.add_argument("--part", action="append", choices=list(PARTS), help="a part to run, all by default")
    parser.add_argument("--only", type=_regex, default="", metavar="REGEX", help="only rows with this in their name")
    parser.add_argument("--out", type=Path, default=OUT, help=f"a folder for kernels, records and logs ({OUT})")
    parser.add_argument("--json", type=Path, help="the file of results: by default OUT/GPU.json, such as h200.json")
    parser.add_argument("--minutes", type=_minutes, default=MINUTES, help=f"how long it may take ({MINUTES:g})")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="on a machine without a GPU: tiny sizes, by Triton's interpreter, untimed",
    )
    parser.add_argument("--list", action="store_true", help="list the rows and end")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of a file of results and end")
    return parser.parse_args(given)


def _regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from None


def _minutes(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise argparse.ArgumentTypeError(f"{text} minutes are no time that something can take")
    return found


def main(given: Sequence[str] | None = None) -> int:
    """Run the check; returns 0 where nothing is wrong, 1 where something is, 2 where it cannot be run."""
    asked = arguments(given)
    rows = {name: _rows(name, asked.only) for name in asked.part or PARTS}
    rows = {name: rows[name] for name in PARTS if rows.get(name)}
    if not rows and not asked.table:
        print("error: there is no such row; --list names them", file=sys.stderr)
        return 2
    if asked.list:
        print("\n".join(f"{name}: {row.name}" for name, found in rows.items() for row in found))
        return 0
    signal.signal(signal.SIGTERM, _end)
    try:
        if asked.table:
            print(text(record.load(asked.table), list(PARTS)))
            return 0
        return check(asked, rows)
    except (SmeltError, NoAnswer, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _rows(part: str, only: str | re.Pattern[str]) -> list[Row]:
    return [row for row in rows_of(part) if re.search(only, row.name)]


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def check(asked: argparse.Namespace, rows: dict[str, list[Row]]) -> int:
    """Run rows and print their table.

    Raises:
        UnsupportedError: there is no GPU.
    """
    until = time.monotonic() + 60 * asked.minutes
    out: Path = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    env = supervisor.cache_env(out / supervisor.CACHES)
    if asked.dry_run:
        env |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    found = {} if asked.dry_run else _gpu(env, out)
    path = asked.json or out / f"{record.name_of(found)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)  # before anything is computed that would be lost
    results = record.Results(path, asked.dry_run, record.environment(found))
    free = len(os.sched_getaffinity(0)) if asked.dry_run else (os.cpu_count() or 1) - 2
    workers = max(min(supervisor.MOST_WORKERS, free), 1)
    plan = supervisor.Plan(rows, out, until, asked.dry_run, env, workers)
    try:
        supervisor.run(plan, results, _say)
    finally:
        _keep_kernels(out)
        print(text(results.data, list(rows)))
        print(f"\n{path}", flush=True)
    return 1 if any(line.startswith(tuple(f"{name}: " for name in rows)) for line in faults(results.data)) else 0


def _gpu(env: dict[str, str], out: Path) -> dict[str, object]:
    child = Child(env, out / "worker-0.log")
    try:
        found = child.ask({}, 120)
    finally:
        child.close()
    if not found:
        raise UnsupportedError(NO_GPU)
    return found


def _say(line: str) -> None:
    print(line, flush=True)


def _keep_kernels(out: Path) -> None:
    """smelt's kernels and what was tuned, in one file, which is easier to take along than a folder."""
    caches = out / supervisor.CACHES
    with tarfile.open(out / KERNELS, "w:gz") as archive:
        for path in sorted(caches.glob("smelt/**/*")) + sorted(caches.glob("triton/*/*")):
            ours = path.suffix in (".cubin", ".json") and not path.name.startswith(INDUCTOR)
            if path.is_file() and (ours or path.is_relative_to(caches / "smelt")):
                archive.add(path, path.relative_to(caches))
    for left in out.glob("progress-*.json"):
        left.unlink()


if __name__ == "__main__":
    sys.exit(main())
