"""Kernels with schedules that a tuner may choose, spread over all of them: each computes what the default does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from ...codegen.gpu import GPU_MACHINES, GpuSchedule
from ...codegen.triton.space import gpu_space
from .cases import Told, cases_of, outcome, record_of, telling
from .measure import Progress
from .row import SMELT

MOST_CASES, MOST_SCHEDULES = 4, 6
DRY_CASES, DRY_SCHEDULES = 1, 2


def check_schedules(device: torch.device, dry: bool, progress: Progress, until: float, *, group: str) -> dict[str, Any]:
    """The record of a row: some cases of a class, each with some schedules.

    None is begun after ``until``, on the clock of ``time.monotonic``.
    """
    count, most = (DRY_CASES, DRY_SCHEDULES) if dry else (MOST_CASES, MOST_SCHEDULES)
    told: Told = {"wrong": {}, "failed": {}, "refused": {}}
    tried = left = 0
    named = sorted(cases_of(group).items())
    for name, case in spread(named, count):
        for schedule in spread(_space(case), most):
            if time.monotonic() > until:
                left += 1
                continue
            progress(SMELT, f"{name}: {schedule}")
            kind, why = outcome(case, [schedule], group, device, 1)
            tried += 1
            if kind:
                told[kind][f"{name}: {schedule}"] = why
    return record_of(told, tried, dry, left)


def _space(case: Any) -> Sequence[GpuSchedule]:
    """The schedules of a case but the default one."""
    known = case.symbols(telling(case.sizes, 1)[0])
    return gpu_space(case.program(), GPU_MACHINES["sm_90"], known)[1:]


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """So many of a sequence, evenly: the first and the last among them."""
    if len(items) <= count:
        return list(items)
    if count == 1:
        return [items[0]]
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]
