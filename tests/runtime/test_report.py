"""The report: what it tells, as data and as text."""

import json

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime.module import CompiledModule
from smelt.runtime.report import WIDTH, quantity


class Model(nn.Module):
    """A product, a normalisation and something that PyTorch has to run."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(16, 32), nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        """The roots of an eigenproblem of normalised products."""
        y: Tensor = self.norm(self.linear(x).relu())
        return torch.linalg.eigvalsh(y.T @ y)


@pytest.fixture(scope="module")
def fast() -> CompiledModule:
    fast = smelt.compile(Model().eval())
    fast(torch.randn(5, 16))
    return fast


def test_data(fast: CompiledModule) -> None:
    data = json.loads(json.dumps(fast.report().to_dict()))
    (capture,) = data["captures"]
    assert data["model"] == "Model"
    assert capture["inputs"] == ["x f32[s0, 16]"]
    assert capture["sizes"] == {"s0": 5}
    assert capture["cache"] in ("hit", "miss")
    assert next(iter(capture["seconds"])) == "capture"
    assert all(seconds >= 0 for seconds in capture["seconds"].values())
    assert "eigvalsh" in " ".join(capture["fallbacks"])
    operators = [operator for kernel in capture["kernels"] for operator in kernel["operators"]]
    assert {"linear", "relu", "layer_norm"} <= set(operators)
    assert all(isinstance(kernel["flops"], int) for kernel in capture["kernels"])
    assert any("axis 1 is always 16" in text for text in capture["specialised"])


def test_totals_count_every_call(fast: CompiledModule) -> None:
    (capture,) = fast.report().captures
    assert capture.flops is not None
    assert capture.flops >= 2 * 5 * 16 * 32
    assert capture.calls >= len(capture.kernels) > 0
    assert capture.total_seconds == pytest.approx(sum(capture.seconds.values()))


def test_text(fast: CompiledModule) -> None:
    text = str(fast.report())
    assert text.startswith("Model on cpu ")
    assert all(len(line) <= WIDTH for line in text.splitlines())
    for expected in (
        "capture 1 of 1: x f32[s0, 16]",
        "last call: s0 = 5",
        "compile",
        "fallbacks",
        "linear",
        "eigvalsh",
    ):
        assert expected in text


def test_without_a_cache() -> None:
    fast = smelt.compile(nn.ReLU().eval(), cache=False)
    fast(torch.ones(2))
    assert fast.report().captures[0].cache is None
    assert "no cache" in " ".join(str(fast.report()).split())


def test_kernels_come_from_the_cache_in_a_second_compilation() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh()).eval()
    found = []
    for _ in range(2):
        fast = smelt.compile(model)
        fast(torch.ones(2, 3))
        found.append(fast.report().captures[0].cache)
    assert found[1] == "hit"


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 "), (7, "7 "), (999, "999 "), (1000, "1.00 k"), (1234, "1.23 k"), (98_765, "98.8 k"), (999_999, "1.00 M"),
     (123_456_789, "123 M"), (22_400_000_000, "22.4 G"), (5 * 10**15, "5000 T")],
)  # fmt: skip
def test_quantities(number: int, text: str) -> None:
    assert quantity(number) == text
