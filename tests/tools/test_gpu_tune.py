"""``python -m smelt.tools.gpu_tune`` without a GPU: kernels with made-up times; what it says where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from smelt.codegen.gpu import GPU_MACHINES
from smelt.ir.errors import UnsupportedError
from smelt.runtime.gpu_tuner import report_of
from smelt.runtime.tuner import Settings
from smelt.runtime.tuner_records import Records
from smelt.tools.gpu_tune import machine_here, tuned

from ..runtime.test_gpu_tuner import Made

pytest.importorskip("triton")


def test_a_model(tmp_path: Path) -> None:
    records, settings = Records(tmp_path / "records.jsonl"), Settings(budget=60, trials=4)
    found = tuned("zoo:two-layer-mlp:tiny", "bf16", GPU_MACHINES["sm_90"], records, settings, lambda: Made(1e-7))
    assert [(o.winner, o.library) for o in found] == [("library linear", True)] * 2
    assert "2 kernels tuned; a library won 2" in report_of(found)
    assert len(records.choices()) == 2


def test_a_machine_without_a_gpu() -> None:
    with pytest.raises(UnsupportedError, match="no GPU"):
        machine_here(lambda: False)


def test_a_gpu_that_nothing_is_known_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(UnsupportedError, match="sm_75"):
        machine_here(lambda: True)
