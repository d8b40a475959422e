"""The command line: what it prints, where, and with which exit code."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import smelt
from smelt.tools import bench as bench_module
from smelt.tools import cli, start
from smelt.tools.zoo import ZOO

TINY = "zoo:two-layer-mlp:tiny"


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.app, list(args))
    assert result.exit_code == code, result.output
    return result


def run_json(*args: str) -> Any:
    return json.loads(run(*args).stdout)


def test_help_names_every_command() -> None:
    text = run("--help").stdout
    for command in ("demo", "dump-ir", "bisect", "zoo", "env", "bench"):
        assert command in text
        assert "Usage" in run(command, "--help").stdout


def test_version() -> None:
    assert run("--version").stdout == f"smelt {smelt.__version__}\n"


def test_no_command() -> None:
    assert "Usage" in run(code=2).output


def test_an_unknown_command() -> None:
    run("melt", code=2)


# --- zoo and env ------------------------------------------------------------------------------------------------------


def test_zoo() -> None:
    text = run("zoo").stdout
    assert all(f"zoo:{name}" in text for name in ZOO)
    assert all(len(line) <= 100 for line in text.splitlines())
    data = run_json("zoo", "--json")
    assert [entry["model"] for entry in data] == [f"zoo:{name}" for name in ZOO]
    assert data[0]["inputs"] == {"tokens": ["seq", "batch"]}


def test_env(isolated_cache: Path) -> None:
    data = run_json("env", "--json", "--no-measure")
    assert data["versions"]["smelt"] == smelt.__version__
    assert data["cache"]["folder"] == str(isolated_cache)
    assert "roofs" not in data
    assert str(smelt.Target.detect()) == data["target"]["default"]
    text = run("env", "--no-measure").stdout
    assert "apache-tvm" in text
    assert "linker" in text


def test_env_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smelt.tools.env._MATMUL", 64)
    monkeypatch.setattr("smelt.tools.env.best_seconds", lambda run, budget=0.0: (run(), 1e-3)[1])
    roofs = run_json("env", "--json")["roofs"]
    assert any("GFLOP/s (best torch.mm of" in roof for roof in roofs.values())
    assert any("GB/s (best torch.sum of" in roof for roof in roofs.values())


def test_env_where_the_cache_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("SMELT_CACHE_DIR", str(tmp_path / "open"))
    assert "chmod 700" in run_json("env", "--json", "--no-measure")["cache"]["unusable"]


# --- dump-ir ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), "fused("),
        (("--stage", "captured"), "linear("),
        (("--stage", "final"), "fused("),
        (("--after", "fuse"), "fused("),
        (("--stage", "kernels"), "matmul("),
        (("--stage", "code"), "@T.prim_func"),
        (("--diff", "fuse"), "+++ fuse"),
    ],
)
def test_dump_ir(options: tuple[str, ...], expected: str) -> None:
    result = run("dump-ir", TINY, *options)
    assert expected in result.stdout
    assert result.stderr == ""


def test_dump_ir_as_json() -> None:
    data = run_json("dump-ir", TINY, "--stage", "captured", "--json")
    assert (data["model"], data["stage"]) == (TINY, "captured")
    assert data["parts"][0].startswith("graph(")


def test_dump_ir_to_a_folder(tmp_path: Path) -> None:
    files = run("dump-ir", TINY, "--out", str(tmp_path / "dump")).stdout.split()
    assert sorted(files) == sorted(str(path) for path in (tmp_path / "dump").rglob("*.*"))
    names = [Path(file).name for file in files]
    assert names[0] == "00-captured.txt"
    assert any(name.endswith("-final.txt") for name in names)
    assert list((tmp_path / "dump" / "kernels").iterdir())
    assert list((tmp_path / "dump" / "code").glob("*.py"))


@pytest.mark.parametrize(("option", "known"), [("--stage", "captured"), ("--after", "captured"), ("--diff", "canon")])
def test_dump_ir_of_a_stage_that_does_not_exist(option: str, known: str) -> None:
    result = run("dump-ir", TINY, option, "polish", code=2)
    assert result.stdout == ""
    assert f"'polish'; there are: {known}" in " ".join(result.stderr.replace("│", " ").split())


def test_dump_ir_takes_one_way_to_choose() -> None:
    run("dump-ir", TINY, "--stage", "final", "--diff", "fuse", code=2)


SPLIT = """
import torch
class Branching(torch.nn.Module):
    def forward(self, x):
        return (x + 1).relu() if x.sum() > 0 else x * 2
