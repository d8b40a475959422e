"""Norms, activations and attentions are found as PyTorch and Hugging Face write them, and mean the same."""

import copy
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smelt.frontend.export import capture
from smelt.ir.graph import Graph
from smelt.ir.interpret import evaluate, interpret
from smelt.rewrites.context import Context
from smelt.rewrites.pipeline import run_pipeline
from smelt.tools.zoo import ZOO

VIEWS = {"input", "weight", "reshape", "permute", "slice", "expand", "full", "cast"}


def optimised(model: Callable[..., Any], *args: Tensor, **kwargs: Tensor) -> tuple[Counter[str], list[float]]:
    """How often each operator is left, and the largest difference of each output in float64, relative to its size."""
    if isinstance(model, nn.Module):
        model.eval()
    captured = capture(model, args, kwargs)
    context = Context(verify=True)
    graph = run_pipeline(captured.graph, context)
    inputs = [leaf for leaf in captured.flatten(args, kwargs) if isinstance(leaf, Tensor)]
    weights = {name: w.detach().double() if w.is_floating_point() else w for name, w in captured.weights.items()}
    expected = interpret(captured.graph, inputs, weights, dtype=torch.float64).outputs
    for name, node in context.derived.items():
        weights[name] = evaluate([node], weights, dtype=torch.float64)[0]
    found = interpret(graph, inputs, weights, dtype=torch.float64).outputs
    return operators(graph), [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]


def operators(graph: Graph) -> Counter[str]:
    return Counter(node.op.name for node in graph.nodes if node.op.name not in VIEWS)


class RMSNorm(nn.Module):
    """As in Llama and T5."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


class GemmaNorm(RMSNorm):
    """With a weight around zero, and the product in float32."""

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return (wide * (1.0 + self.weight.float())).type_as(x)


class OldLayerNorm(nn.Module):
    """As TensorFlow's models were first ported."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size))
        self.bias = nn.Parameter(torch.randn(size))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        spread = (x - mean).pow(2).mean(-1, keepdim=True)
        return self.weight * ((x - mean) / torch.sqrt(spread + 1e-12)) + self.bias


def new_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


def fast_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def erf_gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))


def cumulative_gelu(x: Tensor) -> Tensor:
    return x * (0.5 * (1.0 + torch.erf(x * 0.70710678118)))


def plain_softmax(x: Tensor) -> Tensor:
    shifted = (x - x.amax(-1, keepdim=True)).exp()
    return shifted / shifted.sum(-1, keepdim=True)


X = torch.randn(2, 5, 16)

FUNCTIONS: dict[str, tuple[Callable[..., Any], str]] = {
    "rms norm": (RMSNorm(16), "rms_norm"),
    "rms norm around zero": (GemmaNorm(16), "rms_norm"),
    "layer norm by hand": (OldLayerNorm(16), "layer_norm"),
    "gelu of GPT-2": (new_gelu, "gelu"),
    "gelu of few digits": (fast_gelu, "gelu"),
    "gelu of a quotient": (erf_gelu, "gelu"),
    "gelu of a product": (cumulative_gelu, "gelu"),
    "silu": (lambda x: x * torch.sigmoid(x), "silu"),
    "silu by hand": (lambda x: x / (1 + torch.exp(-x)), "silu"),
    "sigmoid by hand": (lambda x: 1 / (1 + torch.exp(-x)), "sigmoid"),
    "relu": (lambda x: x.clamp(min=0), "relu"),
    "softmax by hand": (plain_softmax, "softmax"),
    "log of softmax": (lambda x: torch.log(torch.softmax(x, -1)), "log_softmax"),
    "mean by hand": (lambda x: x.sum(-1) / x.shape[-1], "mean"),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, dtype: torch.dtype) -> None:
    function, operator = FUNCTIONS[name]
    model = copy.deepcopy(function).to(dtype) if isinstance(function, nn.Module) else function
    left, errors = optimised(model, X.to(dtype))
    assert left == {operator: 1}
    assert errors[0] < 1e-6


class Attention(nn.Module):
    """Attention by hand: grouped heads repeated, scores scaled, masked and weighted."""

    def __init__(self, repeat: str, scores: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, n) for n in (16, 8, 8, 16))
        self.repeat, self.scores = repeat, scores

    def repeated(self, x: Tensor) -> Tensor:
        if self.repeat == "interleave":
            return x.repeat_interleave(2, dim=1)
        b, h, s, d = x.shape
        return x[:, :, None].expand(b, h, 2, s, d).reshape(b, 2 * h, s, d)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows = x.shape[:2]
        q, k, v = (f(x).view(*rows, -1, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        k, v = self.repeated(k), self.repeated(v)
        scores = self.scores(q @ k.transpose(2, 3), mask)
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        return self.o((weights @ v).transpose(1, 2).contiguous().view(*rows, 16))


# scores and a mask [B, 1, 1, T] of booleans to masked scores
SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "scaled": lambda s, m: s * 0.5,
    "divided": lambda s, m: s / math.sqrt(3),
    "infinity where masked": lambda s, m: torch.where(m, s * 0.5, float("-inf")),
    "filled with infinity": lambda s, m: (s / 2).masked_fill(~m, float("-inf")),
    "filled with the lowest": lambda s, m: s.masked_fill(~m, torch.finfo(s.dtype).min),
    "a mask added": lambda s, m: s * 0.5 + (1.0 - m.to(s.dtype)) * -1e4,
    "capped": lambda s, m: torch.tanh(s * 0.5 / 30.0) * 30.0,
    "capped and masked": lambda s, m: torch.tanh(s / 30.0) * 30.0 + (1.0 - m.to(s.dtype)) * -1e4,
    "masked, then masked again": lambda s, m: (
        torch.where(m, s, torch.finfo(s.dtype).min) + torch.arange(s.shape[-1], dtype=s.dtype)
    ),
    "two masks added": lambda s, m: s + torch.arange(s.shape[-1], dtype=s.dtype) + m.to(s.dtype),
}
MASK = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])[:, None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize("repeat", ["expand", "interleave"])
def test_attentions(repeat: str, scores: str, dtype: torch.dtype) -> None:
    left, errors = optimised(Attention(repeat, SCORES[scores]).to(dtype), X.to(dtype), MASK)
    assert left["attention"] == 1
    assert left["linear"] == 2
    assert not left["matmul"] + left["softmax"]
    assert errors[0] < 1e-12


def test_causal_attention_by_hand() -> None:
    def causal(scores: Tensor, mask: Tensor) -> Tensor:
        return scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))

    left, errors = optimised(Attention("expand", causal), X, MASK)
    assert left["attention"] == 1
    assert errors[0] < 1e-12


