"""Equations of the search keep the promises of rules, in each direction."""

import pytest
import torch

from smelt.ir import ops
from smelt.rewrites.certify import certify
from smelt.rewrites.rule import Domain, Rule, rules_by_name
from smelt.rewrites.rules import RULES
from smelt.rewrites.rules.equations import EQUATIONS, is_wide
from smelt.rewrites.sample import shapes

ALL = rules_by_name({**RULES, "equations": EQUATIONS})


@pytest.mark.parametrize("rule", EQUATIONS, ids=lambda rule: rule.name)
def test_an_equation_keeps_its_promises(rule: Rule) -> None:
    assert [str(fault) for fault in certify(rule, cases=12)] == []


def test_no_equation_is_applied_without_the_search() -> None:
    greedy = {rule.name for stage in RULES.values() for rule in stage}
    assert greedy.isdisjoint({rule.name for rule in EQUATIONS})
    assert len(ALL) == len(greedy) + len(EQUATIONS)


def test_half_types_are_left_alone() -> None:
    assert [is_wide(ops.input(name="x", shape=(2,), dtype=d)) for d in (torch.float16, torch.bfloat16)] == [False] * 2


def test_a_wrong_equation_is_rejected() -> None:
    """Distribution that forgets that a sum broadcasts: a column would be added to every column but counted once."""
    wrong = Rule(
        name="wrong",
        before=lambda a, b, c: ops.matmul(a, ops.sub(b, c)),
        after=lambda a, b, c: ops.sub(ops.matmul(a, b), ops.matmul(c, a)),
        samples=[shapes("f32: n n", "f32: n n", "f32: n n")],
        near_misses=[lambda a: ops.exp(a)],
        tolerance=1e-10,
        domain=Domain.FINITE,
    )
    assert [fault.check for fault in certify(wrong)] == ["value"]
