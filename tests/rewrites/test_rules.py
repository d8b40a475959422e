"""One harness over all rules, and the proof that it can fail: seeded wrong rules that it must reject."""

import re
from typing import Any

import pytest

from smelt.ir.ops import add, neg, softmax
from smelt.rewrites.certify import certify
from smelt.rewrites.rule import Rule, RuleError, rules_by_name
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


# --- rules that cannot be built ---------------------------------------------------------------------------------------


def test_a_variable_that_nothing_binds_is_an_error() -> None:
    with pytest.raises(RuleError, match="`after` uses y, which `before` does not bind"):
        Rule(name="wrong", before=lambda x: neg(x), after=lambda x, y: add(x, y), samples=[shapes("n")])
    with pytest.raises(RuleError, match="`when` uses y"):
        Rule(name="wrong", before=lambda x: neg(x), when=lambda y: True, after=lambda x: x, samples=[shapes("n")])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", 3),
        ("before", None),
        ("after", "x"),
        ("when", True),
        ("samples", "m n"),
        ("samples", ["m n"]),
        ("samples", shapes("n")),
        ("near_misses", ["m n"]),
        ("tolerance", "exact"),
        ("tolerance", -1.0),
        ("domain", "finite"),
    ],
)
def test_a_field_of_another_kind_is_an_error(field: str, value: Any) -> None:
    good = {"name": "good", "before": lambda x: neg(neg(x)), "after": lambda x: x, "samples": [shapes("n")]}
    with pytest.raises(RuleError, match=f"`{field}` is a|`{field}` is EXACT"):
        Rule(**{**good, field: value})


def test_a_variable_that_the_pattern_does_not_use_is_an_error() -> None:
    with pytest.raises(RuleError, match="does not use its variable y"):
        Rule(name="wrong", before=lambda x, y: neg(x), after=lambda x: x, samples=[shapes("n")])


def test_a_pattern_needs_an_operator() -> None:
    with pytest.raises(RuleError, match="a pattern around an operator"):
        Rule(name="wrong", before=lambda x: x, after=lambda x: x, samples=[shapes("n")])


def test_a_pattern_that_the_constructors_refuse_is_an_error() -> None:
    with pytest.raises(RuleError, match="`before` is no pattern: softmax needs the attribute dim"):
        Rule(name="wrong", before=lambda x: softmax(x), after=lambda x: x, samples=[shapes("n")])
