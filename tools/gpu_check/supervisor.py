"""The parts one after another, each within its time, by processes whose end costs one row."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

from .child import Answer, Child, NoAnswer
from .record import Results
from .row import PARTS, SLOW, SMELT, Part, Row

RESERVE = 8.0  # seconds for the table and the files
LEAST = 3.0  # seconds below which a row is not begun
MOST_WORKERS = 12
SLOWER = 4  # may a row be in a dry run, on a machine that has other things to do
CACHES = "caches"
Say = Callable[[str], None]


@dataclass
class Plan:
    """What is to be run, where it goes, and until when.

    Attributes:
        rows: by part, in the order of the parts.
        out: the folder for logs, kernels and caches.
        until: on the clock of ``time.monotonic``.
        env: of the processes.
        workers: processes for rows that may be computed side by side: all of them in a dry run.
    """

    rows: dict[str, list[Row]]
    out: Path
    until: float
    dry: bool
    env: dict[str, str] = field(default_factory=dict)
    workers: int = 1


def run(plan: Plan, results: Results, say: Say) -> None:
    """Compute all rows; each is kept as soon as it is there. What fails, or has no time left, is in the results."""
    with _Pool(plan) as pool:
        for name, rows in plan.rows.items():
            part = PARTS[name]
            until = _until(plan, name)
            say(f"{part.title}: {len(rows)} rows, at most {max(until - time.monotonic(), 0):.0f} seconds")
            _run_part(plan, part, rows, until, pool, results, say)


def _until(plan: Plan, name: str) -> float:
    """When a part has to end: its share of the time that is left, by the weights of the parts to come.

    A dry run times nothing, and its rows are tiny: each part may take all that is left.
    """
    if plan.dry:
        return plan.until - RESERVE
    names = list(plan.rows)
    coming = [PARTS[n].weight for n in names[names.index(name) :]]
    now = time.monotonic()
    left = max(plan.until - RESERVE - now, 0)
    return now + left * coming[0] / sum(coming)


class _Pool:
    """The processes of a run, by number; those that rows need alone are made anew."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.children = plan, dict[int, Child]()

    def __enter__(self) -> _Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children.values():
            child.close()

    def child(self, number: int) -> Child:
        """A process for many rows."""
        if number not in self.children:
            self.children[number] = Child(self.plan.env, self.plan.out / f"worker-{number}.log")
        return self.children[number]

    def keep_one(self) -> None:
        """End all but the first: what the others hold of the GPU is wanted for what is timed."""
        for number in [n for n in self.children if n]:
            self.children.pop(number).close()


def _run_part(
    plan: Plan, part: Part, rows: Sequence[Row], until: float, pool: _Pool, results: Results, say: Say
) -> None:
    """Rows with the peers that take no time to compile, then those with the others while there is time."""
    groups = [list(rows)]
    if part.aims_first:
        groups = [[row for row in rows if row.targets], [row for row in rows if not row.targets]]
    for group in groups:
        found = _quick(plan, part, group, until, pool, results, say)
        for row in [] if plan.dry else group:
            if row.quick == row.peers or found[row.name]["status"] != "ok" or until - time.monotonic() < LEAST:
                continue
            record = computed(plan, row, row.peers, pool.child(0), 0, until)
            results.add(part.name, row.name, _better(record, found[row.name]))
            say(f"  {row.name}, everyone: {_summary(record)}")


def _quick(
    plan: Plan, part: Part, rows: Sequence[Row], until: float, pool: _Pool, results: Results, say: Say
) -> dict[str, Answer]:
    """The records of rows without the peers that compile for long, side by side where the part may."""
    waiting: Queue[Row] = Queue()
    for row in rows:
        waiting.put(row)
    count = min(plan.workers, len(rows)) if part.parallel or plan.dry else 1
    # made here: a dictionary is not for several threads
    children = [pool.child(number) for number in range(count)]
    found: dict[str, Answer] = {}

    def work(number: int) -> None:
        for row in _taken(waiting):
            record = computed(plan, row, row.quick, children[number], number, until)
            found[row.name] = _with_skipped(record, row)
            results.add(part.name, row.name, found[row.name])
            say(f"  {row.name}: {_summary(record)}")

    threads = [Thread(target=work, args=(number,), daemon=True) for number in range(1, count)]
    for thread in threads:
        thread.start()
    work(0)
    for thread in threads:
        thread.join()
    if not plan.dry:
        pool.keep_one()
    return found


