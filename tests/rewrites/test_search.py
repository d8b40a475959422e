"""``optimize="search"``: never costlier, always equal, and better where greedy order loses."""

import ast
import itertools
import random
import time
from functools import cache
from pathlib import Path

import pytest
import torch

from smelt.ir import ops
from smelt.ir.errors import BackendError, TypeRuleError
from smelt.ir.graph import Graph
from smelt.ir.interpret import interpret
from smelt.ir.node import Node
from smelt.ir.text import print_graph
from smelt.ir.types import SymbolRange, symbol
from smelt.rewrites import pipeline
from smelt.rewrites.context import Context
from smelt.rewrites.log import Fuel
from smelt.rewrites.pattern import constant
from smelt.rewrites.pipeline import PIPELINE, SEARCH_PIPELINE, run_pipeline
from smelt.rewrites.rule import Rule, RuleError
from smelt.rewrites.sample import shapes
from smelt.rewrites.schedule import nominal_sizes
from smelt.rewrites.search import settings
from smelt.rewrites.search.cost import CostModel
from smelt.rewrites.search.egraph import Classes, Engine, program
from smelt.rewrites.search.run import Found, best_of, search, search_rules
from smelt.rewrites.search.settings import SearchSettings, require_egglog

F32, F64, I64 = torch.float32, torch.float64, torch.int64
PATIENT = SearchSettings(seconds=60.0, gain=0.0)


def given(name: str, *shape: int, dtype: torch.dtype = F32) -> Node:
    return ops.input(name=name, shape=shape, dtype=dtype)


def weight(name: str, *shape: int) -> Node:
    return ops.weight(name=name, shape=shape, dtype=F32)


def graph_of(*outputs: Node) -> Graph:
    plain = Graph((), outputs)
    return Graph([n for n in plain.nodes if n.op is ops.input], outputs)


def searched(graph: Graph, settings: SearchSettings = PATIENT) -> Graph:
    return search(graph, Context(search=settings, verify=True))


def cost(graph: Graph) -> int:
    return CostModel(nominal_sizes(graph), PATIENT.roofs).total(graph.roots)


def assert_equal(before: Graph, after: Graph, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    draws = {
        n: torch.randint(-(2**62), 2**62, n.shape, generator=generator)
        if n.dtype == I64
        else torch.randn(n.shape, dtype=F64, generator=generator)
        for n in sorted(Graph((), before.roots).nodes, key=str)
        if n.op in (ops.input, ops.weight)
    }
    weights = {str(n.attrs["name"]): t for n, t in draws.items() if n.op is ops.weight}
    inputs = [draws[n] for n in before.inputs]
    expected = interpret(before, inputs, weights, dtype=F64).outputs
    found = interpret(after, inputs, weights, dtype=F64).outputs
    for a, b in zip(found, expected, strict=True):
        if b.dtype == I64:
            assert torch.equal(a, b)
        else:
            scale = float(b.abs().max()) if b.numel() else 0.0
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-9 * scale), f"{print_graph(before)}\n{print_graph(after)}"


def operators(graph: Graph) -> list[str]:
    return sorted(n.op.name for n in graph.nodes if n.op not in (ops.input, ops.weight, ops.full, ops.permute))


def improves(*outputs: Node) -> Graph:
    before = graph_of(*outputs)
    after = searched(before)
    assert cost(after) < cost(before)
    assert_equal(before, after)
    return after


# --- where greedy order loses -----------------------------------------------------------------------------------------


def test_linear_attention_multiplies_keys_by_values_first() -> None:
    q, k, v = (given(name, 2, 256, 16) for name in "qkv")
    after = improves(ops.matmul(ops.matmul(q, ops.transpose(k, -1, -2)), v))
    assert [n.shape for n in after.nodes if n.op is ops.matmul] == [(2, 16, 16), (2, 256, 16)]


def test_a_product_of_weights_that_is_too_large_to_keep_is_never_made() -> None:
    product = ops.matmul(weight("a", 2048, 8), weight("b", 8, 2048))
    after = improves(ops.linear(given("x", 16, 2048), product))
    assert [n.shape for n in after.nodes if n.op is ops.linear] == [(16, 8), (16, 2048)]


def test_an_adapter_becomes_part_of_the_weight_that_it_is_added_to() -> None:
    x = given("x", 64, 256)
    low = ops.linear(ops.linear(x, weight("a", 8, 256)), weight("b", 256, 8))
    base = ops.linear(x, weight("w", 256, 256), weight("bias", 256))
    before = graph_of(ops.add(base, ops.mul(low, ops.scalar(0.5, F32))))
    context = Context(search=PATIENT, verify=True)
    after = run_pipeline(before, context, passes=SEARCH_PIPELINE)
    assert operators(after) == ["linear"]
    assert operators(run_pipeline(before, Context())) == ["add", "linear", "linear", "linear", "mul"]


