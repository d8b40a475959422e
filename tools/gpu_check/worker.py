"""A process that computes rows: one request a line, one record a line. What ends it costs one row."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...runtime.child import serve
from . import builders, cases, kernels, schedules, start, tiny
from .measure import Progress, clean, is_lost, measure, said, synchronize
from .row import Row
from .rows import ROWS

Answer = dict[str, Any]
INTERPRETED = "TRITON_INTERPRET"
SPENT = 0.75  # of the time of a row, after which no more of its kernels is begun
LOST = "lost"  # in an answer: the process can do nothing more on its GPU


def answer(request: Mapping[str, Any]) -> Answer:
    """The record of the row that a request names.

    A request holds ``part`` and ``row``, ``dry``, ``peers`` (those to measure), ``seconds`` that it may take, and
    ``progress``, a file that is kept saying what is being done. Without a part it asks what GPU there is.
    """
    if "part" not in request:
        return gpu()
    row = next(r for r in ROWS if (r.part, r.name) == (request["part"], request["row"]))
    dry = bool(request["dry"])
    device = torch.device("cpu" if dry else "cuda")
    said_to = Path(request["progress"])

    now = {"doing": ""}

    def progress(peer: str, doing: str) -> None:
        now["doing"] = doing
        said_to.write_text(json.dumps({"peer": peer, "doing": doing}), encoding="utf-8")

    begin = time.monotonic()
    try:
        record = record_of(row, request["peers"], device, dry, progress, begin + SPENT * request["seconds"])
        synchronize()
    except Exception as error:  # whatever a model, a compiler or a GPU raises
        record = {"status": "failed", "error": f"{now['doing']}: {said(error)}".removeprefix(": ")}
    record["seconds"] = time.monotonic() - begin
    if not dry:
        record[LOST] = is_lost()
        if not record[LOST]:
            clean()
    return record


def record_of(
    row: Row, names: Sequence[str], device: torch.device, dry: bool, progress: Progress, until: float
) -> Answer:
    """The record of a row, of those peers; checks of many kernels begin none after ``until``."""
    options = dict(row.options)
    match row.kind:
        case "cases":
            return cases.check_cases(device, dry, progress, until, **options)
        case "schedules":
            return schedules.check_schedules(device, dry, progress, until, **options)
        case "zoo":
            return tiny.zoo_model(options["model"], device, dry)
        case "launches":
            return tiny.launches(device, options["model"])
        case "start":
            return start.start(options, device, dry, progress)
        case "tokens" | "tiny prefill" | "tiny encoder":
            kind = {"tokens": "decode"}.get(row.kind, row.kind.removeprefix("tiny "))
            found: Answer = tiny.checked(kind)(options, device, dry, progress)
            return found
        case "kernel":
            return measure(names, kernels.kernel(device, dry, **options), progress, dry)
        case kind:
            return measure(names, builders.BUILDERS[kind](device, dry, **options), progress, dry)


def gpu() -> Answer:
    """What GPU there is; nothing where there is none."""
    if not torch.cuda.is_available():
        return {}
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_bytes": found.total_memory,
        "processors": found.multi_processor_count,
        "l2_bytes": getattr(found, "L2_cache_size", None),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _end_with_parent() -> None:
    """End when the process that asks is gone: what is computed is for nobody then."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def ready() -> Callable[[Answer], Answer]:
    """What answers requests, once the GPU is there."""
    torch.backends.cudnn.allow_tf32 = False  # for convolutions that others are compared with; products have it off
    if os.environ.get(INTERPRETED):
        cases.faster_interpreter()
    elif torch.cuda.is_available():
        torch.zeros(1, device="cuda")
    return answer


if __name__ == "__main__":
    _end_with_parent()
    serve(ready)
