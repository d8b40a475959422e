"""The command line: what it prints, where, and with which exit code."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

import smelt
from smelt.tools import cli
from smelt.tools.bench import command, peers, roofs, start
from smelt.tools.bench import run as bench_run
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
    for name in ("demo", "dump-ir", "zoo", "env", "bench", "bisect", "explain", "fuzz", "tune", "verify-rules"):
        assert name in text
        assert "Usage" in run(name, "--help").stdout


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
    monkeypatch.setattr("smelt.runtime.roofs.best_seconds", lambda run, budget=0.0: (run(), 1e-3)[1])
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
    monkeypatch.setattr(bench_run, "wait_for_idle", lambda: 0.5)
    monkeypatch.setattr(command, "measure_roofs", lambda threads: roofs.Roofs({"float32": 1e11}, 1e10))


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
    assert data["environment"]["versions"]["smelt"] == smelt.__version__
    assert data["roofs"] == {"operations": {"float32": 1e11}, "bytes_per_second": 1e10}
    (found,) = data["workloads"]
    assert set(found["timings"]["seconds"]) == {"smelt", "eager"}
    assert all(len(seconds) == 2 for seconds in found["timings"]["seconds"].values())
    assert found["ratios"]["smelt"] == 1.0
    assert found["summary"]["eager"]["best"] <= found["summary"]["eager"]["median"]
    nearer = max(found["work"] / 1e11, found["moved"] / 1e10)
    assert found["share"]["smelt"] == pytest.approx(nearer / found["summary"]["smelt"]["best"])


@pytest.mark.usefixtures("quick")
def test_bench_of_several(tmp_path: Path) -> None:
    models = [f"{TINY}@{size}" for size in ("1x3", "2x5")]
    data = run_json("bench", *models, "--rounds", "1", "--peers", "", "--no-start", "--json", "-")
    assert [found["model"] for found in data["workloads"]] == models
    assert data["workloads"][1]["inputs"] == ["[0] float32[2, 16]"]


@pytest.mark.usefixtures("quick")
def test_bench_in_bfloat16() -> None:
    options = ("--rounds", "1", "--peers", "eager", "--no-start", "--dtype", "bf16", "--json", "-")
    (found,) = run_json("bench", TINY, *options)["workloads"]
    assert found["inputs"][0].startswith("[0] bfloat16")
    assert found["share"] == {"smelt": None, "eager": None}


def test_bench_in_an_unknown_dtype() -> None:
    assert "no dtype 'int3' to benchmark; there are: f32, bf16" in run("bench", TINY, "--dtype", "int3", code=1).stderr


@pytest.mark.usefixtures("quick")
def test_a_peer_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any, threads: int) -> Any:
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(peers, "PEERS", peers.PEERS | {"openvino": broken})
    options = ("--rounds", "1", "--peers", "openvino", "--no-start", "--json", "-")
    (found,) = run_json("bench", TINY, *options)["workloads"]
    assert found["failed"] == {"openvino": f"openvino cannot run {TINY}: no such operator"}
    assert set(found["summary"]) == {"smelt"}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (torch.full((2, 3), 1.01), "wrong by 1.0e-02"),
        (torch.full((2, 3), float("nan")), "wrong by nan"),
        (torch.ones(3, 2), r"returns \[3, 2\] in place of \[2, 3\]"),
        ((), "returns 0 tensors in place of 1"),
    ],
)
def test_a_peer_with_a_wrong_result(found: Any, said: str) -> None:
    peers.check("right", {"a": torch.full((2, 3), 1.001)}, [torch.ones(2, 3)])
    with pytest.raises(peers.PeerError, match=said):
        peers.check("wrong", found, [torch.ones(2, 3)])


def test_a_roof_is_the_nearer_one() -> None:
    found = roofs.Roofs({"float32": 1e9}, 1e8)
    assert found.share("float32", 10**9, 0, 2.0) == 0.5
    assert found.share("float32", 10**9, 3 * 10**8, 4.0) == 0.75
    assert found.share("bfloat16", 1, 1, 1.0) is None


def test_roofs_are_measured() -> None:
    found = roofs.measure_roofs(1)
    # no processor of today does less than one of these in a nanosecond or more than a thousand
    assert all(1e9 < rate < 1e13 for rate in found.operations.values())
    assert "float32" in found.operations
    assert 1e8 < found.bytes_per_second < 1e12


def test_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run, "wait_for_idle", lambda: 0.0)
    monkeypatch.setattr(command, "measure_roofs", lambda threads: roofs.Roofs({"float32": 1e11}, 1e10))
    path = tmp_path / "roofs.png"
    if find_spec("matplotlib") is None:
        assert (
            "pip install matplotlib"
            in run("bench", TINY, "--peers", "", "--no-start", "--plot", str(path), code=1).stderr
        )
        return
    run("bench", TINY, "--rounds", "1", "--peers", "", "--no-start", "--plot", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("quick")
def test_bench_measures_starts_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def fake(spec: str, peer: str, threads: int, folder: Path, dtype: str) -> dict[str, float]:
        folders.append(folder)
        return {"first": float(len(folders)), "process": 9.0, "peak_bytes": 1e6}

    monkeypatch.setattr(bench_run, "measure_start", fake)
    data = run_json("bench", TINY, "--rounds", "1", "--peers", "eager", "--json", "-")
    starts = data["workloads"][0]["starts"]
    assert {kind: found["first"] for kind, found in starts["smelt"].items()} == {"cold": 1.0, "warm": 2.0}
    assert set(starts) == {"smelt"}
    assert folders[0] == folders[1]


def test_a_start(tmp_path: Path) -> None:
    found = start.measure_start(TINY, "eager", 1, tmp_path)
    assert 0 < found["first"] < found["process"]
    assert found["peak_bytes"] > 10e6


def test_a_start_that_fails(tmp_path: Path) -> None:
    with pytest.raises(start.StartError, match=r"measuring the start of eager failed.*no model zoo:nothing"):
        start.measure_start("zoo:nothing", "eager", 1, tmp_path)


def test_an_unknown_peer() -> None:
    assert "no peer 'onnx'; there are: smelt, eager" in run("bench", TINY, "--peers", "onnx", code=1).stderr


def test_a_wrong_result_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise smelt.VerifyError("1 of 1 outputs break the numeric contract")

    monkeypatch.setattr(bench_run, "verify", fail)
    assert "numeric contract" in run("bench", TINY, "--no-start", code=1).stderr
