"""A rule that does not fire says where it came nearest, and why it stopped."""

from typing import Any

import torch

from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.ir.node import Node
from smelt.ir.ops import add, exp, mean, mul, rsqrt, scalar
from smelt.rewrites.context import Context
from smelt.rewrites.explain import RuleFate, fate_of, guard_text, made_by, nearest, where, why_not
from smelt.rewrites.log import Log
from smelt.rewrites.pipeline import run_pipeline
from smelt.rewrites.rule import Rule, rules_by_name
from smelt.rewrites.rules import RULES

RMS_NORM = rules_by_name(RULES)["rms-norm-of-rsqrt"]
X = ops.input(name="x", shape=(2, 3, 4), dtype=torch.float32)


def norm(axis: int) -> Node:
    squares = mean(mul(X, X), dims=(axis,), keepdim=True)
    return mul(X, rsqrt(add(squares, scalar(1e-6, torch.float32))))


def test_the_nearest_place_comes_first() -> None:
    graph = Graph([X], [mul(exp(X), norm(1))])
    (_, nearest), *_ = why_not(graph, RMS_NORM)
    assert str(nearest) == "dims is (1,), not (-1,), at mean(mul(x, x)) : f32[2, 1, 4]"
    assert why_not(graph, RMS_NORM, limit=1)[0][0] is norm(1)
    assert where(graph, RMS_NORM) == []


def test_the_places_that_fit() -> None:
    graph = Graph([X], [exp(norm(-1))])
    (found,) = where(graph, RMS_NORM)
    assert found.node is norm(-1)
    assert found.bindings == {"x": X, "eps": 1e-6}


def test_a_guard_that_refused_is_named() -> None:
    graph = Graph([X], [add(X, scalar(0.0, torch.float32))])
    ((_, refused),) = why_not(graph, rules_by_name(RULES)["add-zero"])
    assert refused.reason == "the guard of add-zero refused it"


# --- in a compilation -------------------------------------------------------------------------------------------------


def compiled(graph: Graph) -> tuple[Context, RuleFate]:
    context = Context()
    run_pipeline(graph, context)
    return context, fate_of(RMS_NORM, RULES, context.snapshots, context.log)


def test_the_fate_of_a_rule_tells_where_it_fired_and_where_it_nearly_did() -> None:
    _, fate = compiled(Graph([X], [norm(-1), norm(1)]))
    assert (fate.stage, fate.seen) == ("recognise", "recognise")
    assert [node.op for node in fate.fired] == [mul]
    assert len(fate.misses) >= 1
    miss = fate.misses[0]
    assert miss.node.op is mul
    assert miss.mismatch.reason == "dims is (1,), not (-1,)"
    assert 0 < miss.agreed < miss.operators == 6
    assert miss.guard == ""


def test_the_graph_before_the_pass_is_shown_where_nothing_is_left_after_it() -> None:
    twice = rules_by_name(RULES)["neg-neg"]
    context = Context()
    run_pipeline(Graph([X], [ops.sub(X, ops.neg(exp(X)))]), context)
    fate = fate_of(twice, RULES, context.snapshots, context.log)
    assert fate.seen == "captured"
    assert [miss.node for miss in fate.misses] == [ops.neg(exp(X))]


def test_a_guard_that_refused_is_quoted() -> None:
    rule = rules_by_name(RULES)["add-zero"]
    graph = Graph([X], [add(X, scalar(0.0, torch.float32))])
    (miss,) = fate_of(rule, {"canonicalise": [rule]}, {"canonicalise": graph}, Log()).misses
    assert miss.guard.startswith("is_integer(x.dtype), algebra.py:")
    assert miss.agreed == miss.operators
    assert miss.nearness > (1.0, 0)


def keeps_rows(x: Node) -> bool:
    """Whether the rows stay.

    And more.
    """
    return False


def test_the_text_of_guards() -> None:
    def rule(when: Any) -> Rule:
        return Rule(name="r", before=lambda x: exp(x), after=lambda x: exp(x), samples=[], when=when)

    assert guard_text(rule(None)) == ""
    assert guard_text(rule(keeps_rows)) == "keeps_rows: Whether the rows stay."
    made = eval("lambda x: x is None")  # of which there is no file
    assert guard_text(rule(made)) == "<string>:1"
    two = (lambda x: x is None, lambda x: x is not None)
    assert guard_text(rule(two[0])).startswith("test_explain.py:")  # which of the two is meant cannot be told


def test_the_operators_that_rules_make() -> None:
    assert "rms_norm" in made_by(RMS_NORM)
    assert "mul" not in made_by(RMS_NORM)
    made = {name for rules in RULES.values() for rule in rules for name in made_by(rule)}
    assert {"attention", "rope", "layer_norm", "rms_norm", "softmax", "gelu", "silu", "swiglu", "linear"} <= made


def test_the_nearest_miss_of_all_rules_that_make_an_operator() -> None:
    context, _ = compiled(Graph([X], [norm(1)]))
    miss = nearest("rms_norm", RULES, context.snapshots, context.log)
    assert miss is not None
    assert miss.rule is RMS_NORM
    assert nearest("rope", RULES, context.snapshots, context.log) is None
    assert nearest("no such operator", RULES, context.snapshots, context.log) is None
