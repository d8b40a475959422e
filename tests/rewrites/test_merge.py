"""Linear layers that read one input and meet before the next product become one."""

import torch

from smelt.ir import ops
from smelt.ir.graph import Graph, Mutation
from smelt.ir.interpret import interpret
from smelt.ir.node import Node
from smelt.ir.ops import add, concat, linear, mul, permute, relu, reshape, silu, slice_
from smelt.ir.types import SymbolRange, symbol
from smelt.rewrites.context import Context
from smelt.rewrites.log import Fuel
from smelt.rewrites.merge import merge_linears

F32 = torch.float32
S = symbol("s")
X = ops.input(name="x", shape=(2, S, 8), dtype=F32)


def weight(name: str, *shape: int) -> Node:
    return ops.weight(name=name, shape=shape, dtype=F32)


def layer(x: Node, name: str, size: int = 8, bias: bool = False) -> Node:
    operands = [weight(name, size, int(x.shape[-1]))] + [weight(f"{name}.bias", size)] * bias
    return linear(x, *operands)


def graph_of(*outputs: Node, mutations: tuple[Mutation, ...] = ()) -> Graph:
    return Graph([X], outputs, mutations, [SymbolRange(S)])


def heads(x: Node, count: int) -> Node:
    return permute(reshape(x, shape=(2, S, count, x.shape[-1] // count)), dims=(0, 2, 1, 3))


def self_attention(x: Node, name: str, biases: tuple[bool, bool, bool] = (True, True, True)) -> Node:
    q = heads(layer(x, f"{name}.q", 8, biases[0]), 2)
    k = heads(layer(x, f"{name}.k", 4, biases[1]), 1)
    v = heads(layer(x, f"{name}.v", 4, biases[2]), 1)
    return reshape(permute(ops.attention(q, k, v, scale=0.5), dims=(0, 2, 1, 3)), shape=(2, S, 8))


def products(graph: Graph) -> list[int]:
    """The widths of the graph's linear layers, in order."""
    return [int(node.shape[-1]) for node in graph.nodes if node.op is ops.linear]


def check_values(before: Graph, after: Graph) -> None:
    weights = {str(w.attrs["name"]): torch.randn(*w.shape, dtype=torch.float64) for w in before.weights()}
    x = [torch.randn(2, 3, 8)]
    expected, found = (interpret(g, x, weights, dtype=torch.float64).outputs for g in (before, after))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_query_key_and_value_become_one() -> None:
    graph, context = graph_of(self_attention(X, "attn")), Context()
    after = merge_linears(graph, context)
    assert products(after) == [16]
    parts = [node for node in after.nodes if node.op is slice_]
    assert [(p.attrs["start"], p.attrs["stop"]) for p in parts] == [(0, 8), (8, 12), (12, 16)]
    assert context.log.counts() == {"merge-linears": 1}
    check_values(graph, after)


def test_gate_and_up_become_one() -> None:
    graph = graph_of(layer(mul(silu(layer(X, "gate")), layer(X, "up")), "down"))
    after = merge_linears(graph, Context())
    assert products(after) == [16, 8]
    check_values(graph, after)


def test_layers_without_a_bias_get_one_that_changes_nothing() -> None:
    graph = graph_of(self_attention(X, "attn", biases=(True, False, True)))
    after = merge_linears(graph, Context())
    (merged,) = (node for node in after.nodes if node.op is ops.linear)
    biases = merged.inputs[2]
    assert biases.op is concat
    assert biases.inputs[1] is ops.full(shape=(4,), value=-0.0, dtype=F32)
    check_values(graph, after)


def test_layers_that_never_meet_stay_apart() -> None:
    graph = graph_of(relu(layer(X, "a")), relu(layer(X, "b")))
    assert merge_linears(graph, Context()) is graph


def test_layers_that_meet_behind_a_product_stay_apart() -> None:
    graph = graph_of(add(layer(relu(layer(X, "a")), "c"), layer(relu(layer(X, "b")), "d")))
    assert merge_linears(graph, Context()) is graph


def test_keys_and_values_of_one_memory_are_merged_for_each_attention() -> None:
    y = X
    for i in range(3):
        q = heads(layer(y, f"{i}.q"), 2)
        k, v = (heads(layer(X, f"{i}.{name}"), 2) for name in "kv")
        mixed = reshape(permute(ops.attention(q, k, v, scale=0.5), dims=(0, 2, 1, 3)), shape=(2, S, 8))
        y = layer(add(mixed, y), f"{i}.o")
    graph = graph_of(y)
    after = merge_linears(graph, Context())
    assert products(after) == [24, 8, 8, 16, 8, 8, 16, 8]
    check_values(graph, after)


def test_layers_above_merged_layers_are_merged_too() -> None:
    graph = graph_of(self_attention(self_attention(X, "first"), "second"))
    after = merge_linears(graph, Context())
    assert products(after) == [16, 16]
    check_values(graph, after)


def test_weights_that_change_are_left_alone() -> None:
    gate = layer(X, "gate")
    changed = gate.inputs[1]
    graph = graph_of(mul(silu(gate), layer(X, "up")), mutations=(Mutation(changed, relu(changed)),))
    assert merge_linears(graph, Context()) is graph


def test_fuel_and_origin() -> None:
    graph = graph_of(self_attention(self_attention(X, "one"), "two"))
    for node in graph.nodes:
        node.origin.module = "encoder"
    assert merge_linears(graph, Context(fuel=Fuel(0))) is graph
    after = merge_linears(graph, Context(fuel=Fuel(1)))
    assert products(after) == [16, 8, 4, 4]
    assert all(node.origin.module == "encoder" for node in after.nodes if node.op in (ops.linear, slice_))
