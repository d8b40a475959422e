"""PyTorch's operator database: the operators of the zoo, the runner itself, and the page that shows a whole run."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("expecttest", reason="PyTorch's operator database needs it")

import smelt
from smelt.tools import cli
from smelt.tools.opinfo import page
from smelt.tools.opinfo.campaign import Plan, Record, run_campaign
from smelt.tools.opinfo.cases import DTYPES, cases_of, database, supported
from smelt.tools.opinfo.check import Verdict, check

ROOT = Path(__file__).parents[2]

# by which the models of the zoo are written
_NAMES = """
    add sub mul div.no_rounding_mode pow rsqrt neg abs exp log cos sin tanh sigmoid square reciprocal clamp minimum
    nn.functional.relu nn.functional.gelu nn.functional.silu matmul bmm nn.functional.linear baddbmm maximum
    nn.functional.scaled_dot_product_attention nn.functional.layer_norm nn.functional.rms_norm nn.functional.embedding
    softmax log_softmax mean sum amax cumsum var argmax all any cat stack chunk split select narrow unbind gather
    index_select where masked_fill tril triu expand view reshape permute transpose unsqueeze squeeze flatten
    repeat roll eq ne lt le gt ge logical_and logical_not logical_or bitwise_and bitwise_not full_like ones_like
    zeros_like new_zeros new_full arange to __getitem__ clone contiguous floor_divide
