"""The pipeline: its passes in order, snapshots, records, checks."""

import pytest
import torch

from smelt.ir import ops
from smelt.ir.errors import GraphError, SmeltError
from smelt.ir.graph import Graph
from smelt.ir.node import Node
from smelt.ir.ops import add, exp, mul, neg, scalar
from smelt.ir.types import SymbolRange, symbol
from smelt.rewrites.context import Context
from smelt.rewrites.log import Fuel
from smelt.rewrites.pipeline import PIPELINE, Pass, run_pipeline
from smelt.rewrites.rule import Rule
from smelt.rewrites.rules import RULES

F32 = torch.float32
S = symbol("s")


def mlp() -> Graph:
    """Two linear layers written as products, with a hand-written silu between."""
    x = ops.input(name="x", shape=(S, 4), dtype=F32)
    first, second = (ops.weight(name=name, shape=shape, dtype=F32) for name, shape in (("a", (8, 4)), ("b", (2, 8))))
    h = ops.matmul(x, ops.permute(first, dims=(1, 0)))
    h = mul(mul(h, ops.sigmoid(h)), scalar(1.0, F32))
    return Graph([x], [ops.matmul(h, ops.permute(second, dims=(1, 0)))], symbols=[SymbolRange(S)])


def names(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes if node.op.name not in ("input", "weight")]


def test_the_passes_and_their_order() -> None:
    assert [p.name for p in PIPELINE][:5] == ["canonicalise", "recognise", "simplify", "merge", "hoist"]
    assert all(p.doc for p in PIPELINE)


def test_a_model_goes_through_all_passes() -> None:
    context = Context(verify=True)
    assert names(run_pipeline(mlp(), context)) == ["linear", "silu", "linear"]
    assert context.log.counts()["linear-of-matmul"] == 2


def test_every_stage_is_kept() -> None:
    graph, context = mlp(), Context()
    result = run_pipeline(graph, context)
    assert list(context.snapshots) == ["captured", *(p.name for p in PIPELINE)]
    assert context.snapshots["captured"] is graph
    assert context.snapshots[PIPELINE[-1].name] is result
    assert "mul" not in names(context.snapshots["recognise"])
    assert "sigmoid" in names(context.snapshots["canonicalise"])


def test_records_say_what_a_pass_did() -> None:
    context = Context()
    run_pipeline(mlp(), context)
    by_name = {record.name: record for record in context.records}
    assert by_name["canonicalise"].changed
    assert by_name["canonicalise"].applications == 1
    assert not by_name["merge"].changed
    assert all(record.seconds >= 0 for record in context.records)
    assert "recognise: " in str(by_name["recognise"])
    assert str(by_name["merge"]).startswith("merge: no change, ")


def test_it_stops_where_it_is_told() -> None:
    graph = mlp()
    assert run_pipeline(graph, Context(), stop_after="captured") is graph
    context = Context()
    result = run_pipeline(graph, context, stop_after="recognise")
    assert list(context.snapshots) == ["captured", "canonicalise", "recognise"]
    assert context.snapshots["recognise"] is result
    with pytest.raises(SmeltError, match="there is no pass 'fusion': the passes are captured, canonicalise"):
        run_pipeline(graph, Context(), stop_after="fusion")


def test_without_fuel_nothing_changes() -> None:
    graph = mlp()
    assert run_pipeline(graph, Context(fuel=Fuel(0))) is graph


def test_each_unit_of_fuel_is_one_application() -> None:
    context = Context()
    run_pipeline(mlp(), context)
    for limit in range(len(context.log)):
        partial = Context(fuel=Fuel(limit), verify=True)
        run_pipeline(mlp(), partial)
        assert [a.rule for a in partial.log] == [a.rule for a in context.log][:limit]


def test_rules_of_the_user_run_with_the_others() -> None:
    rule = Rule(name="exp-of-neg", before=lambda x: exp(neg(x)), after=lambda x: ops.reciprocal(exp(x)), samples=[])
    rules = {**RULES, "recognise": (*RULES["recognise"], rule)}
    x = ops.input(name="x", shape=(3,), dtype=F32)
    context = Context(rules=rules)
    assert names(run_pipeline(Graph([x], [exp(neg(x))]), context)) == ["exp", "reciprocal"]


def broken(change: Node) -> Pass:
    return Pass("broken", lambda graph, context: Graph(graph.inputs, [change], symbols=graph.symbols), "a broken pass")


def test_a_pass_that_breaks_the_graph_is_named() -> None:
    x = ops.input(name="x", shape=(3,), dtype=F32)
    other = ops.input(name="other", shape=(3,), dtype=F32)
    graph = Graph([x], [exp(x)])
    with pytest.raises(GraphError, match="after the pass broken: "):
        run_pipeline(graph, Context(verify=True), passes=[broken(exp(other))])
    with pytest.raises(GraphError, match="the pass broken changed what the graph takes or returns"):
        run_pipeline(graph, Context(verify=True), passes=[broken(ops.sum(x))])
    assert run_pipeline(graph, Context(), passes=[broken(add(x, x))]).outputs == (add(x, x),)


def test_a_graph_that_is_broken_before_the_first_pass() -> None:
    other = ops.input(name="other", shape=(3,), dtype=F32)
    with pytest.raises(GraphError):
        run_pipeline(Graph([], [exp(other)]), Context(verify=True))