def test_a_factor_is_taken_out_of_a_sum_of_three() -> None:
    x, p = given("x", 64, 256), given("p", 64, 256)
    layers = [ops.linear(x, weight(name, 256, 256)) for name in "uv"]
    assert operators(improves(ops.add(ops.add(layers[0], p), layers[1]))) == ["add", "add", "linear"]


def test_rows_are_averaged_before_a_layer() -> None:
    layer = ops.linear(given("x", 4, 64, 32), weight("w", 32, 32), weight("b", 32))
    after = improves(ops.mean(layer, dims=(1,)))
    assert [n.shape for n in after.nodes if n.op is ops.linear] == [(4, 32)]


def test_permutations_around_elementwise_work_cancel() -> None:
    x = given("x", 3, 5, 7)
    moved = ops.permute(x, dims=(2, 0, 1))
    after = improves(ops.permute(ops.tanh(ops.add(ops.relu(moved), ops.neg(moved))), dims=(1, 2, 0)))
    assert ops.permute not in [n.op for n in after.nodes]


def test_a_scale_after_a_product_stays_in_its_kernel() -> None:
    before = graph_of(ops.mul(ops.matmul(given("a", 64, 8), given("b", 8, 64)), ops.scalar(0.5, F32)))
    assert searched(before) is before


def test_a_scale_before_a_layer_goes_into_its_weight() -> None:
    x = ops.mul(given("x", 64, 256), ops.scalar(0.3, F32))
    before = graph_of(ops.linear(x, weight("w", 256, 256), weight("b", 256)))
    after = searched(before, SearchSettings(seconds=60.0))
    assert after.outputs[0].inputs[0].op is ops.input
    assert_equal(before, after)


def test_what_saves_next_to_nothing_is_left() -> None:
    layer = ops.linear(given("x", 64, 256), weight("w", 256, 256), weight("b", 256))
    before = graph_of(ops.mul(layer, ops.scalar(0.3, F32)))
    assert searched(before, SearchSettings(seconds=60.0)) is before
    assert cost(searched(before)) < cost(before)


def test_the_best_order_of_a_chain_of_products_is_found() -> None:
    sizes = (30, 35, 15, 5, 10, 20, 25)
    factors = [given(f"a{i}", *sizes[i : i + 2]) for i in range(6)]
    product = factors[0]
    for factor in factors[1:]:
        product = ops.matmul(product, factor)
    costs = CostModel({}, PATIENT.roofs)

    @cache
    def ways(low: int, high: int) -> tuple[Node, ...]:
        if high - low == 1:
            return (factors[low],)
        cuts = range(low + 1, high)
        pairs = (itertools.product(ways(low, cut), ways(cut, high)) for cut in cuts)
        return tuple(ops.matmul(a, b) for found in pairs for a, b in found)

    assert len(ways(0, 6)) == 42
    assert cost(searched(graph_of(product))) == min(costs.total([way]) for way in ways(0, 6))


def test_equal_parts_are_searched_once_and_each_is_one_application() -> None:
    x = given("x", 128, 64)
    for _ in range(6):
        y = ops.matmul(ops.matmul(x, ops.transpose(x, -1, -2)), x)
        x = ops.softmax(y, dim=-1)
    graph = graph_of(x)
    context = Context(search=PATIENT)
    start = time.process_time()
    after = search(graph, context)
    assert time.process_time() - start < 2.0
    assert [a.rule for a in context.log] == ["search"] * 6
    assert [a.number for a in context.log] == list(range(1, 7))
    assert all(n.origin.made_by == "search" for n in after.nodes if n.op is ops.matmul)


# --- what must never happen -------------------------------------------------------------------------------------------


