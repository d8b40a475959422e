"""Whole models as Triton kernels, launched by the interpreter on the CPU, against PyTorch. No GPU is needed."""

from __future__ import annotations

import pytest
import torch

from smelt.tools.gpu_check.zoo import TOLERANCE

pytest.importorskip("triton")

from ..codegen.interpreter import workers

MODELS = ("two-layer-mlp", "nn-transformer", "llama-decode", "gru-lm", "t5-small")


def errors_of(name: str) -> list[float]:
    """How far a model is from float64, in the process that interprets."""
    from smelt.tools.gpu_check import zoo

    torch.manual_seed(0)
    return zoo.errors_of(f"zoo:{name}:tiny", "cpu", calls=1)


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str) -> None:
    found = workers().submit(errors_of, name).result()
    assert found
    assert max(found) <= TOLERANCE
