"""Fusion: what becomes one kernel, what must not, and that meaning never changes."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.ir.interpret import interpret
from smelt.ir.node import Node
from smelt.ir.types import SymbolRange, symbol
from smelt.ir.verify import verify
from smelt.rewrites.fusion import FusionReport, fuse, split
from smelt.rewrites.levels import Levels
from smelt.rewrites.log import Fuel

B, S = symbol("b"), symbol("s")
SYMBOLS = [SymbolRange(B), SymbolRange(S)]


def source(name: str, *shape: object, dtype: torch.dtype = torch.float32) -> Node:
    return ops.input(name=name, shape=shape, dtype=dtype)


def kernels(graph: Graph) -> list[list[str]]:
    """The operators of each kernel, constants and views left out."""
    found = []
    for node in graph.nodes:
        if node.is_a(ops.fused):
            inner = node.attrs["region"].nodes
            found.append([n.op.name for n in inner if n.inputs and not n.is_a(ops.reshape, ops.permute, ops.expand)])
    return found


def fused(*outputs: Node, report: FusionReport | None = None, fuel: Fuel | None = None) -> Graph:
    inputs = [n for n in Graph([], outputs).nodes if n.is_a(ops.input)]
    graph = Graph(inputs, outputs, (), SYMBOLS)
    result = fuse(graph, fuel, report)
    verify(result)
    return result


HALVED = (torch.float32, torch.bfloat16, torch.bfloat16)
X = source("x", B, S, 16)
Y = source("y", B, S, 16)
W = ops.weight(name="w", shape=(16, 16), dtype=torch.float32)
BIAS = ops.weight(name="bias", shape=(16,), dtype=torch.float32)


def test_a_pointwise_chain_is_one_kernel() -> None:
    assert kernels(fused(ops.tanh(ops.mul(ops.add(X, Y), X)))) == [["add", "mul", "tanh"]]


def test_bias_activation_and_residual_join_the_product() -> None:
    assert kernels(fused(ops.add(ops.gelu(ops.linear(X, W, BIAS)), Y))) == [["linear", "gelu", "add"]]


def test_a_norm_takes_its_producers_and_stores_both() -> None:
    total = ops.add(X, Y)
    graph = fused(ops.layer_norm(total, BIAS), total)
    assert kernels(graph) == [["add", "layer_norm"]]
    assert len(graph.outputs) == 2


def test_a_product_does_not_swallow_another() -> None:
    assert kernels(fused(ops.linear(ops.linear(X, W), W))) == [["linear"], ["linear"]]


# --- before a product -------------------------------------------------------------------------------------------------

GAIN, SHIFT = (ops.weight(name=n, shape=(16,), dtype=torch.float32) for n in ("gain", "shift"))
WIDE = ops.weight(name="wide", shape=(48, 16), dtype=torch.float32)


def test_a_norm_joins_the_product_that_reads_it() -> None:
    norm = ops.layer_norm(ops.add(X, Y), GAIN, SHIFT)
    assert kernels(fused(ops.gelu(ops.linear(norm, WIDE)))) == [["add", "layer_norm", "linear", "gelu"]]


def test_a_norm_that_is_read_elsewhere_is_stored_by_the_way() -> None:
    norm = ops.layer_norm(X, GAIN, SHIFT)
    first = ops.gelu(ops.linear(norm, WIDE))
    back = ops.weight(name="back", shape=(16, 48), dtype=torch.float32)
    graph = fused(ops.add(ops.linear(first, back), norm))
    assert kernels(graph) == [["layer_norm", "linear", "gelu"], ["linear", "add"]]
    assert len([n for n in graph.nodes if n.is_a(ops.item)]) == 2


def test_an_activation_joins_the_product_that_reads_it() -> None:
    gate = source("gate", B, S, 32)
    halves = (ops.slice_(gate, dim=2, start=i, stop=i + 16) for i in (0, 16))
    assert kernels(fused(ops.linear(ops.swiglu(*halves), W)))[0][-2:] == ["swiglu", "linear"]


def test_of_two_products_the_first_takes_the_norm() -> None:
    norm = ops.rms_norm(X, GAIN)
    assert kernels(fused(ops.linear(norm, W), ops.linear(norm, WIDE))) == [["rms_norm", "linear"], ["linear"]]


def test_what_follows_a_product_does_not_read_its_rows() -> None:
    norm = ops.layer_norm(X, GAIN, SHIFT)
    graph = fused(ops.add(ops.linear(norm, W), norm))
    assert kernels(graph) == [["layer_norm", "linear"], ["add"]]
    later = fused(ops.add(ops.linear(norm, W), ops.tanh(norm)))
    assert sum(map(len, kernels(later))) == 4


def refused(*outputs: Node) -> list[str]:
    report = FusionReport()
    fused(*outputs, report=report)
    return [r.reason for r in report.refusals]


def test_rows_that_cannot_be_held_stay_apart() -> None:
    k = symbol("k")
    x, w = source("xk", B, k), source("wk", 8, k)
    graph = Graph([x, w], [ops.linear(ops.tanh(x), w)], (), [*SYMBOLS, SymbolRange(k)])
    report = FusionReport()
    assert kernels(fuse(graph, None, report)) == [["tanh"], ["linear"]]
    assert "must be a number" in report.refusals[0].reason


def test_norms_over_other_axes_and_computed_weights_stay_apart() -> None:
    assert refused(ops.linear(ops.softmax(X, dim=1), W)) == ["operands of a product are read many times"]
    square = ops.tanh(source("square", 16, 16))
    assert refused(ops.linear(square, square)) == ["the weight or the bias of the product is computed"]
    transposed = ops.permute(ops.tanh(source("t", B, 16, S)), dims=(0, 2, 1))
    assert len(refused(ops.linear(transposed, W))) == 1


def test_a_table_that_is_the_weight_too_is_packed_for_the_product() -> None:
    table, ids = ops.weight(name="table", shape=(50, 16), dtype=torch.float32), source("ids", B, S, dtype=torch.int64)
    assert kernels(fused(ops.linear(ops.exp(ops.embedding(table, ids)), table))) == [["embedding", "exp"], ["linear"]]


def test_an_attention_reads_caches_of_half_the_bytes_in_place() -> None:
    q, k, v = (source(name, 1, 2, S, 16, dtype=dtype) for name, dtype in zip("qkv", HALVED, strict=True))
    keys, values = (ops.cast(x, dtype=torch.float32) for x in (k, v))
    found = ops.attention(q, keys, values, scale=0.5)
    assert kernels(fused(found)) == [["cast", "cast", "attention"]]
    assert sorted(kernels(fused(ops.attention(q, keys, keys, scale=0.5)))) == [["cast", "attention"]]
    # what is read elsewhere is stored anyway, and what is more than a cast would be computed many times
    assert sorted(kernels(fused(found, keys))) == [["cast"], ["cast", "attention"]]
    assert sorted(kernels(fused(ops.attention(q, ops.tanh(keys), values, scale=0.5)))) == [
        ["cast", "attention"],
        ["cast", "tanh"],
    ]
    wide = ops.attention(ops.cast(q, dtype=torch.bfloat16), ops.cast(q, dtype=torch.bfloat16), v, scale=0.5)
    assert sorted(kernels(fused(wide))) == [["attention"], ["cast"]]  # narrower, not wider


def test_an_attention_reads_caches_of_whole_numbers_in_place() -> None:
    q, k, scale = source("q", 1, 2, S, 16), source("k", 1, 2, S, 16, dtype=torch.int8), source("s", 1, 2, S)
    rows, columns = ops.reshape(scale, shape=(1, 2, S, 1)), source("c", 1, 2, S, 16)
    keys, other = (ops.mul(ops.cast(k, dtype=torch.float32), x) for x in (rows, columns))
    found = kernels(fused(ops.attention(q, keys, q, scale=0.5)))
    assert found == [["cast", "mul", "attention"]]
    assert sorted(kernels(fused(ops.attention(q, other, q, scale=0.5)))) == [["attention"], ["cast", "mul"]]


def test_rotary_positions_join_the_attention_for_queries_only() -> None:
    q, k = source("q", B, 4, S, 8), source("k", B, 4, S, 8)
    cos, sin = source("cos", 1, 1, S, 8), source("sin", 1, 1, S, 8)
    turned = ops.rope(q, cos, sin)
    graph = fused(ops.attention(turned, ops.rope(k, cos, sin), k, scale=0.5))
    assert sorted(kernels(graph)) == [["rope"], ["rope", "attention"]]
    assert sorted(kernels(fused(ops.attention(turned, k, k, scale=0.5), turned))) == [["attention"], ["rope"]]


# --- after a product --------------------------------------------------------------------------------------------------


def test_a_reduction_does_not_follow_a_product() -> None:
    assert kernels(fused(ops.softmax(ops.linear(X, W), dim=-1))) == [["linear"], ["softmax"]]


def test_what_follows_a_product_reads_all_of_its_kernel_plainly() -> None:
    square = source("square", 16, 16)
    product = ops.linear(square, W)
    scaled = ops.mul(product, square)
    graph = fused(ops.mul(scaled, ops.permute(product, dims=(1, 0))))
    assert kernels(graph) == [["linear", "mul"], ["mul"]]


def test_rows_over_different_axes_stay_apart() -> None:
    twice = ops.softmax(ops.softmax(X, dim=-1), dim=1)
    assert kernels(fused(twice)) == [["softmax"], ["softmax"]]


def test_kernels_that_need_each_other_in_turn_stay_apart() -> None:
    # add would join the first linear's kernel, but the second linear lies between them
    first = ops.linear(X, W)
    second = ops.linear(ops.tanh(first), W)
    graph = fused(ops.add(first, second))
    assert kernels(graph) == [["linear", "tanh"], ["linear", "add"]]


def test_a_kernel_placed_early_may_need_one_that_ends_late() -> None:
    # product + other would need other, which needs both, which needs product
    p, q, r = (source(name, 16, 16) for name in "pqr")
    early, product = ops.tanh(p), ops.linear(r, W)
    other = ops.matmul(early, q)
    both = ops.add(early, ops.permute(product, dims=(1, 0)))
    graph = fused(other, both, ops.add(product, other))
    assert sorted(kernels(graph)) == [["linear"], ["matmul", "add"], ["tanh", "add"]]


def test_a_cheap_broadcast_is_computed_again_an_expensive_one_is_not() -> None:
    row = source("row", S, 1)
    assert len(kernels(fused(ops.add(X, ops.neg(row))))) == 1
    assert len(kernels(fused(ops.add(X, ops.exp(row))))) == 2


def test_the_layout_follows_the_reader() -> None:
    q = source("q", B, 4, S, 4)
    heads = ops.attention(q, q, q, scale=0.5)
    merged = ops.reshape(ops.permute(heads, dims=(0, 2, 1, 3)), shape=(B, S, 16))
    graph = fused(ops.linear(merged, W))
    first = next(n for n in graph.nodes if n.is_a(ops.fused))
    assert first.attrs["layouts"] == ((0, 2, 1, 3),)


def test_refusals_say_why() -> None:
    report = FusionReport()
    fused(ops.softmax(ops.linear(X, W), dim=-1), report=report)
    (refusal,) = report.refusals
    assert (refusal.producer.op.name, refusal.consumer.op.name) == ("linear", "softmax")
    assert "matmul" in refusal.reason
    assert refusal.bytes_saved == 2 * 64 * B * S


def test_each_fusion_takes_fuel() -> None:
    fuel = Fuel(limit=1)
    assert kernels(fused(ops.tanh(ops.mul(ops.add(X, Y), X)), fuel=fuel)) == [["add", "mul"], ["tanh"]]
    assert fuel.used == 1


def test_split_undoes_a_fusion() -> None:
    graph = fused(ops.tanh(ops.mul(X, Y)))
    node = next(n for n in graph.nodes if n.is_a(ops.fused))
    assert kernels(split(node)) == [["mul"], ["tanh"]]


def test_a_recurrence_reads_values_in_memory_only() -> None:
    gates = ops.permute(source("g", B, S, 8), dims=(1, 0, 2))
    w = ops.weight(name="hh", shape=(8, 8), dtype=torch.float32)
    zero = ops.full(shape=(B, 8), value=0.0, dtype=torch.float32)
    bias = ops.weight(name="hb", shape=(8,), dtype=torch.float32)
    y, h = ops.results(ops.recurrence(gates, w, bias, zero, kind="tanh"))
    graph = fused(y, h)
    (region,) = [n.attrs["region"] for n in graph.nodes if n.is_a(ops.fused) and len(n.attrs["layouts"]) == 2]
    assert all(x.is_a(ops.input) for n in region.nodes if n.is_a(ops.recurrence) for x in n.inputs)


def test_a_constant_that_is_returned_becomes_a_kernel() -> None:
    graph = fused(ops.arange(size=S))
    assert graph.outputs[0].is_a(ops.fused)


def test_a_deep_chain_does_not_recurse() -> None:
    x: Node = X
    for _ in range(3000):
        x = ops.tanh(ops.add(x, Y))
    assert sum(len(k) for k in kernels(fused(x))) == 6000


UNARY = [ops.neg, ops.tanh, ops.relu, ops.abs]
BINARY = [ops.add, ops.mul, ops.sub, ops.maximum]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Random graphs of pointwise work, row reductions, products and views over [b, s, 4]."""
    x, y = source("x", B, S, 4), source("y", B, S, 4)
    w = ops.weight(name="w", shape=(4, 4), dtype=torch.float32)
    values: list[Node] = [x, y]
    for _ in range(draw(st.integers(1, 14))):
        a, b = draw(st.sampled_from(values)), draw(st.sampled_from(values))
        kind = draw(st.sampled_from(["unary", "binary", "norm", "softmax", "linear", "flip", "mean", "transpose"]))
        if kind == "unary":
            made = draw(st.sampled_from(UNARY))(a)
        elif kind == "binary":
            made = draw(st.sampled_from(BINARY))(a, b)
        elif kind == "norm":
            made = ops.layer_norm(a, eps=1e-3)
        elif kind == "softmax":
            made = ops.softmax(a, dim=draw(st.sampled_from([1, 2])))
        elif kind == "linear":
            made = ops.linear(a, w)
        elif kind == "flip":
            made = ops.flip(a, dims=(draw(st.sampled_from([1, 2])),))
        elif kind == "mean":
            made = ops.sub(a, ops.mean(b, dims=(draw(st.sampled_from([1, 2])),), keepdim=True))
        else:
            wide = ops.permute(ops.reshape(a, shape=(B, S, 2, 2)), dims=(0, 1, 3, 2))
            made = ops.reshape(wide, shape=(B, S, 4))
        values.append(made)
    outputs = draw(st.lists(st.sampled_from(values), min_size=1, max_size=3))
    return Graph([x, y], outputs, (), SYMBOLS)


