"""The driver: fixpoint, order, fuel, log, origin, and what it does about rules that are wrong."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from smelt.ir import ops
from smelt.ir.graph import Graph, Mutation
from smelt.ir.node import Node, OpDef
from smelt.ir.ops import add, exp, mul, neg, scalar, sub
from smelt.rewrites.driver import RuleSet, rewrite
from smelt.rewrites.log import Fuel, Log
from smelt.rewrites.pattern import constant
from smelt.rewrites.rule import Rule, RuleError, rules_by_name
from smelt.rewrites.rules import RULES
from smelt.rewrites.sample import shapes

F32 = torch.float32
BY_NAME = rules_by_name(RULES)
CANONICAL = RuleSet(RULES["canonicalise"])


def tensor(name: str, *shape: int) -> Node:
    return ops.input(name=name, shape=shape, dtype=F32)


def rule(name: str, before: object, after: object) -> Rule:
    return Rule(name=name, before=before, after=after, samples=[shapes("n")])  # type: ignore[arg-type]


def one(x: Node) -> Node:
    return mul(x, scalar(1.0, F32))


def test_it_rewrites_until_no_rule_fits() -> None:
    x = tensor("x", 3)
    graph = Graph([x], [neg(neg(one(neg(neg(one(x))))))])
    assert rewrite(graph, CANONICAL).outputs == (x,)


def test_a_replacement_is_rewritten_too() -> None:
    # x / 1 becomes neg(neg(x) * 1), whose inside and outside both go on
    start = rule("start", lambda x: ops.div(x, constant(1)), lambda x: neg(neg(one(x))))
    x = tensor("x", 3)
    log = Log()
    rules = RuleSet([start, BY_NAME["neg-neg"], BY_NAME["mul-one"]])
    assert rewrite(Graph([x], [ops.div(x, scalar(1.0, F32))]), rules, log=log).outputs == (x,)
    assert [a.rule for a in log] == ["start", "mul-one", "neg-neg"]


def test_rules_are_tried_in_their_order() -> None:
    first = rule("first", lambda x: neg(x), lambda x: exp(x))
    second = rule("second", lambda x: neg(x), lambda x: ops.abs(x))
    x = tensor("x", 3)
    assert rewrite(Graph([x], [neg(x)]), RuleSet([first, second])).outputs == (exp(x),)
    assert rewrite(Graph([x], [neg(x)]), RuleSet([second, first])).outputs == (ops.abs(x),)


def test_a_graph_that_no_rule_fits_is_the_same_object() -> None:
    x = tensor("x", 3)
    graph = Graph([x], [exp(x)])
    assert rewrite(graph, CANONICAL) is graph


def test_mutations_are_rewritten_and_their_targets_are_not() -> None:
    x, w = tensor("x", 3), ops.weight(name="w", shape=(3,), dtype=F32)
    graph = Graph([x], [one(x)], [Mutation(w, one(add(w, x)))])
    result = rewrite(graph, CANONICAL)
    assert result.outputs == (x,)
    assert result.mutations == (Mutation(w, add(w, x)),)


def test_deep_graphs_take_no_recursion_and_work_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: Counter[int] = Counter()
    of = RuleSet.of

    def counted(rules: RuleSet, op: OpDef) -> Sequence[Rule]:
        tried[depth] += 1
        return of(rules, op)

    monkeypatch.setattr(RuleSet, "of", counted)
    for depth in (5_000, 10_000):
        x = node = tensor(f"x{depth}", 3)
        for _ in range(depth):
            node = exp(one(node))
        assert len(rewrite(Graph([x], [node]), CANONICAL).nodes) == depth + 1
    assert tried[10_000] <= 2 * tried[5_000] <= 8 * 5_000


def test_fuel_ends_the_rewriting() -> None:
    x = tensor("x", 3)
    node = x
    for _ in range(5):
        node = exp(one(node))
    graph = Graph([x], [node])
    for limit in range(6):
        fuel, log = Fuel(limit), Log()
        result = rewrite(graph, CANONICAL, fuel, log)
        assert len(log) == fuel.used == limit
        assert sum(n.op is ops.mul for n in result.nodes) == 5 - limit
    assert len(rewrite(graph, CANONICAL, Fuel(99)).nodes) == 6


def test_bisection_finds_the_application_that_breaks_a_result() -> None:
    wrong = rule("wrong", lambda x, y: sub(x, y), lambda x, y: sub(y, neg(neg(x))))
    x, y = tensor("x", 3), tensor("y", 3)
    graph = Graph([x, y], [one(exp(one(sub(one(x), one(y)))))])
    rules = RuleSet([wrong, BY_NAME["mul-one"]])

    def is_right(limit: int) -> bool:
        output = rewrite(graph, rules, Fuel(limit)).outputs[0]
        return not any(n.op is ops.sub and y in n.inputs[:1] for n in Graph([x, y], [output]).nodes)

    low, high = 0, 5
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if is_right(middle) else (low, middle)
    log = Log()
    rewrite(graph, rules, Fuel(low), log)
    assert log.applications[-1].rule == "wrong"
    assert log.applications[-1].number == low


def test_the_log_says_what_was_replaced_and_where() -> None:
    x = tensor("x", 3)
    node = one(x)
    node.origin.module, node.origin.source = "encoder.layer.0", "model.py:12"
    log = Log()
    rewrite(Graph([x], [exp(node)]), CANONICAL, log=log)
    (application,) = log
    assert str(application) == "1 mul-one: mul(x, 1.0) : f32[3] -> x : f32[3]  # encoder.layer.0"
    assert application.origin.source == "model.py:12"
    assert log.counts() == {"mul-one": 1}


def test_replacements_take_the_place_of_what_they_replace() -> None:
    x, y = tensor("p", 7), tensor("q", 7)
    node = add(x, neg(y))
    node.origin.module, node.origin.source = "mlp.act", "model.py:7"
    result = rewrite(Graph([x, y], [exp(node)]), CANONICAL)
    made = result.outputs[0].inputs[0]
    assert made.op is ops.sub
    assert (made.origin.module, made.origin.source, made.origin.made_by) == ("mlp.act", "model.py:7", "add-neg")
    assert y.origin.made_by == ""


def test_nodes_above_a_replacement_keep_their_origin() -> None:
    x = tensor("r", 3)
    top = exp(one(x))
    top.origin.source, top.origin.module = "model.py:30", "head"
    result = rewrite(Graph([x], [top]), CANONICAL)
    assert result.outputs[0].origin.source == "model.py:30"
    assert result.outputs[0].origin.made_by == ""


def test_another_type_is_an_error_that_names_the_rule() -> None:
    narrow = rule("narrow", lambda x: exp(x), lambda x: ops.sum(x))
    x = tensor("x", 3)
    with pytest.raises(
        RuleError, match=r"rule narrow replaced exp\(x\) : f32\[3\] by another type: sum\(x\) : f32\[\]"
    ):
        rewrite(Graph([x], [exp(x)]), RuleSet([narrow]))


def test_a_replacement_that_is_no_node_is_an_error() -> None:
    nothing = rule("nothing", lambda x: exp(x), lambda x: None)
    x = tensor("x", 3)
    with pytest.raises(RuleError, match="rule nothing: `after` must build a node, not None"):
        rewrite(Graph([x], [exp(x)]), RuleSet([nothing]))


def test_a_replacement_that_cannot_be_built_is_an_error_that_names_the_rule() -> None:
    broken = rule("broken", lambda x: exp(x), lambda x: ops.permute(x, dims=(1, 0)))
    x = tensor("x", 3)
    with pytest.raises(RuleError, match="rule broken cannot build its replacement of"):
        rewrite(Graph([x], [exp(x)]), RuleSet([broken]))


def test_rules_that_undo_each_other_are_an_error() -> None:
    there = rule("there", lambda x: exp(x), lambda x: neg(x))
    back = rule("back", lambda x: neg(x), lambda x: exp(x))
    x = tensor("x", 3)
    with pytest.raises(RuleError, match=r"rules loop at .*: back, there replace each other's results without end"):
        rewrite(Graph([x], [exp(x)]), RuleSet([there, back]))


def test_a_rule_that_grows_without_end_is_an_error() -> None:
    grow = rule("grow", lambda x: exp(x), lambda x: exp(neg(x)))
    x = tensor("x", 3)
    with pytest.raises(RuleError, match=r"rules loop at .*: grow"):
        rewrite(Graph([x], [exp(x)]), RuleSet([grow]))


def test_a_rule_that_keeps_its_node_is_an_error() -> None:
    idle = rule("idle", lambda x: exp(x), lambda x: exp(x))
    x = tensor("x", 3)
    with pytest.raises(RuleError, match=r"rule idle replaced .* by itself"):
        rewrite(Graph([x], [exp(x)]), RuleSet([idle]))
