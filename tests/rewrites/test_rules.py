"""One harness over all rules, and the proof that it can fail: seeded wrong rules that it must reject."""

import re
from collections.abc import Callable

import pytest
import torch

from smelt.ir import ops
from smelt.ir.ops import (
    add,
    amax,
    amin,
    attention,
    cast,
    concat,
    div,
    exp,
    linear,
    matmul,
    maximum,
    mul,
    neg,
    permute,
    relu,
    reshape,
    scalar_like,
    slice_,
    softmax,
    sub,
    var,
    where,
)
from smelt.rewrites.certify import certify
from smelt.rewrites.pattern import constant
from smelt.rewrites.rule import ROUNDING, Domain, Rule, RuleError, rules_by_name
from smelt.rewrites.rules import RULES
from smelt.rewrites.sample import shapes

ALL = rules_by_name(RULES)


@pytest.mark.parametrize("name", ALL)
def test_a_rule_keeps_its_promises(name: str) -> None:
    assert [str(fault) for fault in certify(ALL[name], list(ALL.values()), cases=12)] == []


def test_names_are_in_kebab_case() -> None:
    assert [name for name in ALL if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)] == []


def test_two_rules_of_one_name_are_refused() -> None:
    rule = ALL["mul-one"]
    twin = Rule(name=rule.name, before=rule.before, after=rule.after, samples=rule.samples)
    with pytest.raises(RuleError, match="two rules are called mul-one"):
        rules_by_name({"a": [rule], "b": [twin]})


# --- wrong rules ------------------------------------------------------------------------------------------------------

QKV = ("b H s D", "b H s D", "b H s D")
ELSE = [lambda x: exp(x)]  # a near miss that none of these rules takes

