"""The rows of the part ``tests`` that are whole models: each in a tiny size, and not timed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from . import builders, zoo
from .measure import Progress, measure
from .models.decoder import DECODERS, Decoder, Step
from .row import SMELT
from .rows import HF_STEPS, HF_ZOO
from .smelt_side import kernels_of, launches_of

CONTEXT = 144  # of a step whose launches are counted


def checked(kind: str) -> Any:
    """What checks a tiny workload of a kind, and gives its record."""

    def check(options: Mapping[str, Any], device: torch.device, dry: bool, progress: Progress) -> Any:
        work = builders.BUILDERS[kind](device, True, **{**_DEFAULTS[kind], **options})
        return _untimed(measure([SMELT], work, progress, dry=True), dry)

    return check


_DEFAULTS: dict[str, dict[str, Any]] = {
    "decode": {"context": 0},
    "prefill": {"length": 0},
    "encoder": {"batch": 2, "length": 9},
}


def _untimed(record: dict[str, Any], dry: bool) -> dict[str, Any]:
    """A record that says "ok" where a check is all that was meant."""
    return record | ({} if dry or record["status"] != "dry" else {"status": "ok"})


def zoo_model(name: str, device: torch.device, dry: bool) -> dict[str, Any]:
    """A built-in model held against float64; skipped where its package is not installed. A dry run makes one call."""
    if name in (*HF_ZOO, *HF_STEPS) and importlib.util.find_spec("transformers") is None:
        return {"status": "skipped", "error": "transformers is not installed"}
    error = zoo.worst_error(name, str(device), 1 if dry else zoo.CALLS)
    right = error <= zoo.TOLERANCE
    status = ("dry" if dry else "ok") if right else "wrong"
    return {"status": status, "peers": {SMELT: {"error": error}}}


def launches(device: torch.device, model: str) -> dict[str, Any]:
    """How many kernels one more layer of the real sizes adds to a step: the difference between three layers and two."""
    counts = []
    for layers in (2, 3):
        config = replace(DECODERS[model], layers=layers, vocab=101)
        with torch.device("meta"):
            decoder = Decoder(config, context=CONTEXT)
        step: nn.Module = Step(decoder.to(torch.bfloat16).to_empty(device=device)).eval()
        args = (torch.ones(1, 1, dtype=torch.int64, device=device), torch.tensor([4], device=device))
        counts.append(launches_of(kernels_of(step, args)))
    return {"status": "ok", "launches": counts[1] - counts[0], "kernels": counts[0]}