def _taken(waiting: Queue[Row]) -> Iterable[Row]:
    while True:
        try:
            yield waiting.get_nowait()
        except Empty:
            return


def _with_skipped(record: Answer, row: Row) -> Answer:
    """A record that says of the peers that were not asked why they have no figures."""
    left = [name for name in row.peers if name not in row.quick]
    if not left:
        return record
    skipped = {name: {"skipped": "no time was left"} for name in left}
    return record | {"peers": skipped | record.get("peers", {})}


def _better(record: Answer, before: Answer) -> Answer:
    """The record with everyone; where smelt was not timed again, the one before and what went wrong since."""
    if "median" in record.get("peers", {}).get(SMELT, {}):
        return record
    failed = {n: p for n, p in record.get("peers", {}).items() if n in SLOW and "failed" in p}
    return before | {"peers": before["peers"] | failed}


def computed(plan: Plan, row: Row, peers: Sequence[str], child: Child, number: int, until: float) -> Answer:
    """The record of a row; a peer that ends the process, or takes all the time, is left out the next time."""
    left_out: dict[str, str] = {}
    progress = plan.out / f"progress-{number}.json"
    while True:
        seconds = min(until - time.monotonic(), row.limit * (SLOWER if plan.dry else 1))
        if seconds < LEAST:
            return _unreached(row, left_out)
        asked = [name for name in peers if name not in left_out]
        progress.write_text("{}", encoding="utf-8")
        request = {"part": row.part, "row": row.name, "dry": plan.dry, "peers": asked, "progress": str(progress)}
        request["seconds"] = seconds
        try:
            record = _asked(plan, row, request, child, seconds)
        except NoAnswer as error:
            culprit, why = _culprit(progress, str(error))
            record = {"status": "failed", "error": why, "peers": {}}
        else:
            lost = record.pop("lost", False)
            if lost:
                child.close()
            culprit, why = _first_failed(record, asked) if lost else ("", "")
        if culprit in asked and len(asked) > 1:
            left_out[culprit] = why
            continue
        return record | {"peers": record.get("peers", {}) | _failed(left_out)} if left_out else record


def _first_failed(record: Answer, asked: Sequence[str]) -> tuple[str, str]:
    """Who made the GPU refuse everything: what fails after it fails for that."""
    peers = record.get("peers", {})
    return next(((name, peers[name]["failed"]) for name in asked if "failed" in peers.get(name, {})), ("", ""))


def _asked(plan: Plan, row: Row, request: dict[str, Any], child: Child, seconds: float) -> Answer:
    if not row.alone or plan.dry:
        return child.ask(request, seconds)
    child.close()  # nothing else runs while it is timed
    folder = plan.out / f"{CACHES}-of-one-row"
    shutil.rmtree(folder, ignore_errors=True)
    alone = Child({**plan.env, **cache_env(folder)}, plan.out / "alone.log")
    try:
        return alone.ask(request, seconds)
    finally:
        alone.close()
        with suppress(OSError, shutil.Error):  # what took long to compile is there for the other parts
            shutil.copytree(folder, plan.out / CACHES, dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def cache_env(folder: Path) -> dict[str, str]:
    """Environment variables that keep every compiler's files in a folder."""
    return {
        "SMELT_CACHE_DIR": str(folder / "smelt"),
        "TRITON_CACHE_DIR": str(folder / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
    }


def _culprit(progress: Path, error: str) -> tuple[str, str]:
    """Who was at work when there was no answer, and what is to be said of it."""
    try:
        found = json.loads(progress.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = {}
    doing = found.get("doing", "")
    return found.get("peer", ""), f"{doing}: {error}" if doing else error


def _failed(left_out: dict[str, str]) -> dict[str, Any]:
    return {name: {"failed": why} for name, why in left_out.items()}


def _unreached(row: Row, left_out: dict[str, str]) -> Answer:
    if left_out:
        return {"status": "failed", "error": next(iter(left_out.values())), "peers": _failed(left_out)}
    return {"status": "not reached", "error": f"no time was left: run --part {row.part}", "peers": {}}


def _summary(record: Answer) -> str:
    """One line of a row, for the log."""
    text = record["status"]
    error = record.get("error") or next(
        (f[k] for f in (record.get("peers", {}).get(SMELT, {}), record) for k in ("failed", "wrong") if k in f), ""
    )
    seconds = f" ({record['seconds']:.1f} s)" if "seconds" in record else ""
    return f"{text}{seconds}{f': {error}' if error else ''}"[:300]
