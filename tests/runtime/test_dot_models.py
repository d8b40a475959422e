"""Models of bfloat16 by dot instructions and without them: both keep the contract, and the machine decides."""

from dataclasses import replace

import pytest
import torch

import smelt
from smelt.codegen.schedule import AttentionSchedule, MatmulSchedule
from smelt.runtime.target import Target

HERE = Target.detect("cpu")
TARGETS = {
    "dot": HERE,
    "plain": replace(HERE, machine=replace(HERE.machine, has_bf16_dot=False, has_vnni=False)),
}


def layer(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.TransformerEncoderLayer(96, 3, 160, batch_first=True, norm_first=True).eval().to(dtype)


def groups(fast: smelt.CompiledModule) -> set[int]:
    """The terms that the products of a compiled module take at once."""
    (entry,) = fast.entries
    schedules = [kernel.schedule for kernel in entry.executable.kernels]
    return {s.group for s in schedules if isinstance(s, MatmulSchedule | AttentionSchedule)}


@pytest.mark.parametrize("kind", list(TARGETS))
def test_a_layer_keeps_the_contract(kind: str) -> None:
    if kind == "dot" and not HERE.machine.has_bf16_dot:
        pytest.skip("this processor has no dot instruction of bfloat16")
    fast = smelt.compile(layer(torch.bfloat16), target=TARGETS[kind])
    smelt.verify(fast, torch.randn(2, 37, 96, dtype=torch.bfloat16))
    assert groups(fast) == {2 if kind == "dot" else 1}


def test_other_dtypes_are_multiplied_term_by_term() -> None:
    for dtype in (torch.float16, torch.float32):
        fast = smelt.compile(layer(dtype))
        fast(torch.randn(1, 5, 96).to(dtype))
        assert groups(fast) == {1}


def test_weights_that_change_are_packed_again() -> None:
    model = torch.nn.Linear(33, 17).eval().to(torch.bfloat16)
    fast, x = smelt.compile(model), torch.randn(5, 33, dtype=torch.bfloat16)
    fast(x)
    with torch.no_grad():
        model.weight.mul_(-2)
    fast.refresh()
    torch.testing.assert_close(fast(x), model(x), rtol=2e-2, atol=2e-2)
