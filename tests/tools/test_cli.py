"""The command line: what it prints, where, and with which exit code."""

import json
import re
import statistics
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner, Result

import smelt
from smelt.codegen.tvm.meter import Meter
from smelt.ir.cost import Roofs
from smelt.tools import cli
from smelt.tools.bench import command, peers, start
from smelt.tools.bench import run as bench_run
from smelt.tools.bench.sweep import RecaptureError, check_one_capture
from smelt.tools.zoo import ZOO

TINY = "zoo:two-layer-mlp:tiny"
ROOFS = Roofs(1e11, 1e10, 1e10, peaks={"float32": 1e11})
METERS = {"flops": Meter(lambda: None, 1000), "bytes": Meter(lambda: None, 500)}


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.app, list(args))
    assert result.exit_code == code, result.output
    return result


def run_json(*args: str) -> Any:
    return json.loads(run(*args).stdout)


def test_help_names_every_command() -> None:
    text = run("--help").stdout
    names = ("demo", "dump-ir", "zoo", "env", "bench", "bisect", "explain", "fuzz", "tune", "verify-rules")
    for name in (*names, "export", "inspect", "verify", "opinfo", "coverage"):
        assert name in text
        page = run(name, "--help").stdout
        assert "Usage" in page
        assert not re.search(r"[\U0001f000-\U0001faff]", page)  # ":llama:" in a text becomes a picture


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
    assert any("GB/s (best read of" in roof for roof in roofs.values())


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


def test_what_a_model_prints_is_not_among_the_json(tmp_path: Path) -> None:
    source = tmp_path / "chatty.py"
    source.write_text(
        "import torch\n"
        "print('imported')\n"
        "def model(x):\n"
        "    print('called')\n"
        "    return x + 1\n"
        "def make_model():\n"
        "    return model, (torch.zeros(2),)\n"
    )
    result = run("dump-ir", f"{source}:make_model", "--json")
    assert json.loads(result.stdout)["stage"] == "final"
    assert "imported" in result.stderr
    assert "called" in result.stderr


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
    result = run("dump-ir", "zoo:qqq", code=1)
    assert result.stdout == ""
    assert result.stderr.startswith("error: there is no model zoo:qqq; there are: ")
    near = run("dump-ir", "zoo:bart", code=1)
    assert near.stderr == "error: there is no model zoo:bart; did you mean bart-base?\n"
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
    monkeypatch.setattr(bench_run.LoadClock, "load", lambda self: 0.1)
    monkeypatch.setattr(command, "measure_roofs", lambda target: ROOFS)
    monkeypatch.setattr(command, "meters", lambda target, dtype: {"float32": METERS}.get(dtype, {}))


@pytest.mark.usefixtures("quick")
def test_bench(tmp_path: Path) -> None:
    result = run("bench", TINY, "--rounds", "2", "--peers", "eager", "--starts", "0", "--threads", "1")
    assert "1 thread each" in result.stdout
    assert re.search(r"^smelt +[\d.]+ +[\d.]+ +1.00", result.stdout, re.MULTILINE)
    assert re.search(r"^eager +[\d.]+ +[\d.]+ +[\d.]+", result.stdout, re.MULTILINE)
    assert "0.5 cores busy" in result.stderr
    assert all(len(line) <= 100 for line in result.stdout.splitlines())


