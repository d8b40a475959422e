"""``smelt tune``: a run from the command line, what it leaves behind, and what is stale of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from smelt.ir.cost import Roofs
from smelt.runtime import tuned
from smelt.runtime.tuner import Progress, Tuner
from smelt.runtime.tuner_records import Records
from smelt.tools import cli, tune
from smelt.tools.errors import ModelError

TINY = "zoo:two-layer-mlp:tiny"


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.app, ["tune", *args])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SMELT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tune, "roofs_of", lambda target, cache: Roofs())
    monkeypatch.setattr(tune, "wait_for_idle", lambda: 0.0)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuner without workers, for which the second schedule of the space is always twice as fast."""

    def time(self: Any, task: Any, schedules: Any, rounds: int) -> Any:
        order = next(k.order for k in kernels[-1] if k.task == task)
        return {"status": "ok", "seconds": [[1e-3 if s == order[1] else 2e-3] * rounds for s in schedules]}

    kernels: list[list[Progress]] = []
    begin = Tuner.__init__

    def remember(self: Tuner, found: Any, *args: Any, **more: Any) -> None:
        begin(self, found, *args, **more)
        kernels.append(self.kernels)

    monkeypatch.setattr(Tuner, "__init__", remember)
    monkeypatch.setattr("smelt.runtime.tuner_worker.Worker.check", lambda self, task, schedule: {"status": "ok"})
    monkeypatch.setattr("smelt.runtime.tuner_worker.Worker.time", time)


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("60s", 60), ("5m", 300), (" 1.5h ", 5400)])
def test_budgets(text: str, seconds: float) -> None:
    assert tune.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "0s", "-1", "5 minutes"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(ModelError, match="is not a budget: say 60s or 5m"):
        tune.seconds_of(text)


def test_a_run_in_real_workers() -> None:
    data = json.loads(run(TINY, "--budget", "90s", "--trials", "1", "--threads", "1", "--json").stdout)
    assert data["model"] == TINY
    assert data["kernels"]
    for kernel in data["kernels"]:
        assert kernel["problem"] == ""
        assert 0 < kernel["default_seconds"] < 1
    assert set().union(*(kernel["tried"] for kernel in data["kernels"])) <= {"ok"}
    assert Records.of_user().all()


@pytest.mark.usefixtures("at_once")
def test_what_is_found_is_shown_kept_and_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not tuned" in run(TINY, "--check").stdout
    shown = run(TINY, "--trials", "3", "--lock").stdout
    assert "2.000" in shown
    assert "Default schedules reach 50% of the tuned speed" in shown
    assert "reaches 50%" in shown
    assert "The model: " in shown
    assert "tuned: 2.00 times as fast" in run(TINY, "--check").stdout
    lock = json.loads((tmp_path / "smelt.lock").read_text())
    assert len(lock["choices"]) == len(Records.of_user().choices()) > 0
    # the lock alone will do, and the same run again changes nothing in it
    before = (tmp_path / "smelt.lock").read_text()
    Records.of_user().path.unlink()
    assert "tuned: 2.00 times as fast" in run(TINY, "--check").stdout
    run(TINY, "--trials", "3", "--lock")
    assert (tmp_path / "smelt.lock").read_text() == before
    assert "(known)" in run(TINY, "--resume").stdout
    # another version of the emitter
    for module in (tune, tuned):
        monkeypatch.setattr(module, "versions", lambda: "another")
    checked = run(TINY, "--check", "--json", code=1)
    states = json.loads(checked.stdout)["kernels"].values()
    assert "stale: made with another version" in states


@pytest.mark.usefixtures("at_once")
def test_records_of_another_machine_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(TINY, "--trials", "2")
    there = tmp_path / "there.jsonl"
    Records.of_user().path.rename(there)
    shown = run(TINY, "--merge", str(there), "--check")
    assert "records of" in shown.stderr
    assert "tuned: 2.00 times as fast" in shown.stdout
    assert "there is no file" in run(TINY, "--merge", str(tmp_path / "nowhere"), code=2).stderr


def test_a_lock_of_another_model_is_said(at_once: None) -> None:
    run(TINY, "--trials", "2", "--lock")
    assert "smelt.lock also has" in run("zoo:mean-classifier:tiny", "--check").stdout


def test_an_unknown_search() -> None:
    assert "no search 'random'; there are: ranked, optuna" in run(TINY, "--search", "random", code=2).stderr
