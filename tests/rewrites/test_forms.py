"""Activations, norms and softmaxes written through other functions of their family are found, and mean the same."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smelt.frontend.export import capture
from smelt.ir.interpret import interpret
from smelt.rewrites.context import Context
from smelt.rewrites.pipeline import run_pipeline

WEIGHT = torch.randn(16, generator=torch.Generator().manual_seed(1))
VIEWS = {"input", "weight", "reshape", "permute", "slice", "expand", "full", "cast"}


def inverse_deviation(x: Tensor) -> Tensor:
    return torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-5)


def root(x: Tensor) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


FORMS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "softplus": (lambda x: torch.log(1 + torch.exp(x)), "softplus"),
    "softplus by log1p": (lambda x: torch.log1p(torch.exp(x)), "softplus"),
    "sigmoid by tanh": (lambda x: 0.5 * (torch.tanh(0.5 * x) + 1), "sigmoid"),
    "sigmoid by exp": (lambda x: torch.exp(x) / (1 + torch.exp(x)), "sigmoid"),
    "silu by tanh": (lambda x: 0.5 * x * (1 + torch.tanh(0.5 * x)), "silu"),
    "relu by a mask": (lambda x: x.masked_fill(x < 0, 0.0), "relu"),
    "leaky relu": (lambda x: torch.maximum(x, 0.01 * x), "leaky_relu"),
    "clamp by numbers": (lambda x: torch.minimum(torch.maximum(x, -torch.ones(())), torch.ones(())), "clamp"),
    "hard tanh": (lambda x: x.clamp(min=-1.0).clamp(max=1.0), "clamp"),
    "layer norm, scale folded": (
        lambda x: (x - x.mean(-1, keepdim=True)) * (inverse_deviation(x) * WEIGHT),
        "layer_norm",
    ),
    "rms norm, scale folded": (lambda x: x * (root(x) * WEIGHT), "rms_norm"),
    "softmax by a reciprocal": (lambda x: x.exp() * (1 / x.exp().sum(-1, keepdim=True)), "softmax"),
    "softmax by logsumexp": (lambda x: (x - x.logsumexp(-1, keepdim=True)).exp(), "softmax"),
    "log softmax by logsumexp": (lambda x: x - x.logsumexp(-1, keepdim=True), "log_softmax"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_form_is_found(name: str) -> None:
    function, operator = FORMS[name]
    x = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    captured = capture(function, (x,), {}, dynamic=False)
    weights = {key: value.double() for key, value in captured.weights.items()}
    graph = run_pipeline(captured.graph, Context(verify=True))
    assert Counter(n.op.name for n in graph.nodes if n.op.name not in VIEWS) == {operator: 1}
    (before,) = interpret(captured.graph, [x], weights, dtype=torch.float64).outputs
    (after,) = interpret(graph, [x], weights, dtype=torch.float64).outputs
    assert torch.allclose(after, before, rtol=1e-7, atol=1e-9)