def test_attention_without_heads() -> None:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.bmm(torch.softmax(torch.bmm(q, k.transpose(1, 2)) / 4, -1), v)

    left, errors = optimised(attend, X, torch.randn(2, 7, 16), torch.randn(2, 7, 3))
    assert left == {"attention": 1}
    assert errors[0] < 1e-12


def test_one_head_of_keys_and_values_for_all_queries() -> None:
    def attend(x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = x.view(*x.shape[:2], 4, 4).transpose(1, 2)
        return torch.softmax(q @ k[:, None].transpose(2, 3) / 4, -1) @ v[:, None]

    left, errors = optimised(attend, X, torch.randn(2, 7, 4), torch.randn(2, 7, 3))
    assert left == {"attention": 1}
    assert errors[0] < 1e-12


def test_linear_biases_and_flat_batches() -> None:
    """ALiBi as in Bloom: products of [B H, S, D], a bias for each head, a mask for each sequence."""
    slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        b, h, s, d = q.shape
        flat = [x.reshape(b * h, s, -1) for x in (q, k, v)]
        alibi = (slopes[:, None] * (mask.cumsum(-1) - 1)[:, None]).reshape(b * h, 1, s)
        scores = torch.baddbmm(alibi, flat[0], flat[1].transpose(1, 2), beta=1.0, alpha=0.25).view(b, h, s, s)
        hidden = torch.where(mask.bool()[:, None, None], 0.0, torch.finfo(scores.dtype).min)
        weights = torch.softmax(scores + hidden, -1, dtype=torch.float32)
        return torch.bmm(weights.view(b * h, s, s), flat[2]).view(b, h, s, d)

    mask = torch.tensor([[1] * 5, [1] * 3 + [0] * 2])
    left, errors = optimised(attend, *(torch.randn(2, 4, 5, 8) for _ in range(3)), mask)
    assert left["attention"] == 1
    assert not left["matmul"] + left["softmax"]
    assert errors[0] < 1e-12


def test_two_of_the_lowest_numbers_hide_a_key_altogether() -> None:
    """Their sum is -inf: where all keys are hidden so, softmax gives NaN, and attention alone would give 0."""
    lowest = torch.finfo(torch.float32).min

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        hidden = torch.where(mask, 0.0, lowest)
        return torch.softmax(q @ k.transpose(2, 3) + hidden + hidden, -1) @ v

    q, k, v = (torch.randn(1, 1, 2, 4) for _ in range(3))
    for shown in (True, False):
        mask = torch.full((1, 1, 2, 2), shown)
        captured = capture(attend, (q, k, v, mask), {})
        graph = run_pipeline(captured.graph, Context())
        assert operators(graph)["attention"] == 1
        found = interpret(graph, [q, k, v, mask], captured.weights).outputs[0]
        torch.testing.assert_close(found, attend(q, k, v, mask), equal_nan=True)


# What is left of each tiny model, but for views and elementwise work on masks.
EXPECTED: dict[str, dict[str, int]] = {
    "nn-transformer": {"attention": 6, "layer_norm": 12, "linear": 23, "relu": 4, "embedding": 1},
    "rnn-lm": {"recurrence": 2, "linear": 3, "embedding": 1},
    "bert-base": {"attention": 2, "layer_norm": 5, "gelu": 2, "linear": 9},
    "gpt2": {"attention": 2, "layer_norm": 5, "gelu": 2, "linear": 9},
    "llama": {"attention": 2, "rms_norm": 5, "rope": 4, "swiglu": 2, "linear": 9},
    "t5-small": {"attention": 6, "rms_norm": 12, "relu": 4, "linear": 23},
    "bart-base": {"attention": 6, "layer_norm": 12, "gelu": 4, "linear": 23},
    "vit-base": {"attention": 2, "layer_norm": 5, "gelu": 2, "linear": 10},
}
# What must not be left in any of them.
PARTS = ("matmul", "softmax", "pow", "rsqrt", "erf", "sigmoid", "var", "mean", "index")


@pytest.mark.parametrize("name", EXPECTED)
def test_models(name: str) -> None:
    model, args, kwargs = ZOO[name].make(tiny=True)
    left, errors = optimised(model, *args, **kwargs)
    assert {op: left[op] for op in EXPECTED[name]} == EXPECTED[name]
    assert [op for op in PARTS if left[op]] == []
    assert max(errors) < 1e-12
