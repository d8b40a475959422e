"""Text and meaning of random graphs."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.ir import ops
from smelt.ir.graph import Graph, Mutation
from smelt.ir.interpret import interpret
from smelt.ir.node import Node, Origin
from smelt.ir.text import parse_graph, print_graph
from smelt.ir.types import SymbolRange, symbol
from smelt.ir.verify import verify

S, T = symbol("s"), symbol("t")
SHAPES = [(), (S,), (S, T), (T, S), (4,), (S, 4), (1, 2 * T), (S // 2, T + 1)]
NAMES = st.text(max_size=6)
FLOATS = st.floats(width=32)


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """A graph of up to a dozen nodes over two symbols."""
    inputs = draw(
        st.lists(
            st.builds(
                lambda name, shape: ops.input(name=name, shape=shape, dtype=torch.float32),
                NAMES,
                st.sampled_from(SHAPES),
            ),
            min_size=1,
            max_size=3,
            unique_by=lambda node: node.attrs["name"],
        )
    )
    weight = ops.weight(name=draw(NAMES), shape=draw(st.sampled_from([(4,), (2, 4)])), dtype=torch.float32)
    nodes: list[Node] = [*inputs, weight]
    for _ in range(draw(st.integers(0, 10))):
        nodes.append(draw(st.sampled_from(STEPS))(draw, draw(st.sampled_from(nodes))))
        nodes[-1].keep_origin(Origin(module=draw(NAMES)))
    outputs = draw(st.lists(st.sampled_from(nodes), max_size=3))
    targets = draw(st.lists(st.sampled_from([*inputs, weight]), max_size=2, unique=True))
    mutations = [Mutation(x, draw(st.sampled_from([n for n in nodes if n.type == x.type]))) for x in targets]
    return Graph(inputs, outputs, mutations, [SymbolRange(S, draw(st.integers(0, 2)), 9), SymbolRange(T)])


def _scaled(draw: st.DrawFn, x: Node) -> Node:
    return ops.mul(x, ops.scalar(draw(FLOATS), torch.float32))


def _clamped(draw: st.DrawFn, x: Node) -> Node:
    return ops.clamp(x, low=draw(st.none() | FLOATS), high=draw(st.none() | FLOATS))


def _reduced(draw: st.DrawFn, x: Node) -> Node:
    dims = draw(st.lists(st.integers(0, x.type.rank - 1), unique=True)) if x.type.rank else ()
    return ops.sum(x, dims=tuple(dims), keepdim=draw(st.booleans()))


def _flat(draw: st.DrawFn, x: Node) -> Node:
    return ops.reshape(x, shape=(x.type.numel,))


def _turned(draw: st.DrawFn, x: Node) -> Node:
    return ops.permute(x, dims=tuple(draw(st.permutations(range(x.type.rank)))))


def _sized(draw: st.DrawFn, x: Node) -> Node:
    return ops.add(x, ops.cast(ops.scalar(draw(st.sampled_from([S, S * T, T // 2])), torch.int64), dtype=torch.float32))


def _doubled(draw: st.DrawFn, x: Node) -> Node:
    return ops.concat(x, x, dim=draw(st.integers(0, x.type.rank - 1))) if x.type.rank else x


def _fused(draw: st.DrawFn, x: Node) -> Node:
    inner = ops.input(name="0", shape=x.shape, dtype=x.dtype)
    region = Graph([inner], [ops.exp(inner), ops.add(inner, inner)])
    order = tuple(draw(st.permutations(range(x.type.rank))))
    return ops.item(ops.fused(x, region=region, layouts=(order, order)), index=draw(st.integers(0, 1)))


STEPS = [_scaled, _clamped, _reduced, _flat, _turned, _sized, _doubled, _fused]


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_text_is_read_back_to_the_same_object(graph: Graph) -> None:
    assert parse_graph(print_graph(graph)) is graph
    assert parse_graph(print_graph(graph, origins=True)) is graph


@settings(max_examples=50, deadline=None)
@given(graphs())
def test_random_graphs_are_valid_and_run(graph: Graph) -> None:
    verify(graph)
    sizes = {S: 3, T: 2}
    tensors = [torch.randn([d if isinstance(d, int) else int(d.subs(sizes)) for d in x.shape]) for x in graph.inputs]
    before = [x.clone() for x in tensors]
    weights = {str(w.attrs["name"]): torch.randn(w.shape) for w in graph.weights()}
    results = interpret(graph, tensors, weights, sizes=sizes)
    assert len(results.outputs) == len(graph.outputs)
    assert len(results.mutations) == len(graph.mutations)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