@given(graphs(), st.integers(0, 40))
@settings(deadline=None, max_examples=150)
def test_fusion_keeps_the_meaning_of_random_graphs(graph: Graph, limit: int) -> None:
    inputs = [torch.randn(2, 3, 4, dtype=torch.float64) for _ in range(2)]
    weights = {"w": torch.randn(4, 4, dtype=torch.float64)}
    want = interpret(graph, inputs, weights, dtype=torch.float64).outputs
    for fuel in (Fuel(), Fuel(limit=limit)):
        result = fuse(graph, fuel)
        verify(result)
        got = interpret(result, inputs, weights, dtype=torch.float64).outputs
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)


def test_a_kernel_that_reads_through_a_view_stands_between() -> None:
    """y + sum(view of y): the sum needs all of y, so the addition cannot be in the kernel that makes it."""
    y = ops.linear(X, W)
    total = ops.sum(ops.reshape(y, shape=(B * S * 16,)))
    assert kernels(fused(ops.add(y, total))) == [["linear"], ["sum"], ["add"]]


def turned(x: Node) -> Node:
    return ops.transpose(x, -1, -2)


def test_kernels_that_need_each_other_through_a_view_stay_apart() -> None:
    # mul would join add, but softmax lies between them, and reads add through a view
    total = ops.add(X, Y)
    graph = fused(ops.mul(total, turned(ops.softmax(turned(total), dim=-1))))
    assert kernels(graph) == [["add"], ["softmax"], ["mul"]]


