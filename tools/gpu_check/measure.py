"""One row measured: every peer made ready and held against PyTorch, then all of them timed in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from . import clock
from .peers import needs_gpu, ready, timed
from .row import EAGER, OURS, SMELT
from .state import watched
from .workload import (
    MOST_OVER_EAGER,
    MOST_OVER_EAGER_INTERPRETED,
    Expected,
    Workload,
    Wrong,
    expected,
    verdict,
)

Record = dict[str, Any]
Progress = Callable[[str, str], None]  # told which peer, and what is done to it
ROUNDS = 9


def measure(names: Sequence[str], work: Workload, progress: Progress, dry: bool) -> Record:
    """The record of a row.

    Args:
        names: the peers to measure.
        work: the model and its calls.
        progress: told what is being done, for the case that it ends the process.
        dry: check what a CPU can run, and time nothing.
    """
    peers: dict[str, Record] = {}
    progress(EAGER, "results to compare with")
    right = expected(work)
    work.wide = None  # its memory is for the others
    most = MOST_OVER_EAGER_INTERPRETED if work.args[0].device.type == "cpu" else MOST_OVER_EAGER
    calls = {}
    for name in names:
        if dry and needs_gpu(name):
            peers[name] = {"skipped": "it needs a GPU"}
            continue
        call, peers[name] = _checked(name, work, right, progress, most)
        if call is not None:
            calls[name] = timed(call, work)
    record: Record = {"peers": peers, "status": _status(peers.get(SMELT, {}), dry)}
    record |= {"flops": work.flops, "bytes": work.nbytes, **work.facts}
    del right
    if not dry and calls:
        _release()
        progress("", "timing")
        record |= _times(calls, work, peers)
        if SMELT in calls:
            progress(SMELT, "counting launches")
            with torch.no_grad():
                record["launched"] = clock.launches(calls[SMELT])
    return record


def _status(smelt: Mapping[str, Any], dry: bool) -> str:
    for name in ("failed", "wrong"):
        if name in smelt:
            return name
    return "dry" if dry else "ok"


def _checked(name: str, work: Workload, right: Expected, progress: Progress, most: float) -> tuple[Any, Record]:
    """A peer and its record; no peer where it cannot be timed."""
    progress(name, "first call")
    start = time.perf_counter()
    try:
        call = ready(name, work)
        with torch.no_grad():
            call(*work.args)
        synchronize()
        first = time.perf_counter() - start
        progress(name, "comparing results")
        found = verdict(call, work, right, most, work.model if name in OURS else work.eager)
    except Wrong as error:
        return None, {"wrong": str(error)}
    except Exception as error:  # whatever a compiler or a kernel of anyone raises
        return None, {"failed": said(error)}
    record: Record = {"first_call": first, "error": found.error, "eager_error": found.eager_error}
    if work.tokens:
        record |= {"tokens": found.tokens, "ties": found.ties}
    return call, record


def _times(calls: Mapping[str, clock.Call], work: Workload, peers: Mapping[str, Record]) -> Record:
    roofs = clock.Roofs()
    seen: Record = {}
    with torch.no_grad(), watched(seen):
        rounds = clock.in_turns({**calls, **roofs.calls}, ROUNDS, work.flush)
    for name in calls:
        peers[name].update(rounds.to_dict(name))
    return {"roofs": clock.rates(rounds), "gpu": seen}


def said(error: BaseException) -> str:
    """What an error says, in one line that is not long."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def synchronize() -> None:
    """Wait for the GPU, so that what fails on it fails here."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def is_lost() -> bool:
    """Whether the GPU refuses everything, as after an access outside of memory."""
    try:
        synchronize()
    except RuntimeError:
        return True
    return False


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def clean() -> None:
    """Give back what a row held: memory, and what PyTorch's compiler remembers of its models."""
    torch._dynamo.reset()
    _release()