"""
USED = _NAMES.split()


@pytest.mark.parametrize("dtype", ["bfloat16", "int64"])
def test_operators_of_the_zoo(dtype: str) -> None:
    """Right by the numeric contract; kernels are interpreted. Every other operator, for the time that they take."""
    wrong = [
        f"{name}, sample {verdict.case}: {verdict.reason}"
        for name in USED[::2]
        if dtype in supported(name)
        for verdict in check(name, cases_of(name, dtype, 1, varied=0), native=False)
        if verdict.kind == "wrong"
    ]
    assert wrong == []


def test_operators_of_the_zoo_are_lowered() -> None:
    passed = [
        f"{name}, sample {verdict.case}: {verdict.reason}"
        for name in USED
        if "float32" in supported(name)
        for verdict in check(name, cases_of(name, "float32", 1, varied=0), native=True)
        if verdict.kind in ("wrong", "passed")
    ]
    assert passed == []


# --- the runner -------------------------------------------------------------------------------------------------------


def test_cases_are_the_same_each_time_and_vary() -> None:
    first, second = (cases_of("add", "float32", 4) for _ in range(2))
    assert [case.name for case in first] == [case.name for case in second]
    tensors = [[t for case in cases for t in case.tensors] for cases in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*tensors, strict=True))
    names = [case.name for case in first]
    assert sum(name.isdigit() for name in names) == 4
    assert any(name.endswith("strided") for name in names)
    assert any(name.endswith("in place") for name in names)


def test_verdicts() -> None:
    (lowered, *_), (passed, *_) = (check(n, cases_of(n, "float32", 1), False) for n in ("sin", "sort"))
    assert lowered == Verdict(lowered.case, "lowered")
    assert (passed.kind, passed.reason.startswith("aten.sort")) == ("passed", True)
    (skipped, *_) = check("to_sparse", cases_of("to_sparse", "float32", 1), False)
    assert (skipped.kind, skipped.reason) == ("skipped", "a result is sparse")


def test_a_wrong_result_is_found_in_the_sample_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from smelt.frontend.table import LOWERINGS
    from smelt.ir import ops

    right = LOWERINGS["aten.add.Tensor"]

    def wrong(call: Any, x: Any, y: Any, **named: Any) -> Any:
        found = right(call, x, y, **named)
        return ops.neg(found) if not call.shape else found

    monkeypatch.setitem(LOWERINGS, "aten.add.Tensor", wrong)
    cases = cases_of("add", "float32", 8)
    verdicts = check("add", cases, native=False)
    scalars = {case.name for case in cases if all(t.ndim == 0 for t in case.tensors)}
    assert scalars
    assert {v.case for v in verdicts if v.kind == "wrong"} == scalars
    assert all("max abs" in v.reason for v in verdicts if v.kind == "wrong")


def test_what_raises_and_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from smelt.frontend.table import LOWERINGS

    cases = cases_of("sin", "float32", 1, varied=0)
    for error, kind, reason in (
        (RuntimeError("for the test"), "wrong", "raises RuntimeError: for the test"),
        (smelt.UnsupportedError("for the test"), "passed", "the whole graph: for the test"),
    ):

        def raises(call: Any, x: Any, error: Exception = error) -> Any:
            raise error

        monkeypatch.setitem(LOWERINGS, "aten.sin.default", raises)
        assert [(v.kind, v.reason) for v in check("sin", cases, False)] == [(kind, reason)]


def test_random_results_are_compared_by_type() -> None:
    verdicts = check("nn.functional.dropout", cases_of("nn.functional.dropout", "float32", 2), native=False)
    assert {v.kind for v in verdicts} <= {"lowered", "passed"}


def test_a_campaign_goes_on_where_it_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    class Worker:
        def __init__(self, *_: Any) -> None:
            pass

        def ask(self, *, op: str, dtype: str, first: int, last: int | None, **_: Any) -> dict[str, Any]:
            asked.append((op, dtype))
            if op == "cos" and last is None:
                return {"way": "crash", "message": "the process ended with -11"}
            if op == "cos" and first == 1:
                return {"way": "crash", "message": "the process ended with -11"}
            verdicts = [{"case": str(i), "kind": "lowered", "reason": ""} for i in range(first, last or 2)]
            return {"way": None, "cases": ["0", "1", "2"], "verdicts": verdicts}

        def close(self) -> None:
            pass

    monkeypatch.setattr("smelt.tools.opinfo.campaign.Worker", Worker)
    keep = tmp_path / "kept.jsonl"
    plan = Plan(("sin", "cos"), ("float32",), keep=keep)
    sin, cos = run_campaign(plan)
    assert sin == {"op": "sin", "dtype": "float32", "native": True, "lowered": 2}
    assert (cos["lowered"], cos["wrong"], cos["cases"]) == (2, 1, ["case 1: crash: the process ended with -11"])
    asked.clear()
    assert run_campaign(plan) == [sin, cos]
    assert asked == []


def test_records() -> None:
    record = Record("add", "bool")
    record.add({"case": "1", "kind": "wrong", "reason": "max abs 1"})
    record.add({"case": "2", "kind": "passed", "reason": "aten.add.Tensor"})
    data = record.to_dict()
    assert data["cases"] == ["1: max abs 1"]
    assert data["reasons"] == ["aten.add.Tensor"]


def run(*args: str, code: int = 0) -> Any:
    result = CliRunner().invoke(cli.app, ["opinfo", *args])
    assert result.exit_code == code, result.output
    return result


def test_the_command(tmp_path: Path) -> None:
    keep = str(tmp_path / "kept.jsonl")
    found = run("sin", "--dtype", "float32", "--samples", "1", "--interpret-only", "--keep", keep)
    assert re.search(r"float32 +1 +\d+ +0 +0", found.stdout)
    data = json.loads(run("sin", "--dtype", "float32", "--keep", keep, "--json").stdout)
    assert data["records"][0]["op"] == "sin"
    assert "did you mean" in run("functional.gelu", code=2).stderr
    assert "there is no dtype int3" in run("--dtype", "int3", code=2).stderr


def test_the_database_is_there() -> None:
    assert len(database()) > 600
    assert set(USED) <= set(database())
    assert supported("bmm") == [dtype for dtype in DTYPES if dtype != "bool"]


# --- the page ---------------------------------------------------------------------------------------------------------


def test_a_table() -> None:
    records = [
        {"op": "add", "dtype": "float32", "native": True, "lowered": 4, "passed": 1, "reasons": ["aten.add.out|x"]},
        {"op": "add", "dtype": "bool", "native": False, "wrong": 1, "lowered": 3, "cases": ["1: no"]},
        {"op": "sort", "dtype": "float32", "native": True, "passed": 2, "skipped": 1},
    ]
    table = page.table_of(records)
    data = json.loads(page.dumped(table, torch="2", samples=8))
    assert data["operators"] == table
    text = page.markdown(data)
    assert "| add | 4 of 5 |  |  |  | wrong | aten.add.out\\|x |" in text
    assert "| sort | passed |" in text
    assert (
        "compiled and run in 2 of 3 pairs of an operator and a dtype, interpreted in 1; 0 pairs were not run." in text
    )
    assert "| float32 | 2 | 0 | 1 | 1 | 0 | 8 |" in text
    with pytest.raises(page.PageError, match="0 times"):
        page.replaced("no marks", text)


def test_the_page_shows_the_run() -> None:
    data = json.loads((ROOT / "docs" / "operators.json").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    assert page.replaced(text, page.markdown(data)) == text
    assert [name for name, own in data["operators"].items() if "cases" in own] == []


def test_coverage_takes_operators_too() -> None:
    found = CliRunner().invoke(cli.app, ["coverage", "--opinfo", "sin", "--json", "-"])
    assert found.exit_code == 0, found.output
    assert "sin" in found.stdout
    assert CliRunner().invoke(cli.app, ["coverage", "--opinfo", "sin", "--json", "file.json"]).exit_code == 2
