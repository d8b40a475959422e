"""Cold compile: from a model in memory to its first result, in a process of its own with empty caches."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from . import builders, peers
from .measure import Progress, said, synchronize
from .row import SMELT

CONTEXT = 128


def start(options: Mapping[str, Any], device: torch.device, dry: bool, progress: Progress) -> dict[str, Any]:
    """The record of a row: the seconds of the first call, what it holds in memory, and those of a later call.

    The result is compared in the part ``decode``. PyTorch runs one step before, for everyone alike: its libraries are
    loaded when the clock starts.
    """
    name = str(options["peer"])
    if dry and peers.needs_gpu(name):
        return {"status": "dry", "peers": {name: {"skipped": "it needs a GPU"}}}
    progress(name, "making the model")
    work = builders.decode(device, dry, model=options["model"], context=CONTEXT, dtype="bfloat16", tokens=1)
    synchronize()
    progress(name, "first call")
    begin = time.perf_counter()
    try:
        with torch.no_grad():
            call = peers.ready(name, work)
            call(*work.args)
        synchronize()
    except Exception as error:  # whatever a compiler raises
        return {"status": "failed" if name == SMELT else "ok", "peers": {name: {"failed": said(error)}}}
    first = time.perf_counter() - begin
    return {"status": "dry", "peers": {name: {}}} if dry else {"status": "ok", "peers": {name: {"first_call": first}}}
