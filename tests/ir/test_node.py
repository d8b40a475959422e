"""Nodes and graphs as values: interning, immutability, what is freed, threads, and depth."""

from __future__ import annotations

import gc
import pickle
import sys
import threading
import time
import weakref

import pytest
import torch

from smelt.ir import graph as graph_module
from smelt.ir import node as node_module
from smelt.ir import ops
from smelt.ir.graph import Graph, Mutation
from smelt.ir.interpret import interpret
from smelt.ir.node import Node, Origin, Var, attr_key, topological, wildcard
from smelt.ir.text import parse_graph, print_graph
from smelt.ir.types import SymbolRange, symbol
from smelt.ir.verify import verify

F32 = torch.float32
S = symbol("s")
DEPTH = 10_000


def x(name: str = "x") -> Node:
    return ops.input(name=name, shape=(S, 4), dtype=F32)


# --- identity ---------------------------------------------------------------------------------------------------------


def test_equal_nodes_are_one_object() -> None:
    assert x() is x()
    assert ops.add(x(), x("y")) is ops.add(x(), x("y"))
    assert ops.softmax(x(), dim=-1) is ops.softmax(x(), dim=1)
    assert ops.add(x(), x("y")) is not ops.add(x("y"), x())


def test_equal_graphs_are_one_object() -> None:
    made = [Graph([x()], (y for y in [ops.neg(x())]), [Mutation(x(), x())], [SymbolRange(S)]) for _ in range(2)]
    assert made[0] is made[1]
    assert Graph([x()], [x()]) is not Graph([x()], [x(), x()])
    assert Graph([x()], [x()], (), [SymbolRange(S, 1)]) is not Graph([x()], [x()], (), [SymbolRange(S, 2)])


def test_ranges_have_no_order() -> None:
    a, b = SymbolRange(symbol("a")), SymbolRange(symbol("b"))
    assert Graph([], [], (), [a, b]) is Graph([], [], (), [b, a])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, True),
        (1, 1.0),
        (0, False),
        (0.0, -0.0),
        (0.0, False),
        ((1,), (True,)),
        ((0.0,), (-0.0,)),
        ("1", 1),
        (None, "none"),
        (float("inf"), float("-inf")),
        (("float", (0.0).hex()), 0.0),
        (("tuple",), ()),
    ],
    ids=repr,
)
def test_values_that_python_calls_equal_are_told_apart(one: object, other: object) -> None:
    assert attr_key(one) != attr_key(other)
    calls = [ops.aten_call(target="t", args=value, types=(x().type,)) for value in (one, other)]
    assert calls[0] is not calls[1]


def test_every_nan_is_one() -> None:
    nans = [float("nan"), -float("nan"), float("inf") - float("inf")]
    assert len({ops.scalar(nan, F32) for nan in nans}) == 1


def test_lists_and_numbers_in_normal_form() -> None:
    assert ops.permute(x(), dims=[1, 0]) is ops.permute(x(), dims=(-1, -2))
    assert ops.reshape(x(), shape=(S * 2 + S * 2,)) is ops.reshape(x(), shape=[4 * S])
    assert type(ops.expand(ops.scalar(1, F32), shape=torch.Size([2])).attrs["shape"]) is tuple


def test_nodes_and_graphs_are_immutable() -> None:
    graph = Graph([x()], [x()])
    for thing, name in ((x(), "op"), (x(), "anything"), (graph, "inputs"), (graph, "anything")):
        with pytest.raises(AttributeError, match="immutable"):
            setattr(thing, name, None)
    with pytest.raises(AttributeError, match="immutable"):
        del x().inputs
    with pytest.raises(TypeError):
        x().attrs["name"] = "y"  # type: ignore[index]


def test_pickling_is_refused_with_advice() -> None:
    for thing in (x(), Graph([x()], [x()])):
        with pytest.raises(TypeError, match="print_graph"):
            pickle.dumps(thing)


def test_the_first_origin_is_kept_and_completed() -> None:
    y = ops.tanh(x("fresh"))
    y.keep_origin(Origin(module="first"))
    assert ops.tanh(x("fresh")).keep_origin(Origin("a.py:1", "second", "rule")).origin == Origin(
        "a.py:1", "first", "rule"
    )


def test_patterns() -> None:
    pattern = ops.mul(ops.softmax(Var("a"), dim=Var("d")), Var("a"))
    assert pattern is ops.mul(ops.softmax(wildcard("a"), dim=Var("d")), wildcard("a"))
    assert pattern.inputs[0].inputs[0] is pattern.inputs[1]
    with pytest.raises(TypeError, match="not one tensor"):
        _ = pattern.shape


# --- graphs -----------------------------------------------------------------------------------------------------------