def make_model():
    return Branching().eval(), (torch.ones(3, 4),)
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dump_ir_of_a_model_that_is_more_than_one_graph(tmp_path: Path) -> None:
    path = tmp_path / "split_model.py"
    path.write_text(SPLIT)
    assert "# part 2 of 2" in run("dump-ir", str(path), "--stage", "captured").stdout
    files = run("dump-ir", str(path), "--out", str(tmp_path / "dump")).stdout
    assert "part-1/00-captured.txt" in files
    assert "part-2/00-captured.txt" in files


def test_an_error_is_one_line() -> None:
    result = run("dump-ir", "zoo:bart", code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("error: there is no model zoo:bart; there are: ")
    assert "Traceback" not in result.output


def test_a_model_that_cannot_be_imported_shows_its_own_traceback(tmp_path: Path) -> None:
    path = tmp_path / "broken_model.py"
    path.write_text("def make_model():\n    raise KeyError('weights')\n")
    result = run("dump-ir", f"{path}:make_model", code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("Traceback")
    assert re.findall(r'File "([^"]*)"', result.stderr) == [str(path)]
    assert result.stderr.endswith("KeyError: 'weights'\n")


# --- bench ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "wait_for_idle", lambda: 0.5)


@pytest.mark.usefixtures("quick")
def test_bench(tmp_path: Path) -> None:
    result = run("bench", TINY, "--rounds", "2", "--peers", "eager", "--no-start", "--threads", "1")
    assert "1 thread each" in result.stdout
    assert re.search(r"^smelt +[\d.]+ +[\d.]+ +1.00", result.stdout, re.MULTILINE)
    assert re.search(r"^eager +[\d.]+ +[\d.]+ +[\d.]+", result.stdout, re.MULTILINE)
    assert "0.5 cores busy" in result.stderr
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


@pytest.mark.usefixtures("quick")
def test_bench_as_json(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    run("bench", TINY, "--rounds", "2", "--peers", "eager", "--no-start", "--json", str(file))
    data = json.loads(file.read_text())
    assert set(data["timings"]["seconds"]) == {"smelt", "eager"}
    assert all(len(seconds) == 2 for seconds in data["timings"]["seconds"].values())
    assert data["ratios"]["smelt"] == 1.0
    assert data["summary"]["eager"]["best"] <= data["summary"]["eager"]["median"]
    assert data["environment"]["versions"]["smelt"] == smelt.__version__
    assert run_json("bench", TINY, "--rounds", "1", "--peers", "", "--no-start", "--json", "-")["model"] == TINY


@pytest.mark.usefixtures("quick")
def test_bench_measures_starts_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def fake(spec: str, peer: str, threads: int, folder: Path) -> dict[str, float]:
        folders.append(folder)
        return {"first": float(len(folders)), "process": 9.0}

    monkeypatch.setattr(bench_module, "measure_start", fake)
    data = run_json("bench", TINY, "--rounds", "1", "--peers", "eager", "--json", "-")
    assert data["starts"] == {"smelt": {"cold": 1.0, "warm": 2.0}}
    assert folders[0] == folders[1]


def test_a_start(tmp_path: Path) -> None:
    found = start.measure_start(TINY, "eager", 1, tmp_path)
    assert 0 < found["first"] < found["process"]


def test_a_start_that_fails(tmp_path: Path) -> None:
    with pytest.raises(start.StartError, match=r"measuring the start of eager failed.*no model zoo:nothing"):
        start.measure_start("zoo:nothing", "eager", 1, tmp_path)


def test_an_unknown_peer() -> None:
    assert "no peer 'onnx'; there are: smelt, eager" in run("bench", TINY, "--peers", "onnx", code=1).stderr


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise smelt.VerifyError("1 of 1 outputs break the numeric contract")

    monkeypatch.setattr(bench_module, "verify", fail)
    assert "numeric contract" in run("bench", TINY, "--no-start", code=1).stderr