@pytest.mark.usefixtures("quick")
def test_bench_as_json(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    run("bench", TINY, "--rounds", "2", "--peers", "eager", "--starts", "0", "--json", str(file))
    data = json.loads(file.read_text())
    assert data["environment"]["versions"]["smelt"] == smelt.__version__
    assert set(data["environment"]) == {"versions", "machine", "target"}  # and no folder of whoever measured
    assert data["roofs"]["peaks"] == {"float32": 1e11}
    assert data["roofs"]["bytes_per_second"] == 1e10
    (found,) = data["workloads"]
    assert set(found["timings"]["seconds"]) == {"smelt", "eager"}
    assert all(len(seconds) == 2 for seconds in found["timings"]["seconds"].values())
    assert found["ratios"]["smelt"] == 1.0
    assert found["summary"]["eager"]["best"] <= found["summary"]["eager"]["median"]
    floors = [
        max(found["work"] / flops, found["moved"] / rate)
        for flops, rate in zip(found["roofs"]["flops"], found["roofs"]["bytes"], strict=True)
    ]
    shares = [floor / seconds for floor, seconds in zip(floors, found["timings"]["seconds"]["smelt"], strict=True)]
    assert found["share"]["smelt"] == pytest.approx(statistics.median(shares))
    assert found["bound"] in ("flops", "bytes")
    assert found["errors"]["eager"] == 0.0
    assert found["worst_ratio"] == found["ratios"]["eager"]


@pytest.mark.usefixtures("quick")
def test_bench_of_several(tmp_path: Path) -> None:
    models = [f"{TINY}@{size}" for size in ("1x3", "2x5")]
    data = run_json("bench", *models, "--rounds", "1", "--peers", "", "--starts", "0", "--json", "-")
    assert [found["model"] for found in data["workloads"]] == models
    assert data["workloads"][1]["inputs"] == ["[0] float32[2, 16]"]


@pytest.mark.usefixtures("quick")
def test_bench_in_bfloat16() -> None:
    options = ("--rounds", "1", "--peers", "eager", "--starts", "0", "--dtype", "bf16", "--json", "-")
    (found,) = run_json("bench", TINY, *options)["workloads"]
    assert found["inputs"][0].startswith("[0] bfloat16")
    assert found["share"] == {"smelt": None, "eager": None}


def test_bench_in_an_unknown_dtype() -> None:
    assert (
        "no dtype 'int3' to benchmark; there are: f32, bf16, int8, int4"
        in run("bench", TINY, "--dtype", "int3", code=1).stderr
    )


@pytest.mark.usefixtures("quick")
def test_a_peer_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any, threads: int, dtype: str) -> Any:
        raise RuntimeError("no such operator\nand more")

    def breaking(model: Any, threads: int, dtype: str) -> Any:
        return lambda: broken(model, threads, dtype)  # in its first run, as what is compiled then

    monkeypatch.setattr(peers, "PEERS", peers.PEERS | {"openvino": broken, "onnxruntime": breaking})
    options = ("--rounds", "1", "--peers", "openvino,onnxruntime,eager", "--starts", "0", "--json", "-")
    (found,) = run_json("bench", TINY, *options)["workloads"]
    said = f"cannot run {TINY}: no such operator"
    assert found["failed"] == {"openvino": f"openvino {said}", "onnxruntime": f"onnxruntime {said}"}
    assert set(found["summary"]) == {"smelt", "eager"}


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