def test_nodes_are_in_order_and_users_are_their_readers() -> None:
    a, b = x("a"), x("b")
    w = ops.weight(name="state", shape=(S, 4), dtype=F32)
    total = ops.add(ops.exp(a), ops.add(ops.exp(a), a))
    graph = Graph([a, b], [total], [Mutation(w, a)])
    assert graph.nodes == (a, b, ops.exp(a), ops.add(ops.exp(a), a), total, w)
    assert graph.users[ops.exp(a)] == (ops.add(ops.exp(a), a), total)
    assert graph.users[b] == graph.users[total] == graph.users[w] == ()
    assert graph.weights() == (w,)
    assert graph.roots == (total, a)


def test_rebuild() -> None:
    graph = Graph([x()], [ops.exp(ops.neg(x()))], [Mutation(x(), ops.neg(x()))])
    assert graph.rebuild(lambda node, operands: node.with_inputs(operands)) is graph
    changed = graph.rebuild(lambda n, operands: ops.abs(*operands) if n.op is ops.neg else n.with_inputs(operands))
    assert changed is Graph([x()], [ops.exp(ops.abs(x()))], [Mutation(x(), ops.abs(x()))])


# --- memory and threads -----------------------------------------------------------------------------------------------


@pytest.fixture
def tables() -> list[int]:
    """The sizes of the tables of nodes and graphs before the test, for comparison."""
    return sizes()


def sizes() -> list[int]:
    gc.collect()
    return [len(node_module._INTERNED), len(graph_module._INTERNED)]


def test_dead_nodes_leave_the_tables(tables: list[int]) -> None:
    def use() -> weakref.ref[Node]:
        y = ops.exp(ops.weight(name="short-lived", shape=(3,), dtype=F32))
        graph = Graph([], [y], (), [SymbolRange(S)])
        assert graph.users
        assert parse_graph(print_graph(graph)) is graph
        verify(graph)
        interpret(graph, [], {"short-lived": torch.ones(3)})
        return weakref.ref(y)

    assert use()() is None
    assert sizes() == tables


def test_a_dead_node_is_made_again(tables: list[int]) -> None:
    for _ in range(3):
        assert ops.exp(ops.weight(name="again", shape=(), dtype=F32)).inputs[0].attrs["name"] == "again"
    assert sizes() == tables


def test_threads_agree_on_one_object() -> None:
    count, rounds = 8, 200
    found: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    keep: list[object] = []
    barrier = threading.Barrier(count)

    def work(mine: list[tuple[int, int]]) -> None:
        for i in range(rounds):
            barrier.wait()
            node = ops.exp(ops.weight(name=f"shared {i}", shape=(), dtype=F32))
            graph = Graph([], [node])
            keep.append(graph)
            mine.append((id(node), id(graph)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(mine,)) for mine in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert all(mine == found[0] for mine in found)
    assert len(found[0]) == rounds


# --- depth ------------------------------------------------------------------------------------------------------------


def chain(depth: int) -> Graph:
    node = x()
    for i in range(depth):
        node = ops.add(node, x()) if i % 2 else ops.tanh(node)
    return Graph([x()], [node], (), [SymbolRange(S, 1)])


def test_ten_thousand_nodes_deep(tables: list[int]) -> None:
    assert sys.getrecursionlimit() <= 1000 + 200, "this is about the default limit"
    start = time.perf_counter()
    graph = chain(DEPTH)
    assert len(graph.nodes) == DEPTH + 1
    assert sum(map(len, graph.users.values())) == DEPTH + DEPTH // 2
    assert chain(DEPTH) is graph
    assert graph.rebuild(lambda node, operands: node.with_inputs(operands)) is graph
    assert parse_graph(print_graph(graph, origins=True)) is graph
    verify(graph)
    for dtype in (None, torch.float64):
        assert interpret(graph, [torch.full((1, 4), 0.1)], {}, dtype=dtype).outputs[0].shape == (1, 4)
    repr(graph.outputs[0])
    del graph
    assert sizes() == tables
    assert time.perf_counter() - start < 30


def test_ten_thousand_nodes_deep_in_a_region(tables: list[int]) -> None:
    inner = node = ops.input(name="0", shape=(S, 4), dtype=F32)
    for _ in range(DEPTH):
        node = ops.neg(ops.abs(node))
    fused = ops.fused(x(), region=Graph([inner], [node], (), [SymbolRange(S, 1)]), layouts=((0, 1),))
    graph = Graph([x()], [fused], (), [SymbolRange(S, 1)])
    assert parse_graph(print_graph(graph)) is graph
    verify(graph)
    assert interpret(graph, [torch.ones(1, 4)], {}).outputs[0].tolist() == [[-1] * 4]
    del graph, fused, node, inner
    assert sizes() == tables


def test_shared_operands_are_visited_once() -> None:
    node = x()
    for _ in range(200):
        node = ops.add(node, node)
    assert len(list(topological([node, node]))) == 201
    graph = Graph([x()], [node], (), [SymbolRange(S)])
    assert parse_graph(print_graph(graph)) is graph
    verify(graph)
