"""Certificates as users see them: statuses, registered rules, the command."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import smelt
from smelt.rewrites.certify import certificate, examine
from smelt.rewrites.context import Context
from smelt.rewrites.rules import RULES
from smelt.rules import ROUNDING, Domain, Rule, RuleError, all_rules, ops, register_rule, shapes, unregister_rule
from smelt.tools import cli
from smelt.tools.verify_rules import groups_of_rules

BY_NAME = {rule.name: rule for rules in RULES.values() for rule in rules}


def double(name: str = "add-same", **more: Any) -> Rule:
    """x + x -> 2 x."""
    return Rule(
        name=name,
        before=lambda x: ops.add(x, x),
        after=lambda x: ops.mul(x, ops.scalar_like(2, x)),
        samples=[shapes("m n"), shapes("int: m")],
        near_misses=[lambda x: ops.add(x, ops.neg(x))],
        **more,
    )


def triple() -> Rule:
    """x + x -> 3 x, which is wrong."""
    return Rule(
        name="add-wrong",
        before=lambda x: ops.add(x, x),
        after=lambda x: ops.mul(x, ops.scalar_like(3, x)),
        samples=[shapes("m n")],
        near_misses=[lambda x: ops.exp(x)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    )


@pytest.fixture
def registered() -> Iterator[Rule]:
    rule = register_rule(double())
    yield rule
    unregister_rule(rule)


# --- certificates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "status", "evidence"),
    [
        ("reshape-reshape", "proved", "any arithmetic"),
        ("silu-of-exp", "exact", "points, error below"),
        ("log-of-softmax", "tested", "30 cases"),
    ],
)
def test_a_certificate(name: str, status: str, evidence: str) -> None:
    found = examine(BY_NAME[name], cases=30)
    assert (found.status, found.faults) == (status, ())
    assert evidence in found.evidence
    assert found.cases == 30
    assert 0 < found.compared <= 30
    assert bool(found.why) is (status != "proved")


def test_a_wrong_rule_is_faulty() -> None:
    found = examine(triple(), cases=30)
    assert found.status == "faulty"
    assert found.faults[0].check == "value"
    assert found.evidence.startswith("add-wrong: value:")
    assert not found.readings


def test_certificates_are_the_same_every_time() -> None:
    one, two = (examine(triple(), cases=30, seed=5) for _ in range(2))
    assert one.faults == two.faults


def test_a_missing_solver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "z3", None)
    for module in ("proof", "elements", "scalars"):
        monkeypatch.delitem(sys.modules, f"{certificate.__package__}.{module}", raising=False)
    with pytest.raises(smelt.UnsupportedError, match=r"pip install 'smelt\[verify\]'"):
        examine(double())


# --- rules of users ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("registered")
def test_a_registered_rule_takes_part() -> None:
    class Doubled(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.tanh(x)
            return y + y

    assert "add-same" in [rule.name for rule in Context().rules["simplify"]]
    compiled = smelt.compile(Doubled().eval())
    x = torch.randn(3, 4)
    assert torch.allclose(compiled(x), 2 * torch.tanh(x), atol=1e-6)
    assert "mul(" in compiled.ir()


def test_a_rule_is_unregistered() -> None:
    register_rule(double(), certify=False)
    unregister_rule("add-same")
    assert all_rules() == RULES
    with pytest.raises(RuleError, match="no rule add-same is registered; there are: none"):
        unregister_rule("add-same")


@pytest.mark.usefixtures("registered")
def test_a_name_is_taken_once() -> None:
    for name in ("add-same", "mul-one"):
        with pytest.raises(RuleError, match=f"a rule is called {name} already"):
            register_rule(double(name), certify=False)
    with pytest.raises(RuleError, match="no rule add-same is registered"):
        unregister_rule(double())


def test_a_faulty_rule_is_not_registered() -> None:
    with pytest.raises(RuleError, match="was not registered, for it is faulty:\n  value: "):
        smelt.register_rule(triple())
    assert all_rules() == RULES


def test_only_rules_are_registered() -> None:
    with pytest.raises(RuleError, match="register_rule takes a Rule, not 'double'"):
        register_rule("double")  # type: ignore[arg-type]


def test_a_stage_that_does_not_exist() -> None:
    with pytest.raises(RuleError, match=r"no stage 'polish' .* canonicalise, recognise, simplify"):
        register_rule(double(), stage="polish")


def test_the_public_names() -> None:
    assert smelt.Rule is Rule
    assert smelt.register_rule is register_rule
    assert smelt.unregister_rule is unregister_rule


DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "rules.md"


def test_the_example_of_the_document_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    assert examine(names["LOG_OF_EXP"], cases=20).status != "faulty"
    assert all_rules() == RULES


def test_the_catalogue_of_the_document() -> None:
    table = dict(re.findall(r"^\| (\w+) \| (\d+) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE))
    groups = groups_of_rules()
    assert table
    assert {name: count for name, count in table.items() if len(groups.get(name, ())) < int(count)} == {}


# --- the command ------------------------------------------------------------------------------------------------------


def run(*args: str, code: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, ["verify-rules", *args])
    assert result.exit_code == code, result.output
    return result


MODULE = """
from smelt.rules import Rule, ops, register_rule, shapes
RULE = Rule(
    name="{name}",
    before=lambda x: ops.sub(ops.neg(x), x),
    after=lambda x: ops.mul(x, ops.scalar_like({factor}, x)),
    samples=[shapes("f32: m n")],
    near_misses=[lambda x: ops.add(x, ops.neg(x))],
)
register_rule(RULE, certify=False)
"""


def test_the_command_shows_rules() -> None:
    text = run("add-neg", "log-of-softmax", "--cases", "10").stdout
    assert "proved" in text
    assert "2 rules: 1 proved, 1 tested; 50 % proved or exact; 20 cases" in text


def test_the_command_as_json() -> None:
    data = json.loads(run("where-same", "--cases", "10", "--json").stdout)
    assert data["summary"] == {"proved": 1, "exact": 0, "tested": 0, "faulty": 0, "rules": 1}
    (found,) = data["groups"]["algebra"]
    assert (found["rule"], found["status"], found["cases"], found["faults"]) == ("where-same", "proved", 10, [])


@pytest.mark.parametrize(("factor", "status", "code"), [(-2, "proved", 0), (-3, "faulty", 1)])
def test_the_command_takes_modules(tmp_path: Path, factor: int, status: str, code: int) -> None:
    path = tmp_path / f"rules_of_{status}.py"
    path.write_text(MODULE.format(name="neg-less", factor=factor))
    try:
        result = run("neg-less", "--module", str(path), "--cases", "20", "--json", code=code)
        (found,) = json.loads(result.stdout)["groups"]["registered"]
        assert found["status"] == status
    finally:
        unregister_rule("neg-less")


def test_a_rule_that_does_not_exist() -> None:
    assert "there is no rule 'mul-two'; did you mean mul-one" in run("mul-two", code=2).stderr
