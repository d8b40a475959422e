"""Models that keep something on themselves from call to call: as eager, or captured where no result depends on it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("tvm")

import smelt

# what PyTorch says of tensors that are assigned while a model is exported
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attribute")


class Stateful(nn.Module):
    """A layer, and what a function makes of its result and of what the module keeps."""

    def __init__(self, then: Callable[[Stateful, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)
        self.then = then
        self.number = 0
        self.kept: Tensor | None = None
        self.sum = torch.zeros(8)
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.layer(x))


def counted(model: Stateful, y: Tensor) -> Tensor:
    model.number += 1
    return y * model.number


def summed(model: Stateful, y: Tensor) -> Tensor:
    model.sum = model.sum + y.sum(0)
    return y + model.sum


def of_the_first_call(model: Stateful, y: Tensor) -> Tensor:
    if model.kept is None:
        model.kept = y.mean()
    return y - model.kept


def of_the_last_call(model: Stateful, y: Tensor) -> Tensor:
    before = y if model.kept is None else model.kept
    model.kept = y[:1]
    return y - before[:1]


def listed(model: Stateful, y: Tensor) -> Tensor:
    model.seen.append(y.shape[0])
    return y * len(model.seen)


def shown(model: Stateful, y: Tensor) -> Tensor:
    model.kept = y.abs()
    return torch.relu(y)


def cached(model: Stateful, y: Tensor) -> Tensor:
    if model.kept is None:
        model.kept = torch.arange(8.0)
    return y + model.kept


CALLS = [torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (2, 2, 3, 5, 3)]


@pytest.mark.parametrize("then", [counted, summed, of_the_first_call, of_the_last_call, listed])
def test_state_that_results_depend_on(then: Callable[[Stateful, Tensor], Tensor]) -> None:
    model = Stateful(then).eval()
    reference, fast = copy.deepcopy(model), smelt.compile(model, cache=False)
    with torch.no_grad():
        for x in CALLS:
            torch.testing.assert_close(fast(x), reference(x), rtol=1e-4, atol=1e-5)
    assert fast.is_split
    try:
        told = str(fast.report())
    except smelt.CaptureError as error:  # Dynamo found no graph in it
        told = str(error)
    assert "from call to call" in told
    with pytest.raises(smelt.CaptureError, match="from call to call"):
        smelt.compile(Stateful(then).eval(), fallback="error", cache=False)(CALLS[0])


@pytest.mark.parametrize("then", [shown, cached])
def test_state_that_no_result_depends_on(then: Callable[[Stateful, Tensor], Tensor]) -> None:
    model = Stateful(then).eval()
    reference, fast = copy.deepcopy(model), smelt.compile(model, fallback="error", cache=False)
    with torch.no_grad():
        for x in CALLS:
            torch.testing.assert_close(fast(x), reference(x), rtol=1e-4, atol=1e-5)
    assert len(fast.entries) == 1
    assert not fast.is_split


def test_trials_leave_the_model_and_the_generator_as_they_were() -> None:
    model = Stateful(counted).eval()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with pytest.raises(smelt.CaptureError):
        smelt.compile(model, fallback="error", cache=False)(CALLS[0])
    assert model.number == 0
    assert torch.equal(torch.rand(2), expected)
