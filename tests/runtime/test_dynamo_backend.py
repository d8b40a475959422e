"""The backend of torch.compile, and models that Dynamo splits into several graphs."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime import dynamo_backend
from smelt.runtime.dynamo_backend import backend

from .dynamo import QUIET, fresh_dynamo

__all__ = ["fresh_dynamo"]  # which every test here has

pytestmark = QUIET


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 2)).eval()


@torch.no_grad()
def check(compiled: Any, model: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(compiled(x), model(x))


def test_torch_compile(model: nn.Module) -> None:
    compiled = torch.compile(model, backend=backend)
    for rows in (3, 5, 7):
        check(compiled, model, torch.randn(rows, 8))


def test_mode_and_options(model: nn.Module) -> None:
    with torch.no_grad():
        x = torch.randn(3, 8)
        for arguments in ({"mode": "reduce-overhead"}, {"options": {"threads": 1, "cache": False}}):
            torch._dynamo.reset()
            compiled: Any = torch.compile(model, backend=backend, **arguments)
            torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"mode": "fastest"}, "the modes are"), ({"options": {"speed": 3}}, "no option speed; there are: target")],
)
def test_a_mode_or_option_that_does_not_exist(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backend(torch.fx.symbolic_trace(nn.ReLU()), [torch.ones(1)], **arguments)


def test_weights_that_change_are_noticed(model: nn.Module) -> None:
    compiled = torch.compile(model, backend=backend)
    x = torch.randn(3, 8)
    check(compiled, model, x)
    with torch.no_grad():
        model[0].weight.mul_(2)  # type: ignore[union-attr, operator]
    check(compiled, model, x)
    model.load_state_dict({name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()})
    check(compiled, model, x)


def test_buffers_that_the_model_writes_to() -> None:
    class Counter(nn.Module):
        total: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(4))

        def forward(self, x: Tensor) -> Tensor:
            self.total.add_(x.sum(0))
            return self.total * 2

    model = Counter().eval()
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend=backend)
    for rows in (2, 3, 3):
        x = torch.randn(rows, 4)
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), twin(x))
        torch.testing.assert_close(model.total, twin.total)


def test_gradients_are_pytorchs_with_one_warning(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamo_backend, "_told", set())
    compiled = torch.compile(model, backend=backend)
    with pytest.warns(UserWarning, match=r"gradients are enabled.*torch\.no_grad") as said:
        compiled(torch.randn(3, 8)).sum().backward()
    assert len(said) == 1
    assert model[0].weight.grad is not None  # type: ignore[union-attr]
    torch._dynamo.reset()
    compiled(torch.randn(3, 8))


# --- split models -----------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    """Decides by a value, which no single graph can."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """One layer or two."""
        y = self.first(x)
        if y.sum() > 0:
            y = self.second(y)
        return {"y": y.relu()}


@pytest.fixture
def branching() -> Branching:
    return Branching().eval()


def test_a_model_that_is_more_than_one_graph(branching: Branching) -> None:
    fast = smelt.compile(branching)
    with torch.no_grad():
        branching.first.bias.fill_(5)
        for sign in (1.0, -20.0, 1.0):
            x = torch.randn(3, 4) + sign
            torch.testing.assert_close(fast(x)["y"], branching(x)["y"])
    report = fast.report()
    assert report.split is not None
    assert len(report.captures) >= 2
    assert "graphs with Python between them" in str(report)
    assert "# part 2 of" in fast.ir()
    smelt.verify(fast, torch.randn(5, 4))
    with pytest.raises(smelt.UnsupportedError, match="split"):
        fast.entry_for((torch.randn(3, 4),), {})


def test_splitting_can_be_refused(branching: Branching) -> None:
    with pytest.raises(smelt.CaptureError, match="cannot be captured as one graph"):
        smelt.compile(branching, fallback="error")(torch.randn(3, 4))


def test_a_split_model_takes_new_weights(branching: Branching) -> None:
    fast = smelt.compile(branching)
    x = torch.randn(3, 4)
    fast(x)
    with torch.no_grad():
        branching.first.weight.mul_(-1)
        fast.refresh()
        torch.testing.assert_close(fast(x)["y"], branching(x)["y"])