# What is wrong, and the rule. Each is a mistake that a rule's author could make.
WRONG: dict[str, Callable[[], Rule]] = {
    "operands of a difference exchanged": lambda: Rule(
        name="wrong",
        before=lambda x, y: sub(mul(x, x), y),
        after=lambda x, y: sub(y, mul(x, x)),
        samples=[shapes("m n", "m n")],
        near_misses=ELSE,
    ),
    "operands of a product of matrices exchanged": lambda: Rule(
        name="wrong",
        before=lambda x, y: matmul(neg(x), y),
        after=lambda x, y: neg(matmul(y, x)),
        samples=[shapes("n n", "n n")],
        near_misses=ELSE,
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    "a transpose dropped where shapes are square": lambda: Rule(
        name="wrong",
        before=lambda x: permute(exp(x), dims=(1, 0)),
        after=lambda x: exp(x),
        samples=[shapes("n n")],
        near_misses=ELSE,
    ),
    "the wrong axis": lambda: Rule(
        name="wrong",
        before=lambda x: softmax(neg(x), dim=-1),
        after=lambda x: softmax(sub(scalar_like(0.0, x), x), dim=0),
        samples=[shapes("n n")],
        near_misses=ELSE,
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    "a scale lost": lambda: Rule(
        name="wrong",
        before=lambda q, k, v: attention(mul(q, constant(0.5)), k, v, scale=0.5),
        after=lambda q, k, v: attention(q, k, v, scale=0.5),
        samples=[shapes(*QKV)],
        near_misses=[lambda q: exp(q)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    "causality lost": lambda: Rule(
        name="wrong",
        before=lambda q, k, v: attention(q, k, neg(v), causal=True, scale=0.5),
        after=lambda q, k, v: neg(attention(q, k, v, scale=0.5)),
        samples=[shapes(*QKV)],
        near_misses=[lambda q: exp(q)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    "a bias lost": lambda: Rule(
        name="wrong",
        before=lambda x, w, b: linear(x, w, b),
        after=lambda x, w: linear(x, w),
        samples=[shapes("m K", "weight: N K", "weight: N")],
        near_misses=ELSE,
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    "the sign of a zero": lambda: Rule(
        name="wrong",
        before=lambda x: add(x, constant(0)),
        after=lambda x: x,
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "NaN taken for a number": lambda: Rule(
        name="wrong",
        before=lambda x: where(ops.lt(constant(0), x), x, constant(0)),
        after=lambda x: relu(x),
        samples=[shapes("m n")],
        near_misses=ELSE,
        tolerance=ROUNDING,
    ),
    "infinity times zero": lambda: Rule(
        name="wrong",
        before=lambda x: mul(x, constant(0)),
        after=lambda root: ops.full(shape=root.shape, value=0, dtype=root.dtype),
        samples=[shapes("m n")],
        near_misses=ELSE,
        tolerance=ROUNDING,
    ),
    "a broadcast that the result keeps": lambda: Rule(
        name="wrong",
        before=lambda x, y: add(x, mul(y, constant(1))),
        after=lambda x, y: add(x, y),
        samples=[shapes("n", "m n")],
        near_misses=[lambda x, y: add(x, y), lambda x, y: exp(y)],
        when=lambda x: True,
    ),
    "a constant that widens": lambda: Rule(
        name="wrong",
        before=lambda x, s, t: mul(x, ops.full(shape=s, value=1, dtype=t)),
        after=lambda x: x,
        samples=[shapes("f32: n", s=lambda m, n: (m, n), t=torch.float32)],
        near_misses=ELSE,
    ),
    "a product rounded twice": lambda: Rule(
        name="wrong",
        before=lambda x: div(x, constant(3)),
        after=lambda x: mul(x, scalar_like(1 / 3, x)),
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "a cast that loses digits": lambda: Rule(
        name="wrong",
        before=lambda x: cast(cast(x, dtype=torch.bfloat16), dtype=torch.float32),
        after=lambda x: x,
        samples=[shapes("f32: m n")],
        near_misses=ELSE,
    ),
    "an overflow in between": lambda: Rule(
        name="wrong",
        before=lambda x: div(mul(x, constant(2)), constant(2)),
        after=lambda x: x,
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "a slice off by one": lambda: Rule(
        name="wrong",
        before=lambda x: slice_(slice_(x, dim=0, start=2, stop=7), dim=0, start=1, stop=3),
        after=lambda x: slice_(x, dim=0, start=2, stop=4),
        samples=[shapes("8 n")],
        near_misses=ELSE,
    ),
    "a reshape for a permutation": lambda: Rule(
        name="wrong",
        before=lambda x: permute(neg(x), dims=(1, 0)),
        after=lambda root, x: neg(reshape(x, shape=root.shape)),
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "parts in another order": lambda: Rule(
        name="wrong",
        before=lambda x, y: neg(concat(x, y, dim=0)),
        after=lambda x, y: concat(neg(y), neg(x), dim=0),
        samples=[shapes("n 2", "n 2")],
        near_misses=ELSE,
    ),
    "largest for smallest": lambda: Rule(
        name="wrong",
        before=lambda x: neg(amax(x, dims=(1,))),
        after=lambda x: amin(x, dims=(1,)),
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "a variance with the other correction": lambda: Rule(
        name="wrong",
        before=lambda x: neg(var(x, dims=(1,), correction=1)),
        after=lambda x: neg(var(x, dims=(1,), correction=0)),
        samples=[shapes("m 5")],
        near_misses=ELSE,
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    "another type": lambda: Rule(
        name="wrong",
        before=lambda x: ops.eq(x, x),
        after=lambda x: x,
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "a replacement that cannot be built": lambda: Rule(
        name="wrong",
        before=lambda x: neg(x),
        after=lambda x: permute(x, dims=(0, 1, 2, 3, 4)),
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "it fires on its own result": lambda: Rule(
        name="wrong",
        before=lambda x: neg(x),
        after=lambda x: neg(neg(neg(x))),
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "it replaces a node by itself": lambda: Rule(
        name="wrong", before=lambda x: neg(x), after=lambda root: root, samples=[shapes("m n")], near_misses=ELSE
    ),
    "another rule undoes it": lambda: Rule(
        name="wrong",
        before=lambda x, y: sub(x, y),
        after=lambda x, y: add(x, neg(y)),
        samples=[shapes("m n", "m n")],
        near_misses=ELSE,
    ),
    "a guard that never fires": lambda: Rule(
        name="wrong",
        before=lambda x: maximum(x, x),
        when=lambda x: True,
        after=lambda x: x,
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "a guard that never agrees": lambda: Rule(
        name="wrong",
        before=lambda x: maximum(x, x),
        when=lambda x: False,
        after=lambda x: x,
        samples=[shapes("m n")],
        near_misses=[shapes("m n")],
    ),
    "it takes a near miss": lambda: Rule(
        name="wrong",
        before=lambda x: maximum(x, x),
        after=lambda x: x,
        samples=[shapes("m n")],
        near_misses=[lambda x: maximum(x, x)],
    ),
    "nothing to try it on": lambda: Rule(
        name="wrong", before=lambda x: maximum(x, x), after=lambda x: x, samples=[], near_misses=ELSE
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_the_harness_rejects(mistake: str) -> None:
    assert certify(WRONG[mistake](), list(ALL.values())), f"not found: {mistake}"


def test_faults_are_the_same_every_time() -> None:
    rule = WRONG["the sign of a zero"]()
    assert list(map(str, certify(rule))) == list(map(str, certify(rule)))


# --- rules that cannot be built ---------------------------------------------------------------------------------------


def test_a_variable_that_nothing_binds_is_an_error() -> None:
    with pytest.raises(RuleError, match="`after` uses y, which `before` does not bind"):
        Rule(name="wrong", before=lambda x: neg(x), after=lambda x, y: add(x, y), samples=[shapes("n")])
    with pytest.raises(RuleError, match="`when` uses y"):
        Rule(name="wrong", before=lambda x: neg(x), when=lambda y: True, after=lambda x: x, samples=[shapes("n")])


def test_a_variable_that_the_pattern_does_not_use_is_an_error() -> None:
    with pytest.raises(RuleError, match="does not use its variable y"):
        Rule(name="wrong", before=lambda x, y: neg(x), after=lambda x: x, samples=[shapes("n")])


def test_a_pattern_needs_an_operator() -> None:
    with pytest.raises(RuleError, match="a pattern around an operator"):
        Rule(name="wrong", before=lambda x: x, after=lambda x: x, samples=[shapes("n")])


def test_a_pattern_that_the_constructors_refuse_is_an_error() -> None:
    with pytest.raises(RuleError, match="`before` is no pattern: softmax needs the attribute dim"):
        Rule(name="wrong", before=lambda x: softmax(x), after=lambda x: x, samples=[shapes("n")])
