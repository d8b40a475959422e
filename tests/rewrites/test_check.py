"""Checks of sound rewrites raise no alarm, and what they are made of: neighbourhoods, sizes, sampled values."""

import pytest
import torch

from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.ir.types import SymbolRange, symbol
from smelt.rewrites.check import RuleChecker
from smelt.rewrites.context import Context
from smelt.rewrites.fusion import fuse
from smelt.rewrites.inline import inline
from smelt.rewrites.log import PLACE, Application, Fuel
from smelt.rewrites.neighbourhood import Neighbourhoods, first_differences
from smelt.rewrites.pipeline import run_pipeline
from smelt.rewrites.rule import Domain
from smelt.rewrites.trial import Style, draw_inputs, index_limits, size_choices, small_sizes

from .test_random_graphs import Builder, S, T

F32, I64 = torch.float32, torch.int64
A, B, W = (ops.input(name=name, shape=(3, 3), dtype=F32) for name in "abw")


@pytest.mark.parametrize("block", range(4))
def test_no_alarm_on_random_graphs(block: int) -> None:
    checked = 0
    for seed in range(1000 + 20 * block, 1020 + 20 * block):
        builder = Builder(seed)
        builder.grow(25)
        graph = Graph(builder.inputs, builder.nodes[-2:], symbols=[SymbolRange(S, 1), SymbolRange(T, 1)])
        context = Context()
        context.observe = checker = RuleChecker(graph, context.rules)
        after = run_pipeline(graph, context)
        checked += checker.verdicts.checked
        assert inline(fuse(after)) is after
    assert checked > 50


# --- neighbourhoods ---------------------------------------------------------------------------------------------------


def test_what_both_sides_share_becomes_an_input() -> None:
    shared = ops.exp(ops.matmul(A, B))
    pair = Neighbourhoods().pair(ops.add(shared, ops.neg(W)), ops.sub(shared, W))
    assert pair.cut == (shared, W)
    assert [n.op.name for n in pair.before.nodes if n.op is not ops.input] == ["neg", "add"]
    assert [n.op.name for n in pair.after.nodes if n.op is not ops.input] == ["sub"]


def test_a_replacement_may_be_an_operand_or_hold_what_it_replaces() -> None:
    pair = Neighbourhoods().pair(ops.abs(ops.exp(A)), ops.exp(A))
    assert pair.cut == (ops.exp(A),)
    pair = Neighbourhoods().pair(ops.exp(A), ops.abs(ops.exp(A)))
    assert pair.before.outputs == pair.before.inputs


def test_constants_are_kept_as_they_are() -> None:
    mask = ops.le(ops.arange(size=3, dtype=I64), ops.scalar(1, I64))
    pair = Neighbourhoods().pair(ops.where(mask, A, B), ops.where(mask, B, A))
    assert pair.cut == (A, B)


def test_more_can_be_kept() -> None:
    square = ops.mul(A, A)
    around = Neighbourhoods()
    assert around.pair(ops.abs(square), square).cut == (square,)
    assert around.pair(ops.abs(square), square, keep=2).cut == (A,)


def test_what_one_side_drops_is_cut_at_the_depth_limit() -> None:
    deep = A
    for _ in range(40):
        deep = ops.sin(deep)
    pair = Neighbourhoods().pair(ops.mul(deep, B), B, depth=5)
    assert len(pair.before.nodes) <= 8


def test_a_deep_graph_needs_no_recursion() -> None:
    deep = A
    for _ in range(20_000):
        deep = ops.sin(deep)
    assert Neighbourhoods().pair(ops.add(deep, B), ops.add(B, deep)).cut == (deep, B)


def test_the_lowest_differences_are_found() -> None:
    before, after = ops.exp(A), ops.sin(A)
    assert first_differences([ops.neg(ops.add(before, B))], [ops.neg(ops.add(after, B))]) == [(before, after)]
    assert first_differences([ops.neg(A)], [ops.neg(A)]) == []
    one, other = ops.softmax(before, dim=0), ops.softmax(after, dim=1)
    assert first_differences([one], [other]) == [(one, other)]


# --- sampled sizes and values -----------------------------------------------------------------------------------------


def test_sizes_are_small_in_range_and_guarded() -> None:
    s, t = symbol("s"), symbol("t")
    ranges = (SymbolRange(s, 5), SymbolRange(t, 0, 1))
    for sizes in size_choices(ranges, lambda sizes: sizes[s] % 4 == 0):
        assert sizes[s] in (8, 12, 16, 20)
        assert sizes[t] in (0, 1)
    assert small_sizes(ranges, lambda sizes: False) is None


def test_integers_that_pick_are_in_range() -> None:
    table = ops.input(name="table", shape=(7, 4), dtype=F32)
    ids = ops.input(name="ids", shape=(50,), dtype=I64)
    graph = Graph([table, ids], [ops.embedding(table, ops.reshape(ids, shape=(5, 10)))])
    assert index_limits(graph, {})[ids] == 7
    (_, drawn) = draw_inputs(graph, {}, Style())
    assert set(drawn.tolist()) == set(range(7))


def test_edge_values_and_domains() -> None:
    graph = Graph([ops.input(name="x", shape=(400,), dtype=F32)], [])
    (plain,) = draw_inputs(graph, {}, Style())
    assert plain.isfinite().all()
    assert (plain < 0).any()
    (edges,) = draw_inputs(graph, {}, Style(edges=True))
    assert edges.isnan().any()
    assert edges.isinf().any()
    (positive,) = draw_inputs(graph, {}, Style(Domain.POSITIVE))
    assert (positive > 0).all()
    (wide,) = draw_inputs(graph, {}, Style(widen=True))
    assert wide.dtype == torch.float64


def test_the_sign_of_a_zero_that_pytorch_is_free_in_is_no_fault() -> None:
    """``minimum(0.0, -0.0)`` is either."""
    x = ops.input(name="x", shape=(1, 4), dtype=F32)
    zero = ops.full(shape=(2, 1, 1), value=0.0, dtype=F32)
    graph = Graph([x], [ops.minimum(zero, x)])
    context = Context()
    context.observe = RuleChecker(graph, context.rules)
    run_pipeline(graph, context)
    assert context.log.counts()["minimum-constant-right"] == 1


# --- the log ----------------------------------------------------------------------------------------------------------


def test_fusions_are_logged_in_order() -> None:
    context = Context()
    graph = Graph([A, B], [ops.exp(ops.add(A, B))])
    fuse(graph, context.fuel, None, context.log)
    (application,) = context.log
    assert str(application) == "1 fuse: add(a, b) : f32[3, 3] -> exp(add(a, b)) : f32[3, 3]"
    assert application.replaced == ()
    assert len(fuse(graph, Fuel(0)).nodes) == 4


def test_a_merge_replaces_every_layer_of_its_group() -> None:
    also = ((B, W),)
    assert Application(1, "merge-linears", A, B, also).replaced == ((A, B), (B, W))
    assert Application(1, PLACE, A, A).replaced == ()
