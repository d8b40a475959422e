"""``smelt coverage``: rows of what is right, wrong, or ends the process, and the page made of them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smelt.tools.coverage import command, measure, page, worker
from smelt.tools.coverage.architectures import ARCHITECTURES
from smelt.tools.coverage.measure import Outcome, Row

ROOT = Path(__file__).resolve().parents[2]
RECORD = json.loads((ROOT / "docs" / "coverage.json").read_text(encoding="utf-8"))
GOOD = Outcome("forward", graphs=1, max_abs=1.5e-7, kernels=12, kernels_per_layer=5)


def record(*outcomes: Outcome) -> dict[str, Any]:
    row = Row("bert", "encoder", outcomes).to_dict()
    return {
        "date": "2026-01-02",
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        "processor": "a processor",
        "architectures": [row],
    }


# --- the list ---------------------------------------------------------------------------------------------------------


def test_the_list_holds_what_is_promised() -> None:
    assert len(ARCHITECTURES) >= 45
    decoding = {name for name, found in ARCHITECTURES.items() if found.decodes}
    first = {"llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3", "gpt2", "phi", "t5", "bart"}
    assert first | {"mixtral", "qwen2-moe", "qwen3-moe", "whisper"} <= decoding
    assert {"bert", "roberta", "vit", "clip"} <= ARCHITECTURES.keys() - decoding


def test_the_page_holds_every_architecture_and_none_is_wrong() -> None:
    assert [row["name"] for row in RECORD["architectures"]] == list(ARCHITECTURES)
    for row in RECORD["architectures"]:
        calls = [outcome["call"] for outcome in row["outcomes"]]
        assert calls == ["forward", "decode"] if ARCHITECTURES[row["name"]].decodes else ["forward"]
        assert all(outcome["error"] is None for outcome in row["outcomes"]), row["name"]


def test_the_page_is_made_from_what_was_measured() -> None:
    text = (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert page.replaced(text, page.markdown(RECORD)) == text


# --- rows -------------------------------------------------------------------------------------------------------------


def test_a_table() -> None:
    decode = Outcome("decode", graphs=2, split="values decide", fallbacks=("aten.topk.default",), max_abs=2e-6)
    lines = page.markdown(record(GOOD, decode)).splitlines()
    assert lines[2] == "| bert | one graph | none | 1.5e-07 | 5 | 2 graphs | topk | 2.0e-06 | - |"
    assert "- bert, decode: values decide" in lines
    assert "1 architectures, 2 kinds of calls: 2 right, 1 one graph, 1 without fallbacks. 2026-01-02" in lines[-1]


def test_what_is_wrong_is_shown_as_such() -> None:
    wrong = Outcome("forward", graphs=1, max_abs=0.5, error="VerifyError: 1 of 1 outputs")
    failed = Outcome("decode", error="the process ended with code -11")
    lines = page.markdown(record(wrong, failed)).splitlines()
    assert lines[2] == "| bert | one graph | none | wrong: 5.0e-01 | - | no | - | failed | - |"
    assert "- bert, decode: the process ended with code -11" in lines
    assert "0 right" in lines[-1]


def test_a_page_without_a_place() -> None:
    with pytest.raises(page.CoveragePageError, match="is there 0 times"):
        page.replaced("nothing", "table")


class Lies(nn.Module):
    """Gives other values when it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if torch.compiler.is_compiling() else x


def test_measuring_what_is_right_and_what_is_not() -> None:
    found = measure.measure(ARCHITECTURES["mean-classifier"])
    assert found.passed
    assert measure.row_of(json.loads(json.dumps(found.to_dict()))) == found
    (outcome,) = found.outcomes
    assert (outcome.graphs, outcome.fallbacks, outcome.split) == (1, (), None)
    wrong = measure.observe("forward", Lies().eval(), [((torch.ones(3),), {})], dynamic=True)
    assert not wrong.passed
    assert "break the numeric contract" in (wrong.error or "")
    raised = measure.attempt("forward", lambda: 1 // 0)
    assert (raised.error or "").startswith("ZeroDivisionError")


# --- processes and the command ----------------------------------------------------------------------------------------


def process(monkeypatch: pytest.MonkeyPatch, code: str) -> list[list[str]]:
    """Let ``code`` stand in for the worker; what it was started with."""
    started: list[list[str]] = []

    def start(names: list[str]) -> subprocess.Popen[bytes]:
        started.append(list(names))
        return subprocess.Popen([sys.executable, "-c", code, *names], stdout=subprocess.PIPE)

    monkeypatch.setattr(worker, "_started", start)
    return started


def test_a_process_that_ends_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import json, os, sys
for name in sys.argv[1:]:
    if name == "bert":
        os._exit(7)
    print(json.dumps({"name": name, "kind": "encoder", "outcomes": []}), flush=True)
"""
    started = process(monkeypatch, code)
    found = list(worker.rows(["vit", "bert", "t5", "gpt2"]))
    assert [row.name for row in found] == ["vit", "bert", "t5", "gpt2"]
    assert [row.passed for row in found] == [True, False, True, True]
    assert found[1].outcomes[0].error == "the process ended with code 7"
    assert started == [["vit", "bert", "t5", "gpt2"], ["t5", "gpt2"]]


def test_a_process_that_hangs_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    process(monkeypatch, "import time; time.sleep(60)")
    (row,) = worker.rows(["bert"], seconds=0.2)
    assert row.outcomes[0].error == "not done after 0 s"


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "rows", lambda names: (Row(name, "encoder", (GOOD,)) for name in names))
    path = tmp_path / "found.json"
    assert command.coverage(["bert", "vit"], path)
    assert command.coverage(["gpt2"], path)  # the other rows are kept, in the order of the list
    assert [row["name"] for row in json.loads(path.read_text())["architectures"]] == ["bert", "gpt2", "vit"]
    bad = Outcome("forward", graphs=1, max_abs=1.0, error="VerifyError: wrong")
    monkeypatch.setattr(command, "rows", lambda names: (Row(name, "encoder", (bad,)) for name in names))
    assert not command.coverage(["bert"], None)
    assert "bert, forward: VerifyError: wrong" in capsys.readouterr().out
    with pytest.raises(command.UnknownArchitectureError, match="did you mean bert"):
        command.coverage(["brt"], None)