class Builder:
    """Grows a random graph of the operators that equations speak of."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self.random = random.Random(seed)
        sources = (ops.input, ops.weight) if dtype == F32 else (ops.input,)
        self.nodes = [self.random.choice(sources)(name=f"x{i}", shape=self.shape(), dtype=dtype) for i in range(5)]
        self.dtype = dtype

    def shape(self) -> tuple[int, ...]:
        sizes = [self.random.choice((1, 2, 3, 8)) for _ in range(2)]
        return (*([self.random.choice((1, 2))] if self.random.random() < 0.3 else []), *sizes)

    def grow(self, count: int) -> None:
        while len(self.nodes) < count:
            try:
                self.nodes.append(self.step())
            except TypeRuleError:
                self.nodes.append(self.transposed(self.pick()))

    def pick(self) -> Node:
        return self.random.choice(self.nodes[-6:] if self.random.random() < 0.6 else self.nodes)

    def transposed(self, x: Node) -> Node:
        return ops.transpose(x, -1, -2)

    def step(self) -> Node:
        x, y = self.pick(), self.pick()
        kind = self.random.randrange(9)
        if kind < 3:
            return ops.matmul(x, y)
        if kind < 6:
            return self.random.choice((ops.add, ops.sub, ops.mul))(x, y)
        if kind == 6:
            return self.transposed(x)
        if kind == 7:
            return ops.mul(x, ops.scalar(3 if self.dtype == I64 else 0.5, self.dtype))
        if self.dtype == I64:
            return ops.neg(x)
        low = ops.linear(x, y) if y.tensor_type.rank == 2 else ops.tanh(x)
        return low if self.random.random() < 0.7 else ops.relu(x)

    def graph(self) -> Graph:
        return graph_of(*dict.fromkeys([self.nodes[-1], self.pick()]))


@pytest.mark.parametrize("block", range(4))
def test_random_graphs_are_equal_and_never_costlier(block: int) -> None:
    limits = SearchSettings(nodes=400, seconds=60.0, gain=0.0)
    cheaper = 0
    for seed in range(block * 20, block * 20 + 20):
        builder = Builder(seed, I64 if seed % 5 == 0 else F32)
        builder.grow(18)
        before = builder.graph()
        after = searched(before, limits)
        assert cost(after) <= cost(before), f"seed {seed}\n{print_graph(before)}\n{print_graph(after)}"
        cheaper += cost(after) < cost(before)
        assert_equal(before, after, seed)
    assert cheaper > 2  # all that is above would hold of a search that does nothing


def test_no_fuel_no_change() -> None:
    before = graph_of(ops.matmul(ops.matmul(given("q", 64, 4), given("k", 4, 64)), given("v", 64, 4)))
    context = Context(search=PATIENT, fuel=Fuel(limit=0))
    assert search(before, context) is before
    assert not context.log


def test_half_types_stay_as_they_are() -> None:
    half = torch.bfloat16
    q, k, v = given("q", 64, 4, dtype=half), given("k", 4, 64, dtype=half), given("v", 64, 4, dtype=half)
    before = graph_of(ops.matmul(ops.matmul(q, k), v))
    assert searched(before) is before


def test_a_term_never_comes_to_need_itself() -> None:
    """Two results of one region, of which one goes around through other work and comes back as an operand."""
    x, w = given("x", 8, 8), given("w", 8, 8)
    inner = ops.matmul(x, w)
    first = ops.add(inner, ops.matmul(x, given("v", 8, 8)))
    second = ops.matmul(ops.softmax(first, dim=-1), inner)
    before = graph_of(first, ops.add(second, inner))
    assert_equal(before, searched(before))


def test_the_choice_depends_on_the_sizes() -> None:
    s = symbol("s")
    q = ops.input(name="q", shape=(s, 64), dtype=F32)
    product = ops.matmul(ops.matmul(q, ops.transpose(q, -1, -2)), q)
    graph = Graph([q], [product], symbols=[SymbolRange(s, 2, 4096)])
    long = searched(graph, SearchSettings({s: 2048}, seconds=60.0))
    short = searched(graph, SearchSettings({s: 8}, seconds=60.0))
    assert [n.shape for n in long.nodes if n.op is ops.matmul] == [(64, 64), (s, 64)]
    assert short is graph


# --- limits -----------------------------------------------------------------------------------------------------------


def chain(count: int) -> Graph:
    draw = random.Random(count)
    sizes = [draw.randrange(2, 50) for _ in range(count + 1)]
    product = given("a0", *sizes[:2])
    for i in range(1, count):
        product = ops.matmul(product, given(f"a{i}", *sizes[i : i + 2]))
    return graph_of(product)


def test_the_e_graph_stays_below_its_limit() -> None:
    found = searched_region(chain(40), 500)
    assert found.ended_by == "nodes"
    assert found.nodes < 500 + 10  # what one match builds
    assert found.after <= found.before


def searched_region(graph: Graph, nodes: int, seconds: float = 60.0) -> Found:
    engine = Engine(program(search_rules()))
    limits = SearchSettings(nodes=nodes, gain=0.0)
    return best_of(graph, engine, CostModel({}, PATIENT.roofs), limits, time.monotonic() + seconds)


def test_time_ends_a_search() -> None:
    start = time.monotonic()
    found = searched_region(chain(60), 10**6, seconds=0.3)
    assert found.ended_by == "time"
    assert found.after <= found.before
    assert time.monotonic() - start < 10.0  # on a machine that is busy


def test_without_time_nothing_changes() -> None:
    graph = chain(5)
    assert searched(graph, SearchSettings(seconds=0.0)) is graph


def test_the_result_is_the_same_every_time() -> None:
    limits = SearchSettings(nodes=300, seconds=60.0, gain=0.0)
    assert {print_graph(searched(chain(12), limits)) for _ in range(3)} == {print_graph(searched(chain(12), limits))}
    assert searched(chain(12), limits) is not chain(12)


def test_ten_thousand_nodes() -> None:
    x = given("x", 16, 16)
    y = x
    for i in range(5000):
        y = ops.permute(ops.relu(y) if i % 2 else ops.add(ops.matmul(y, x), x), dims=(1, 0))
    graph = graph_of(y)
    assert len(graph.nodes) > 10_000
    after = searched(graph, SearchSettings(seconds=60.0, nodes=300))
    assert cost(after) < cost(graph)


# --- the e-graph ------------------------------------------------------------------------------------------------------


def test_a_class_holds_what_is_equal_and_nothing_else() -> None:
    a, b, c = (given(name, 4, 4) for name in "abc")
    left, right, other = ops.matmul(ops.matmul(a, b), c), ops.matmul(a, ops.matmul(b, c)), ops.matmul(a, b)
    with Engine(program(search_rules())).classes() as classes:
        numbers = [classes.enter(node) for node in (left, right, other)]
        classes.saturate(100, time.monotonic() + 60)
        found = classes.classes()
    assert found[numbers[0]] == found[numbers[1]] != found[numbers[2]]
    assert classes.ended_by == ""


def test_one_engine_serves_one_region_after_the_other() -> None:
    engine = Engine(program(search_rules()))
    counts = []
    for _ in range(2):
        with engine.classes() as classes:
            classes.enter(chain(5).outputs[0])
            classes.saturate(1000, time.monotonic() + 60)
            counts.append(len(classes.nodes))
    assert counts[0] == counts[1]


def test_types_are_one_in_a_class() -> None:
    with Engine(program(search_rules())).classes() as classes:
        seen = everything_entered(classes)
    types = {at: {node.type for node, other in seen if other == at} for _, at in seen}
    assert {len(found) for found in types.values()} == {1}


def everything_entered(classes: Classes) -> list[tuple[Node, int]]:
    builder = Builder(3, F32)
    builder.grow(20)
    for node in builder.nodes:
        classes.enter(node)
    classes.saturate(500, time.monotonic() + 60)
    return list(zip(classes.nodes, classes.classes(), strict=True))


def test_a_rule_with_constants_is_no_equation() -> None:
    rule = Rule(
        name="wrong",
        before=lambda x: ops.mul(x, constant(2.0)),
        after=lambda x: ops.add(x, x),
        samples=[shapes("m")],
    )
    with pytest.raises(RuleError, match="rule wrong is no equation"):
        program((rule,))


# --- how it is asked for ----------------------------------------------------------------------------------------------


def test_the_pass_stands_after_simplify() -> None:
    assert [p.name for p in SEARCH_PIPELINE] == ["canonicalise", "recognise", "simplify", "search", "merge", "hoist"]
    assert "search" not in [p.name for p in PIPELINE]


def test_egglog_is_loaded_by_the_search_alone() -> None:
    """No module outside the search imports it, or what imports it, when it is loaded itself."""
    root = Path(pipeline.__file__).parent.parent
    files = [path for layer in ("ir", "rewrites", "runtime", "tools") for path in (root / layer).rglob("*.py")]
    outside = [path for path in files if path.parent.name != "search"]
    found = [node for path in outside for node in ast.parse(path.read_text(encoding="utf-8")).body]
    modules = {node.module or "" for node in found if isinstance(node, ast.ImportFrom)}
    assert not [name for name in modules if name.startswith("egglog") or name.endswith(("search.run", "search.egraph"))]
    assert "egglog" not in {alias.name for node in found if isinstance(node, ast.Import) for alias in node.names}
    assert any(name.endswith("search.settings") for name in modules)  # the check does see imports


def test_a_missing_egglog_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r'pip install "smelt\[search\]"'):
        require_egglog()
