"""Every pointwise operator in Triton, interpreted, on ordinary and extreme values; those of special ranges."""

from __future__ import annotations

import pytest
import torch

from smelt.ir import ops

from . import test_pointwise as cpu
from .triton_harness import build


def agree(label: str, found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Elementwise, as on the CPU; the interpreter rounds subnormal halves and signs of zeros its own way."""
    close = cpu.agree(label, found, expected)
    if expected.dtype in ops.HALF:
        close |= (found - expected).abs() <= torch.finfo(expected.dtype).tiny
    return close | ((found == 0) & (expected == 0))


@pytest.mark.parametrize("name", cpu.CASES)
def test_operator_is_pytorchs(name: str) -> None:
    case, labels = cpu.CASES[name]
    inputs = cpu.tensors(list(case.inputs), 100)
    results = build(case).run(inputs, {"n": len(inputs[0])})
    for label, node, found in zip(labels, case.outputs, results, strict=True):
        kept = cpu.defined(label, inputs)
        given = [x[kept] for x in inputs]
        expected = cpu.meaning(node, given)
        wrong = ~agree(label, found[kept], expected)
        shown = [x[wrong][:5].tolist() for x in (*given, found[kept], expected)]
        assert not wrong.any(), f"{label}: operands, found, expected {shown}"
