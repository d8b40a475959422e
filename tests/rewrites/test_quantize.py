"""The pass that puts linear layers on weights of few bits, and what may be asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from smelt.ir import ops
from smelt.ir.errors import QuantizationError
from smelt.ir.graph import Graph, Mutation
from smelt.ir.interpret import evaluate, interpret
from smelt.ir.node import Node
from smelt.rewrites.context import Context
from smelt.rewrites.log import Fuel
from smelt.rewrites.pipeline import passes_for, run_pipeline
from smelt.rewrites.quantization import Quantization, Quantized, quantization_of
from smelt.rewrites.quantize import quantize, together

F32 = torch.float32


def weight(name: str, *shape: int, dtype: torch.dtype = F32) -> Node:
    return ops.weight(name=name, shape=shape, dtype=dtype)


X = ops.input(name="x", shape=(3, 40), dtype=F32)
W = weight("layers.0.up.weight", 24, 40)


def done(graph: Graph, settings: Quantization | None = None, **rest: Any) -> tuple[Graph, Context]:
    context = Context(quantized=Quantized(settings or Quantization()), **rest)
    return quantize(graph, context), context


def record(context: Context) -> Quantized:
    assert context.quantized is not None
    return context.quantized


# --- what may be asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": "int3"},
        {"group_size": 33},
        {"group_size": 0},
        {"group_size": True},
        {"symmetric": "yes"},
        {"activations": "int4"},
        {"keep": "lm_head"},
        {"keep": (1,)},
        {"activations": "int8", "weights": "int4"},
        {"activations": "int8", "group_size": 32},
        {"activations": "int8", "symmetric": False},
        {"weights": "fp8", "symmetric": False},
        {"weights": "fp8", "activations": "int8"},
        {"weights": "int8", "activations": "fp8"},
        {"weights": "fp8", "group_size": 32, "activations": "fp8"},
        {"weights": "fp8", "activations": "fp4"},
    ],
)
def test_settings_that_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(QuantizationError):
        Quantization(**wrong)


def test_names() -> None:
    assert quantization_of(None) is None
    assert quantization_of("int4") == Quantization("int4", group_size=128)
    assert quantization_of("fp8") == Quantization("fp8")
    assert quantization_of("int8-dynamic") == Quantization("int8", activations="int8")
    assert quantization_of("fp8-dynamic") == Quantization("fp8", activations="fp8")
    with pytest.raises(QuantizationError, match="int8-dynamic"):
        quantization_of("fp6")


@pytest.mark.parametrize(
    ("pattern", "name", "found"),
    [
        ("lm_head", "model.lm_head", True),
        ("layers.0", "layers.0.up", True),
        ("layers.1", "layers.10.up", False),
        ("*_proj", "layers.0.q_proj", True),
        ("head", "lm_head", False),
    ],
)
def test_kept_names(pattern: str, name: str, found: bool) -> None:
    assert (Quantization(keep=(pattern,)).kept([name]) is not None) == found


def test_a_name_that_nothing_has_is_refused() -> None:
    Quantization(keep=("up",)).check_names(["", "layers.0.up"])
    with pytest.raises(QuantizationError, match=r"'down'.*layers\.0\.up"):
        Quantization(keep=("down",)).check_names(["", "layers.0.up"])


# --- the pass ---------------------------------------------------------------------------------------------------------


def quantised_layers(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if n.is_a(ops.quantized_linear, ops.int8_linear, ops.float8_linear)]


@pytest.mark.parametrize(
    ("settings", "shapes"),
    [
        (Quantization(), [(24, 40), (24, 1)]),
        (Quantization("int8", 16), [(24, 40), (24, 3)]),
        (Quantization("int4", 16, symmetric=False), [(24, 5), (24, 3), (24, 3)]),
        (Quantization("int4", 64), [(24, 5), (24, 1)]),
        (Quantization(activations="int8"), [(24, 40), (24, 1)]),
        (Quantization("fp8"), [(24, 40), (24, 1)]),
        (Quantization("fp8", 16), [(24, 40), (24, 3)]),
    ],
)
def test_a_layer_means_the_one_on_its_dequantised_weight(settings: Quantization, shapes: list[tuple[int, ...]]) -> None:
    b = weight("layers.0.up.bias", 24)
    graph, context = done(Graph([X], [ops.linear(X, W, b)]), settings)
    (found,) = record(context).weights
    assert [part.shape for part in found.parts] == shapes
    assert found.name == "layers.0.up"
    assert found.bytes_before == 24 * 40 * 4
    torch.manual_seed(0)
    values = {"layers.0.up.weight": torch.randn(24, 40), "layers.0.up.bias": torch.randn(24)}
    x = torch.randn(3, 40)
    for name, node in context.derived.items():
        (values[name],) = evaluate([node], values)
    parts = [values[str(p.attrs["name"])] for p in found.parts]
    rebuilt = ops.dequantize.evaluate(*parts, bits=found.bits, group=found.group, features=40, float8=found.float8)
    (y,) = interpret(graph, [x], values).outputs
    expected = torch.nn.functional.linear(x, rebuilt, values["layers.0.up.bias"])
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=0.1 if settings.activations else 1e-5)
    step = 0.4 if settings.bits == 4 else 0.13 if settings.float8 else 0.02
    assert float((rebuilt - values["layers.0.up.weight"]).abs().max()) < step


def test_float8_weights_at_their_edges() -> None:
    w = torch.zeros(5, 40)
    w[1] = torch.linspace(-448, 448, 40)
    w[2, 3], w[3, 4], w[4] = float("nan"), float("inf"), 1e-45
    scale = ops.weight_scale.evaluate(w, bits=8, group=40, zeros=False, float8=True)
    q = ops.quantize_weight.evaluate(w, scale, bits=8, group=40, float8=True)
    assert not (q & 127 == 127).any()  # no NaN among the bits
    rebuilt = ops.dequantize.evaluate(q, scale, bits=8, group=40, features=40, float8=True)
    assert not rebuilt[0].any()
    assert scale[1] == 1
    assert torch.equal(rebuilt[1], w[1].to(torch.float8_e4m3fn).float())
    assert not rebuilt[2:4].isfinite().any()
    assert (rebuilt[4] - w[4]).abs().max() <= 1e-44


def test_a_weight_that_two_layers_read_is_held_once() -> None:
    y = ops.linear(ops.linear(ops.linear(X, W), weight("down.weight", 40, 24)), W)
    graph, context = done(Graph([X], [y]))
    assert len(quantised_layers(graph)) == 3
    assert len(record(context).weights) == 2
    assert len(graph.weights()) == 4


def test_a_tied_table_stays_beside_its_quantised_head() -> None:
    ids = ops.input(name="ids", shape=(3,), dtype=torch.int64)
    table = weight("embed.weight", 50, 40)
    graph, context = done(Graph([ids], [ops.linear(ops.embedding(table, ids), table)]))
    (kept,) = record(context).kept
    assert kept.name == "embed.weight"
    assert "looked up" in kept.reason
    assert table in graph.weights()
    assert len(quantised_layers(graph)) == 1


def test_what_stays_has_a_reason() -> None:
    cache = weight("cache", 24, 40)
    wide = ops.input(name="wide", shape=(3, 40), dtype=torch.float64)
    graph = Graph(
        [X, wide],
        [
            ops.linear(X, W),
            ops.linear(X, cache),
            ops.linear(X, ops.mul(X, X)),
            ops.linear(wide, weight("wide.weight", 24, 40, dtype=torch.float64)),
            ops.matmul(X, weight("other", 40, 24)),
        ],
        [Mutation(cache, ops.add(cache, cache))],
    )
    result, context = done(graph, Quantization(keep=("up",)))
    assert not quantised_layers(result)
    reasons = {k.name: k.reason for k in record(context).kept}
    assert reasons == {
        "layers.0.up.weight": 'asked for: keep="up"',
        "wide.weight": "it is float64",
        "other": "no linear layer reads it, but matmul",
    }


def test_half_types_are_computed_in_float32() -> None:
    x = ops.input(name="x", shape=(3, 40), dtype=torch.bfloat16)
    w, b = weight("w.weight", 24, 40, dtype=torch.bfloat16), weight("w.bias", 24, dtype=torch.bfloat16)
    for settings in (Quantization("int4", 16), Quantization(activations="int8")):
        graph, _ = done(Graph([x], [ops.linear(x, w, b)]), settings)
        (layer,) = quantised_layers(graph)
        assert layer.dtype == F32
        assert graph.outputs[0].dtype == torch.bfloat16


def test_fuel() -> None:
    graph = Graph([X], [ops.linear(ops.linear(X, W), weight("down.weight", 40, 24))])
    result, context = done(graph, fuel=Fuel(limit=1))
    assert len(quantised_layers(result)) == 1
    assert [k.reason for k in record(context).kept] == ["the fuel of the compilation was used up"]


def test_what_was_merged_is_kept_in_few_bits_only() -> None:
    parts = [ops.linear(X, weight(f"attn.{name}_proj.weight", 8, 40)) for name in "qkv"]
    graph = Graph([X], [ops.concat(*parts, dim=1)])
    context = Context(quantized=Quantized(Quantization()))
    result = run_pipeline(graph, context, passes=passes_for(context))
    assert len(quantised_layers(result)) == 1
    assert record(context).weights[0].name == "attn.{q_proj, k_proj, v_proj}"
    assert {str(w.attrs["name"]) for w in result.weights()} == set(context.derived)
    assert list(record(context).hoisted) == ["derived.0"]


def test_names_as_one_text() -> None:
    assert together([]) == ""
    assert together(["a.b", "a.b"]) == "a.b"
    assert together(["a.b.q", "a.b.k"]) == "a.b.{q, k}"
    assert together(["q", "k"]) == "{q, k}"
