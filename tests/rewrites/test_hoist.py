"""What is computed once at load, and what never is."""

import pytest
import torch

from smelt.ir import ops
from smelt.ir.graph import Graph, Mutation
from smelt.ir.interpret import evaluate, interpret
from smelt.ir.node import Node
from smelt.ir.ops import add, arange, cast, concat, exp, linear, mul, permute, reshape
from smelt.ir.types import SymbolRange, symbol
from smelt.rewrites.context import Context, TargetFacts
from smelt.rewrites.hoist import hoist
from smelt.rewrites.log import Fuel

F32 = torch.float32
S = symbol("s")
X = ops.input(name="x", shape=(S, 4), dtype=F32)


def weight(name: str, *shape: int, dtype: torch.dtype = F32) -> Node:
    return ops.weight(name=name, shape=shape, dtype=dtype)


def graph_of(*outputs: Node, inputs: tuple[Node, ...] = (X,), mutations: tuple[Mutation, ...] = ()) -> Graph:
    return Graph(inputs, outputs, mutations, [SymbolRange(S)])


def hoisted(*outputs: Node, context: Context | None = None) -> Graph:
    return hoist(graph_of(*outputs), context or Context())


def test_the_largest_computation_on_weights_becomes_one_weight() -> None:
    a, b = weight("a", 4, 4), weight("b", 4, 4)
    context = Context()
    definition = concat(mul(a, exp(b)), b, dim=0)
    graph = hoisted(linear(X, definition), context=context)
    derived = ops.weight(name="derived.0", shape=(8, 4), dtype=F32)
    assert graph.outputs == (linear(X, derived),)
    assert context.derived == {"derived.0": definition}
    assert context.log.counts() == {"hoist": 1}


def test_the_result_is_the_same() -> None:
    a, b = weight("a", 4, 4), weight("b", 4, 4)
    graph = graph_of(linear(X, concat(mul(a, exp(b)), b, dim=0)))
    context = Context()
    after = hoist(graph, context)
    weights = {"a": torch.randn(4, 4), "b": torch.randn(4, 4)}
    derived = {name: evaluate([node], weights)[0] for name, node in context.derived.items()}
    x = torch.randn(3, 4)
    expected = interpret(graph, [x], weights).outputs[0]
    assert torch.equal(interpret(after, [x], weights | derived).outputs[0], expected)


def test_one_definition_is_one_weight_and_names_do_not_collide() -> None:
    a, taken = weight("a", 4, 4), weight("derived.0", 4, 4)
    context = Context()
    graph = hoisted(linear(linear(linear(X, exp(a)), exp(a)), taken), linear(X, mul(a, a)), context=context)
    assert list(context.derived) == ["derived.1", "derived.2"]
    assert [w.attrs["name"] for w in graph.weights()] == ["derived.1", "derived.0", "derived.2"]
    again = hoist(graph, context)
    assert again is graph


def test_views_of_weights_stay_views() -> None:
    a = weight("a", 4, 8)
    for view in (permute(a, dims=(1, 0)), ops.slice_(a, dim=1, start=0, stop=4)):
        graph = graph_of(linear(X, view))
        assert hoist(graph, Context()) is graph
    added = graph_of(add(X, reshape(weight("b", 2, 2), shape=(4,))))
    assert hoist(added, Context()) is added


def test_a_filter_that_a_product_reads_as_a_matrix_is_a_weight() -> None:
    filters = weight("f", 8, 2, 2)
    matrix = reshape(filters, shape=(8, 4))
    context = Context()
    graph = hoisted(linear(X, matrix), context=context)
    assert context.derived == {"derived.0": matrix}
    assert graph.outputs == (linear(X, ops.weight(name="derived.0", shape=(8, 4), dtype=F32)),)


def test_views_of_a_computation_stay_around_it() -> None:
    a = weight("a", 4, 8)
    context = Context()
    graph = hoisted(linear(X, permute(exp(a), dims=(1, 0))), context=context)
    assert context.derived == {"derived.0": exp(a)}
    assert graph.outputs[0].inputs[1].op is ops.permute


def test_transposes_that_products_read_are_stored_on_request() -> None:
    a = weight("a", 4, 8)
    context = Context(target=TargetFacts(store_transposes=True))
    hoisted(linear(X, permute(a, dims=(1, 0))), context=context)
    assert context.derived == {"derived.0": permute(a, dims=(1, 0))}


def test_widening_casts_stay_where_they_are_read() -> None:
    half = weight("h", 8, 4, dtype=torch.bfloat16)
    graph = graph_of(linear(X, cast(half, dtype=F32)))
    assert hoist(graph, Context()) is graph
    wide = weight("w", 8, 4, dtype=torch.float64)
    context = Context()
    hoisted(linear(X, cast(wide, dtype=F32)), context=context)
    assert context.derived == {"derived.0": cast(wide, dtype=F32)}


