"""The commands that write, show and check artifacts."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from smelt.tools import cli

MODEL = """
import torch
from torch import nn

class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls.add_(1.0)
        return {"y": self.layer(x).relu(), "calls": self.calls.clone()}

def make_model(seed=0):
    torch.manual_seed(seed)
    return Counter().eval(), (torch.randn(3, 64),)

def make_other():
    return make_model(1)
"""


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.app, list(args))
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("commands")
    (made / "model.py").write_text(MODEL)
    return made


@pytest.fixture(scope="module")
def written(folder: Path) -> dict[str, Any]:
    """What ``smelt export`` said of a file for two processors."""
    options = ("--target", "auto", "--target", "x86-64-v3", "--json")
    found: dict[str, Any] = json.loads(
        run("export", f"{folder}/model.py:make_model", "-o", f"{folder}/counter.smelt", *options).stdout
    )
    return found


def test_export(written: dict[str, Any], folder: Path) -> None:
    assert written["bytes"] == (folder / "counter.smelt").stat().st_size
    assert written["targets"][1] == "x86-64-v3"
    text = run("export", f"{folder}/model.py:make_model", "-o", f"{folder}/int8.smelt", "--quantize", "int8").stdout
    assert "digest" in text


def test_inspect(written: dict[str, Any], folder: Path) -> None:
    text = run("inspect", f"{folder}/counter.smelt").stdout
    for part in (
        written["digest"],
        "entry point forward of Counter",
        "x f32[s0, 64]",
        "s0 in [1, inf]",
        "results {y: *, calls: *}",
        "state   calls",
        "forward/x86-64-v3/kernels.so",
        "weights.safetensors",
        "x86-64-v3, 256-bit vectors",
    ):
        assert part in text
    data = json.loads(run("inspect", f"{folder}/counter.smelt", "--json").stdout)
    assert data["digest"] == written["digest"]
    assert data["weights"]["bytes"] == 4 * (64 * 64 + 64 + 1)


def test_verify(written: dict[str, Any], folder: Path) -> None:
    model = f"{folder}/model.py:make_model"
    for target in ("auto", "x86-64-v3", "compile"):
        text = run("verify", f"{folder}/counter.smelt", "--against", model, "--target", target).stdout
        assert "buffer calls" in text
        assert "keeps the numeric contract" in text
    data = json.loads(run("verify", f"{folder}/counter.smelt", "--against", model, "--json").stdout)
    assert {output["path"] for output in data["outputs"]} == {"y", "calls", "buffer calls"}
    assert data["digest"] == written["digest"]


def test_verify_finds_another_model(written: dict[str, Any], folder: Path) -> None:
    result = run("verify", f"{folder}/counter.smelt", "--against", f"{folder}/model.py:make_other", code=1)
    assert "break the numeric contract" in result.output
    assert "the weights that it was exported with" in " ".join(result.output.split())


def test_verify_of_quantised_weights(folder: Path) -> None:
    model = f"{folder}/model.py:make_model"
    run("export", model, "-o", f"{folder}/few.smelt", "--quantize", "int8")
    run("verify", f"{folder}/few.smelt", "--against", model)
    result = run("verify", f"{folder}/few.smelt", "--against", f"{folder}/model.py:make_other", code=1)
    assert "same quantisation" in result.output


def test_a_damaged_file_is_one_line(written: dict[str, Any], folder: Path) -> None:
    whole = (folder / "counter.smelt").read_bytes()
    (folder / "short.smelt").write_bytes(whole[:-1])
    for command in (("inspect",), ("verify", "--against", "zoo:bert-base:tiny")):
        code = 2 if command[0] == "verify" else 1
        result = run(command[0], f"{folder}/short.smelt", *command[1:], code=code)
        assert "damaged or not an artifact" in " ".join(result.output.split())


def test_a_file_for_a_gpu(folder: Path) -> None:
    pytest.importorskip("triton")
    path = f"{folder}/gpu.smelt"
    run("export", f"{folder}/model.py:make_model", "-o", path, "--target", "x86-64-v3", "--target", "sm_90")
    text = run("inspect", path).stdout
    assert "sm_90, sm_90a code: there is no GPU here" in text
    assert "registers, 0 bytes spilled" in text
    found = json.loads(run("inspect", path, "--json").stdout)
    (functions,) = found["entry_points"]["forward"]["functions"].values()
    assert {"function", "bits", "warps", "registers", "spills", "shared_bytes"} <= set(functions[0])
    refused = run("verify", path, "--against", f"{folder}/model.py:make_model", "--device", "cuda", code=2)
    assert 'say device="cpu"' in refused.output
    run("verify", path, "--against", f"{folder}/model.py:make_model")
