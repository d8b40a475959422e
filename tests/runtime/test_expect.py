"""The contract: what compile(expect=...) lets pass, what it refuses, and what it then says."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime.layers import kernels_of_layers, layers_of, own_layers
from smelt.runtime.module import CompiledModule

X = torch.randn(2, 3, 8)


class Block(nn.Module):
    """A product, an activation and a norm that is written out, by default along the axis that rules know."""

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.linear, self.axis = nn.Linear(8, 8), axis

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x).relu()
        return y * torch.rsqrt((y * y).mean(self.axis, keepdim=True) + 1e-6)


class Model(nn.Module):
    """Three layers; the norm of one is in the first kernel of the next."""

    def __init__(self, axis: int = -1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(axis) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def run(expect: Mapping[str, Any], model: nn.Module | None = None, x: Tensor = X) -> CompiledModule:
    fast = smelt.compile((model or Model()).eval(), expect=expect)
    fast(x)
    return fast


def refused(expect: Mapping[str, Any], model: nn.Module | None = None) -> str:
    with pytest.raises(smelt.ExpectationError) as caught:
        run(expect, model)
    return str(caught.value)


@pytest.mark.parametrize(
    "expect",
    [
        {"rms_norm": 3, "relu": 3, "linear": 3},
        {"kernels": 4, "kernels_per_layer": 2, "fallbacks": 0},
        {"kernels": 100, "bytes_over_minimum": 1000},
        {"rms_norm": range(1, 4), "kernels": lambda count: count == 4, "fallbacks": range(1)},
        {},
    ],
)
def test_what_is_met(expect: Mapping[str, Any]) -> None:
    assert len(run(expect).entries) == 1


def test_what_is_not_met_is_listed_with_what_was_found() -> None:
    text = refused({"kernels": 3, "kernels_per_layer": 1, "relu": 4, "bytes_over_minimum": 1.0, "linear": 3})
    assert text.startswith("Model is not what was expected of it:\n")
    assert "kernels: 4 found, at most 3 expected" in text
    assert "kernels_per_layer: 2 found, at most 1 expected; in layers.2: rms_norm+linear+relu, rms_norm" in text
    assert "relu: 3 found, 4 expected" in text
    assert "bytes_over_minimum: " in text
    assert "linear: " not in text.replace("linear+relu", "")


def test_operators_are_exact_and_bounds_are_not() -> None:
    assert "relu: 3 found, 2 expected" in refused({"relu": 2})
    run({"kernels": 7})
    assert "one of range(0, 3)" in refused({"relu": range(3)})

    def is_even(count: int) -> bool:
        return count % 2 == 0

    assert "what is_even accepts was expected" in refused({"relu": is_even})


def test_the_nearest_miss_of_an_operator_that_was_not_recognised() -> None:
    text = refused({"rms_norm": 3}, Model(axis=1))
    assert "rms_norm: 0 found, 3 expected" in text
    assert "the nearest miss is rule rms-norm-of-rsqrt at" in text
    assert "dims is (1,), not (-1,), at mean(" in text
    assert "test_expect.py:" in text
    assert "layers.0" in text


def test_the_rule_that_came_nearest_is_named() -> None:
    class Odd(nn.Module):
        """Almost a leaky ReLU: the slope is no constant."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, x, x * x.sum())

    text = refused({"leaky_relu": 1}, Odd())
    assert "the nearest miss is rule leaky-relu-of-where" in text


def test_what_no_rule_nearly_makes() -> None:
    text = refused({"rope": 1}, nn.Sequential(nn.Linear(8, 8)))
    assert "no rule that makes rope nearly fits anything" in text


def test_fallbacks() -> None:
    class Falls(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvalsh(x @ x.transpose(1, 2))

    text = refused({"fallbacks": 0}, Falls())
    assert "fallbacks: 1 found, at most 0 expected" in text
    assert "eigvalsh" in text


def test_a_model_that_is_split_is_not_one_graph() -> None:
    class Splits(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp() if x.sum() > 0 else x.sin()

    assert "is not one graph, as expected" in refused({"kernels": 5}, Splits())


def test_only_the_first_capture_is_held_to_it() -> None:
    class Ranks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp() if x.ndim == 3 else x.exp().sum(0).sin()

    fast = run({"kernels": 1}, Ranks())
    fast(torch.randn(4, 4))
    assert len(fast.entries) == 2


def test_nothing_is_kept_of_a_model_that_was_refused() -> None:
    fast = smelt.compile(Model().eval(), expect={"kernels": 0})
    for _ in range(2):
        with pytest.raises(smelt.ExpectationError):
            fast(X)
    assert fast.entries == ()


@pytest.mark.parametrize(
    ("expect", "message"),
    [
        ({"atention": 1}, "no entry 'atention'; did you mean attention"),
        ({"kernel": 1}, "did you mean kernels"),
        ({"permute": 1}, "no entry 'permute'"),  # views are no work, and not counted
        ({"kernels": -1}, "a whole number from 0"),
        ({"kernels": 1.5}, "a whole number from 0"),
        ({"kernels": True}, "a whole number from 0"),
        ({"kernels": "6"}, "a whole number from 0"),
        ({"bytes_over_minimum": range(2)}, "a number from 0"),
        (["kernels"], "give numbers by name"),
    ],
)
def test_what_cannot_be_expected(expect: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        smelt.compile(nn.ReLU().eval(), expect=expect)


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "layers"),
    [
        (["h.0.attn", "h.1.attn", "ln"], ["h.0", "h.1", None]),
        (["encoder.block.0.layer.0.q", "encoder.block.0.layer.1.o", "decoder.block.0.norm", "encoder.block.1"],
         ["encoder.block.0", "encoder.block.0", None, "encoder.block.1"]),
        (["towers.0.layers.0", "towers.0.layers.1.norm"], ["towers.0.layers.0", "towers.0.layers.1"]),
        (["0", "2", ""], ["0", "2", None]),
        (["layer10.x", "layer11.x"], [None, None]),
    ],
)  # fmt: skip
def test_layers_are_numbered_siblings(modules: list[str], layers: list[str | None]) -> None:
    assert layers_of(modules) == layers


def test_a_kernel_that_several_layers_use_is_of_none() -> None:
    class Bias(nn.Module):
        """What the first layer computes from the table, all of them add."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer(first=i == 0) for i in range(3))

        def forward(self, x: Tensor) -> Tensor:
            bias = None
            for layer in self.layers:
                x, bias = layer(x, bias)
            return x

    class Layer(nn.Module):
        def __init__(self, first: bool) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            if first:
                self.table = nn.Embedding(5, 8)
                self.project = nn.Linear(8, 8)

        def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
            if bias is None:
                bias = self.project(self.table(torch.arange(3) % 5).softmax(-1)).softmax(-1)
            return self.linear(x) + bias, bias

    plan = run({}, Bias()).entries[0].executable.plan
    layers = kernels_of_layers(plan)
    assert {layer: len(kernels) for layer, kernels in layers.items()} == {"layers.0": 1, "layers.1": 1, "layers.2": 1}
    assert own_layers(plan).count(None) == len(plan.steps) - 3


def test_a_model_without_numbered_layers_counts_as_one() -> None:
    assert "no numbered layers" in refused({"kernels_per_layer": 0}, nn.Linear(8, 8))
