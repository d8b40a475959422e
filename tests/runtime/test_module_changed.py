"""Compiled modules whose model, or PyTorch around them, became another one since they were captured."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import smelt


class Attributes(nn.Module):
    """Tensors that are no buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift, self.table = torch.tensor(2.0), torch.ones(3), [torch.ones(3)]
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale + self.shift - self.table[0]


def _write(model: Attributes) -> None:
    model.scale.fill_(5.0)
    model.shift.fill_(3.0)


def _assign(model: Attributes) -> None:
    model.scale, model.shift = torch.tensor(7.0), torch.zeros(3)


def _in_a_list(model: Attributes) -> None:
    model.table[0] = torch.zeros(3)


def _without_bias(model: Attributes) -> None:
    model.linear.bias = None  # type: ignore[assignment]


@pytest.mark.parametrize("change", [_write, _assign, _in_a_list, _without_bias])
def test_refresh_takes_everything_that_a_model_holds(change: Callable[[Attributes], None]) -> None:
    torch.manual_seed(0)
    model, x = Attributes().eval(), torch.randn(2, 3)
    fast = smelt.compile(model)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x))
        change(model)
        fast.refresh()
        torch.testing.assert_close(fast(x), model(x))


def test_refresh_keeps_a_capture_where_weights_only_changed() -> None:
    model, x = Attributes().eval(), torch.randn(2, 3)
    fast = smelt.compile(model)
    fast(x)
    (entry,) = fast.entries
    with torch.no_grad():
        model.linear.weight.mul_(2)
        fast.refresh()
        torch.testing.assert_close(fast(x), model(x))
    assert fast.entries == (entry,)


def test_the_default_dtype_is_that_of_the_call() -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones(3) + x, torch.tensor(1.5)

    fast, x = smelt.compile(f), torch.ones(3)
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.float32, torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            torch.testing.assert_close(fast(x), f(x))
    finally:
        torch.set_default_dtype(before)


def test_another_default_device_is_told() -> None:
    fast, x = smelt.compile(nn.Linear(3, 3).eval()), torch.randn(2, 3)
    with torch.device("meta"), pytest.raises(smelt.UnsupportedError, match="the default device is meta"):
        fast(x)
    with torch.device("meta"), torch.device("cpu"):
        assert fast(x).device.type == "cpu"
    with torch.device("meta"):
        fast.refresh()
    assert torch.equal(fast(x), smelt.compile(fast.original)(x))


def test_an_artifact_under_another_default_device(tmp_path: Path) -> None:
    path, x = tmp_path / "linear.smelt", torch.randn(2, 3)
    model = nn.Linear(3, 3).eval()
    smelt.export(model, (x,)).save(path)
    with torch.device("meta"):
        loaded = smelt.load(path)
        with pytest.raises(smelt.UnsupportedError, match="the default device is meta"):
            loaded(x)
    torch.testing.assert_close(loaded(x), model(x).detach())


def test_weights_that_compute_in_their_own_way_are_refused() -> None:
    """Such as those of libraries that quantise: they pass for parameters, and have no memory."""
    model: Any = nn.Linear(3, 3)
    model.weight = nn.Parameter(TwoTensor(torch.ones(3, 3), torch.ones(3, 3)), requires_grad=False)
    with pytest.raises(smelt.UnsupportedError, match="weight of Linear is a TwoTensor"):
        smelt.compile(model.eval())(torch.randn(2, 3))
    with pytest.raises(smelt.UnsupportedError, match="weight of Linear is a TwoTensor"):
        smelt.export(model.eval(), (torch.randn(2, 3),))
