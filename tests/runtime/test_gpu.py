"""Whole models as Triton kernels, launched by the interpreter on the CPU, against PyTorch. No GPU is needed."""

from __future__ import annotations

import pytest
import torch

from smelt.tools.gpu_check import TOLERANCE, check

pytest.importorskip("triton")

from ..codegen.interpreter import workers

MODELS = ("two-layer-mlp", "nn-transformer", "llama-decode", "gru-lm", "t5-small")


def errors_of(name: str) -> list[float]:
    """How far a model is from float64, in the process that interprets."""
    from smelt.codegen.gpu import GPU_MACHINES
    from smelt.tools import gpu_check

    torch.manual_seed(0)
    return gpu_check.errors_of(f"zoo:{name}:tiny", GPU_MACHINES["sm_90"], "cpu")


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str) -> None:
    found = workers().submit(errors_of, name).result()
    assert found
    assert max(found) <= TOLERANCE


def test_without_a_gpu_kernels_are_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    assert check(["two-layer-mlp"], "sm_90", dry_run=True)
    assert "2 kernels compiled for sm_90, none launched" in capsys.readouterr().out
