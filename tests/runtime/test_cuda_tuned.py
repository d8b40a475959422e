"""Schedules that a tuner chose for a GPU reach the models that are compiled for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

import smelt
from smelt.codegen.triton.space import gpu_space
from smelt.runtime.cache import KernelCache
from smelt.runtime.gpu_tuner import FILE, gpu_key_of, gpu_versions
from smelt.runtime.tuner_records import Choice, Records

from .fake_gpu import TARGET, executable_of, playing


@pytest.mark.parametrize("tune", ["cached", "off"])
def test_a_record_counts(tmp_path: Path, tune: Any) -> None:
    machine = TARGET.gpu
    assert machine is not None
    cache = KernelCache(tmp_path)
    model = nn.Linear(64, 256).eval()
    x = torch.randn(40, 64)

    def compiled() -> Any:
        with playing():
            fast = smelt.compile(model, target=TARGET, cache=cache, tune=tune, dynamic=False)
            torch.testing.assert_close(fast(x), model(x))
            (kernel,) = executable_of(fast).kernels
            return kernel

    before = compiled()
    default, other = gpu_space(before.program, machine, {})[:2]
    assert before.schedule == default
    key = gpu_key_of(before.program, machine)
    choice = Choice(key, gpu_versions(), {}, cast(Any, other), cast(Any, default), 1e-6, 2e-6, 2)
    records = Records(tmp_path / FILE)
    records.add([choice])
    assert compiled().schedule == (other if tune == "cached" else default)