def test_a_weight_that_the_graph_changes_is_no_constant() -> None:
    a, b = weight("a", 4, 4), weight("b", 4, 4)
    context = Context()
    graph = graph_of(linear(X, exp(a)), linear(X, exp(b)), mutations=(Mutation(a, mul(a, a)),))
    after = hoist(graph, context)
    assert context.derived == {"derived.0": exp(b)}
    assert after.outputs[0] is graph.outputs[0]
    assert after.mutations == graph.mutations


def test_what_depends_on_a_symbolic_size_stays() -> None:
    a = weight("a", 9)
    graph = graph_of(
        exp(ops.slice_(a, dim=0, start=0, stop=S)),
        mul(exp(arange(size=S, dtype=F32)), arange(size=S, dtype=F32)),
        mul(a, ops.scalar(S, F32)),
    )
    assert hoist(graph, Context()) is graph


def test_calls_with_effects_stay() -> None:
    def call(serial: int) -> Node:
        kind = ops.full(shape=(4, 4), value=0.0, dtype=F32).type
        template = (("operand", 0),)
        return ops.aten_call(weight("a", 4, 4), target="aten.sin.default", args=template, types=(kind,), serial=serial)

    context = Context()
    hoisted(linear(X, call(0)), linear(X, call(3)), context=context)
    assert list(context.derived.values()) == [call(0)]


def test_constants_of_equal_elements_become_one_constant() -> None:
    context = Context()
    mask = ops.le(reshape(arange(size=3), shape=(1, 3)), reshape(arange(size=3, start=5), shape=(3, 1)))
    graph = hoisted(mask, context=context)
    assert graph.outputs == (ops.full(shape=(3, 3), value=True, dtype=torch.bool),)
    assert context.derived == {}


def test_other_constants_become_weights_without_inputs() -> None:
    context = Context()
    triangle = ops.le(reshape(arange(size=3), shape=(1, 3)), reshape(arange(size=3), shape=(3, 1)))
    graph = hoisted(triangle, context=context)
    assert graph.outputs[0].op is ops.weight
    assert torch.equal(evaluate([context.derived["derived.0"]], {})[0], torch.ones(3, 3, dtype=torch.bool).tril())


def test_zeros_of_both_signs_are_not_equal_elements() -> None:
    context = Context()
    hoisted(mul(arange(size=2, start=-1, dtype=F32), arange(size=2, start=0, dtype=F32)), context=context)
    assert list(context.derived) == ["derived.0"]


def test_constants_alone_stay() -> None:
    graph = graph_of(arange(size=4), ops.full(shape=(4,), value=1.0, dtype=F32), reshape(arange(size=4), shape=(2, 2)))
    assert hoist(graph, Context()) is graph


def test_what_grows_too_large_stays() -> None:
    a, b = weight("a", 4096, 1), weight("b", 1, 4096)
    graph = graph_of(mul(a, b))
    assert hoist(graph, Context()) is graph


def test_an_index_out_of_range_is_left_for_the_run() -> None:
    table = exp(arange(size=4, dtype=F32))
    graph = graph_of(ops.index(table, arange(size=3, start=7), dim=0))
    after = hoist(graph, Context())
    with pytest.raises(IndexError):
        interpret(after, [torch.randn(2, 4)], {})


def test_fuel_counts_each_weight() -> None:
    a, b = weight("a", 4, 4), weight("b", 4, 4)
    context = Context(fuel=Fuel(1))
    hoisted(linear(X, exp(a)), linear(X, exp(b)), context=context)
    assert list(context.derived.values()) == [exp(a)]


def test_large_graphs_take_linear_time_and_no_recursion() -> None:
    node, w = X, weight("w", 4)
    for i in range(3_000):
        w = add(w, weight(f"w{i}", 4))
        node = mul(node, exp(weight(f"v{i}", 4)))
    context = Context()
    hoisted(add(node, w), context=context)
    assert len(context.derived) == 3_001


def test_filters_whose_terms_move_are_stored_as_matrices() -> None:
    filters = weight("f", 8, 4, 2)
    taps_first = reshape(permute(filters, dims=(0, 2, 1)), shape=(8, 8))
    context = Context()
    hoisted(linear(ops.input(name="y", shape=(S, 8), dtype=F32), taps_first), context=context)
    assert context.derived == {"derived.0": taps_first}
    groups = reshape(permute(reshape(exp(filters), shape=(2, 4, 4, 2)), dims=(0, 3, 2, 1)), shape=(2, 8, 4))
    context = Context()
    hoisted(ops.matmul(ops.input(name="z", shape=(2, S, 8), dtype=F32), groups), context=context)
    assert context.derived == {"derived.0": groups}
