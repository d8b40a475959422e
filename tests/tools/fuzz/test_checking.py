"""The checker of random programs is checked: wrong compilers are found, and what rounding decides is none of them."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from smelt.codegen import interpret as codegen_interpret
from smelt.tools import cli
from smelt.tools.fuzz import check as check_module
from smelt.tools.fuzz.campaign import Plan, run_campaign
from smelt.tools.fuzz.check import check
from smelt.tools.fuzz.generate import program_of
from smelt.tools.fuzz.minimise import minimise
from smelt.tools.fuzz.program import Program, Step
from smelt.tools.fuzz.worker import Worker


def program(*lines: str, returns: str = "v0", **inputs: torch.Tensor) -> Program:
    """A program of statements ``v0 = …``."""
    steps = []
    for line in lines:
        target, found, value = line.partition(" = ")
        steps.append(Step("step", (target,), value) if found else Step("step", (), line))
    return Program(tuple(inputs), {}, tuple(steps), tuple(returns.split(", ")), (tuple(inputs.values()),))


X = torch.tensor([[0.5, -1.25, 3.0], [2.0, 0.75, -0.125]])


def test_ways_that_agree() -> None:
    verdict = check(program("v0 = torch.softmax(x0 * 2, -1)", x0=X).source(), native=True)
    assert verdict.finding is None
    assert verdict.ways == ["interpreter", "unoptimised", "optimised", "native"]
    assert "softmax" in verdict.graph


def test_a_wrong_kernel_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codegen_interpret, "_reduced", lambda kind, value: value[..., 0])
    finding = check(program("v0 = x0.sum(-1)", x0=X).source()).finding
    assert finding is not None
    assert finding.way == "unoptimised"


def test_what_eager_rounds_to_a_half_type_on_the_way_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    small = torch.tensor([[5.364e-05, 1.5], [-2.0, 0.5]], dtype=torch.float16)  # the first one's square is 0 in float16
    source = program("v0 = x0 * x0", "v1 = torch.le(v0, 0)", "v2 = v1.sum(0)", returns="v2", x0=small).source()
    verdict = check(source)
    assert verdict.finding is None
    assert verdict.noisy
    monkeypatch.setattr(codegen_interpret, "_reduced", lambda kind, value: value[..., 0] + 1)
    assert check(source).finding is not None


def test_a_wrong_interpreter_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = check_module.InterpretedGraph.run
    wrong: Any = lambda self, tensors, sizes: [x * 1.01 for x in right(self, tensors, sizes)]  # noqa: E731
    monkeypatch.setattr(check_module.InterpretedGraph, "run", wrong)
    finding = check(program("v0 = x0 + 1", x0=X).source()).finding
    assert finding is not None
    assert finding.way == "interpreter"


def test_a_call_must_raise_where_eager_does(monkeypatch: pytest.MonkeyPatch) -> None:
    source = program("v0 = x0[:, x1]", x0=X, x1=torch.tensor([0, 7])).source()
    verdict = check(source)
    assert verdict.raised
    assert verdict.finding is None
    monkeypatch.setattr(check_module.InterpretedGraph, "run", lambda self, tensors, sizes: [X])
    finding = check(source).finding
    assert finding is not None
    assert "no error where eager raises" in finding.message


def test_what_rounding_decides_is_no_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    # three tenths on both sides: every element is decided by rounding, and here the other way than in eager
    text = program("v0 = x0 * 0.1", "v1 = v0 + v0 + v0 > x0 * 0.3", returns="v1", x0=X).source()

    def flipped(self: Any, tensors: Any, sizes: Any) -> list[torch.Tensor]:
        tenth = tensors[0] * 0.1
        return [~(tenth + tenth + tenth > tensors[0] * 0.3)]

    monkeypatch.setattr(check_module.InterpretedGraph, "run", flipped)
    verdict = check(text)
    assert verdict.finding is None
    assert verdict.noisy


def test_noise_does_not_explain_a_wrong_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    text = program("v0 = x0 * 0.1", "v1 = v0 > 0", returns="v1", x0=X).source()
    monkeypatch.setattr(check_module.InterpretedGraph, "run", lambda self, tensors, sizes: [tensors[0] < 0])
    assert check(text).finding is not None


def test_a_failure_is_minimised() -> None:
    whole = next(p for p in (program_of(0, i) for i in range(99)) if any(s.op == "softmax" for s in p.steps[5:]))
    small = minimise(whole, lambda p: any(step.op == "softmax" for step in p.steps))
    assert [step.op for step in small.steps] == ["softmax"]
    assert len(small.calls) == 1
    assert check(small.source()).finding is None


def test_a_crash_and_a_hang_are_findings() -> None:
    worker = Worker(native=False, seconds=20)
    killed = program(f"v0 = __import__('os').kill(__import__('os').getpid(), {int(signal.SIGKILL)})", x0=X)
    slow = program("v0 = __import__('time').sleep(60)", x0=X)
    try:
        assert worker.ask(source=killed.source())["way"] == "crash"
        worker.seconds = 0.5
        assert worker.ask(source=slow.source())["way"] == "hang"
        worker.seconds = 60
        assert worker.ask(source=program("v0 = x0 + 1", x0=X).source())["way"] is None
    finally:
        worker.close()


def test_failures_are_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # as if every program with a sum crashed
    def ask(self: Worker, **request: Any) -> dict[str, Any]:
        text = request.get("source") or program_of(request["seed"], request["number"]).source()
        return {"way": "crash" if ".sum(" in text or "torch.sum(" in text else None, "message": "it ended"}

    monkeypatch.setattr(Worker, "ask", ask)
    summary = run_campaign(Plan(40, out=tmp_path, seed=5))
    assert summary.failures
    assert summary.programs == 40
    saved = [f for f in summary.failures if f.saved is not None]
    assert [f.steps for f in saved] == [1] * len(saved)
    assert sorted(p.name for p in tmp_path.glob("*.py")) == sorted(f.saved.name for f in saved if f.saved)
    assert all("sum" in p.read_text(encoding="utf-8") for p in tmp_path.glob("*.py"))


def test_the_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli.app, ["fuzz", "--n", "2", "--interpret-only", "--json", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["programs"] == 2
    assert data["operators"]
    assert data["failures"] == []
    text = CliRunner().invoke(cli.app, ["fuzz", "--n", "1", "--start", "1", "--interpret-only"])
    assert "no program fails" in text.stdout