def test_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run, "wait_for_idle", lambda: 0.0)
    monkeypatch.setattr(command, "measure_roofs", lambda target: ROOFS)
    monkeypatch.setattr("smelt.runtime.explain.roofs_of", lambda target, cache: ROOFS)
    path = tmp_path / "roofs.png"
    if find_spec("matplotlib") is None:
        assert (
            "pip install matplotlib"
            in run("bench", TINY, "--peers", "", "--starts", "0", "--plot", str(path), code=1).stderr
        )
        return
    drawn: list[Any] = []
    draw = command.draw
    monkeypatch.setattr(command, "draw", lambda dots, *args: (drawn.extend(dots), draw(dots, *args)))
    run("bench", TINY, "zoo:mean-classifier:tiny", "--rounds", "1", "--peers", "", "--starts", "0", "--plot", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert {dot.model for dot in drawn} == {TINY, "zoo:mean-classifier:tiny"}
    assert all(dot.rate > 0 and dot.intensity > 0 and 0 < dot.share <= 1 for dot in drawn)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("dtype", ["int8", "int4"])
def test_quantised_peers(dtype: str) -> None:
    if any(find_spec(package) is None for package in ("onnxruntime", "onnx", "onnxscript")):
        pytest.skip("ONNX Runtime is not installed")
    options = ("--rounds", "1", "--peers", "onnxruntime,eager", "--starts", "0", "--dtype", dtype, "--json", "-")
    found = run_json("bench", TINY, *options)["workloads"][0]
    assert found["failed"] == {}
    assert set(found["ratios"]) == {"smelt", "onnxruntime", "eager"}
    assert 0 < found["errors"]["smelt"] < 0.3
    assert 0 < found["errors"]["onnxruntime"] < 0.3


@pytest.mark.usefixtures("quick")
def test_a_sweep_is_one_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    models: set[int] = set()
    measure_model = bench_run.measure_model

    def remember(model: Any, names: Any, how: Any, spec: str = "", fast: Any = None) -> Any:
        models.add(id(fast))
        outcome = measure_model(model, names, how, spec, fast)
        assert len(fast.entries) == 1
        return outcome

    monkeypatch.setattr("smelt.tools.bench.sweep.measure_model", remember)
    arguments = ("bench", "zoo:mean-classifier:tiny", "--rounds", "1", "--peers", "eager", "--sweep", "b=2,3 s=5,6")
    data = run_json(*arguments, "--json", "-")
    assert [w["model"].partition("@")[2] for w in data["workloads"]] == ["2x5", "2x6", "3x5", "3x6"]
    assert len(models) == 1
    assert "The best peer takes at least" in run(*arguments).stdout


def test_a_sweep_that_needs_a_second_capture() -> None:
    def narrow(x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 3 else x

    fast = smelt.compile(narrow, cache=False)
    fast(torch.randn(4))
    check_one_capture(fast)
    fast(torch.randn(2))
    with pytest.raises(RecaptureError, match=r"captured again within the sweep.*test_cli\.py:\d+"):
        check_one_capture(fast)


@pytest.mark.parametrize("sweep", ["b=", "x=1", "b=0", "s=1,,2", "s=a", "4"])
def test_a_sweep_that_is_none(sweep: str) -> None:
    assert "is no part of a sweep" in run("bench", TINY, "--sweep", sweep, code=1).stderr


@pytest.mark.usefixtures("quick")
def test_a_sweep_of_a_model_without_sizes() -> None:
    for spec in ("zoo:two-layer-mlp@1x3", "mine.py"):
        assert "cannot be swept" in run("bench", spec, "--sweep", "b=1", code=1).stderr


def test_ratios_under_heavy_load_are_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_run, "wait_for_idle", lambda: 1.5)
    monkeypatch.setattr(command, "measure_roofs", lambda target: ROOFS)
    options = ("bench", TINY, "--rounds", "1", "--peers", "eager", "--starts", "0")
    text = run(*options).stdout
    assert re.search(r"^eager +[\d.]+ +[\d.]+ +~[\d.]+", text, re.MULTILINE)
    assert "~: others kept more than 0.5 cores busy" in text
    assert run_json(*options, "--json", "-")["workloads"][0]["loaded"] is True


@pytest.mark.usefixtures("quick")
def test_bench_measures_starts_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[Path] = []

    def fake(spec: str, peer: str, threads: int, folder: Path, dtype: str) -> dict[str, float]:
        folders.append(folder)
        return {"first": float(len(folders)), "process": 9.0, "peak_bytes": 1e6}

    monkeypatch.setattr(bench_run, "measure_start", fake)
    data = run_json("bench", TINY, "--rounds", "1", "--peers", "eager,inductor", "--starts", "3", "--json", "-")
    found = data["workloads"][0]
    starts = found["starts"].items()
    firsts = {(name, kind): [x["first"] for x in tries] for name, kinds in starts for kind, tries in kinds.items()}
    assert firsts == {
        ("smelt", "cold"): [1, 5, 9],
        ("smelt", "warm"): [2, 6, 10],
        ("inductor", "cold"): [3, 7, 11],
        ("inductor", "warm"): [4, 8, 12],
    }
    assert (found["summary"]["smelt"]["cold"], found["summary"]["smelt"]["warm"]) == (5, 6)
    assert folders[::2] == folders[1::2]  # the second process finds what the first one kept,
    assert len(set(folders)) == 6  # and nothing else does


@pytest.mark.usefixtures("quick")
def test_a_peer_that_does_not_start_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fake(spec: str, peer: str, threads: int, folder: Path, dtype: str) -> dict[str, float]:
        asked.append(peer)
        if peer == "inductor" and asked.count(peer) == 3:
            raise start.StartError("it ended")  # in its second try
        return {"first": 1.0, "process": 9.0, "peak_bytes": 1e6}

    monkeypatch.setattr(bench_run, "measure_start", fake)
    data = run_json("bench", TINY, "--rounds", "1", "--peers", "inductor", "--starts", "3", "--json", "-")
    assert set(data["workloads"][0]["starts"]) == {"smelt"}
    assert (asked.count("smelt"), asked.count("inductor")) == (6, 3)


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
    assert "numeric contract" in run("bench", TINY, "--starts", "0", code=1).stderr


@pytest.mark.parametrize("options", [("--dtype", "int4"), ("--sweep", "b=1"), ("--plot", "x.png")])
def test_decoding_refuses_what_it_does_not_measure(options: tuple[str, ...], tmp_path: Path) -> None:
    assert "--decode is for float32" in run("bench", "--decode", "gpt2:tiny", *options, code=1).stderr


def test_the_peak_is_this_process_own() -> None:
    assert 0 < start.peak_bytes() < 64e9