def test_kernels_that_need_each_other_by_what_joined_later_stay_apart() -> None:
    # mul would join exp; but it reads softmax, which reads tanh, whose kernel add joined, and add reads exp
    first, other = ops.tanh(X), ops.exp(turned(Y))
    rows = ops.softmax(turned(first), dim=-1)
    joined = ops.add(first, turned(other))
    graph = fused(rows, joined, ops.mul(rows, other))
    assert ["exp", "mul"] not in kernels(graph)
    assert sorted(name for names in kernels(graph) for name in names) == ["add", "exp", "mul", "softmax", "tanh"]


def test_a_constant_that_is_returned_through_a_view_is_computed() -> None:
    graph = fused(ops.expand(ops.scalar(0.25, torch.float32), shape=(3,)), X)
    assert sum(n.is_a(ops.fused) for n in graph.nodes) == 1


def layers(count: int) -> Graph:
    """Layers with a residual, of which each kernel takes in work of the next layer."""
    x = value = ops.input(name="x", shape=(6, 8), dtype=torch.float32)
    for i in range(count):
        w, b = (ops.weight(name=f"{n}{i}", shape=s, dtype=torch.float32) for n, s in (("w", (8, 8)), ("b", (8,))))
        half = ops.mul(value, ops.scalar(0.5, torch.float32))
        value = ops.add(ops.relu(ops.linear(value, w, b)), half)
    return Graph([x], [value])


def test_fusion_asks_in_proportion_to_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    plain = Levels.needs

    def needs(levels: Levels, unit: Any) -> Any:
        nonlocal asked
        asked += 1
        return plain(levels, unit)

    monkeypatch.setattr(Levels, "needs", needs)
    counts = []
    for count in (100, 200):
        asked = 0
        assert len(kernels(fuse(layers(count)))) == count
        counts.append(asked)
    assert counts[1] <= 2.1 * counts[0]
