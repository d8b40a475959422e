"""``smelt bisect``: what it prints, what it writes, and its exit code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.rewrites import regions
from smelt.tools import cli

# where a script of its own finds the package that is tested here
PACKAGE = str(Path(cli.__file__).parents[2]) if "smelt" in Path(cli.__file__).parts else ""


def run(*args: str) -> Result:
    return CliRunner().invoke(cli.app, ["bisect", *args])


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of one kernel, in the folder that commands are run in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(
        "import torch\n\ndef make_model():\n    return lambda x: torch.relu(x - 1) * 2, (torch.randn(3, 4),)\n",
        encoding="utf-8",
    )
    return "model.py"


@pytest.fixture
def wrong_fusion(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused regions forget relu."""
    right = regions.make_region

    def make_region(*args: object) -> Graph:
        region = right(*args)  # type: ignore[arg-type]
        return region.rebuild(lambda n, inputs: inputs[0] if n.op is ops.relu else n.with_inputs(inputs))

    monkeypatch.setattr(regions, "make_region", make_region)


def test_a_sound_model(model: str, tmp_path: Path) -> None:
    result = run(model, "--threads", "1")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("nothing is wrong: every stage keeps the numeric contract (")
    assert not (tmp_path / "smelt-fault.py").exists()


@pytest.mark.usefixtures("wrong_fusion")
def test_a_fault_is_printed_and_written(model: str, tmp_path: Path) -> None:
    result = run(model)
    assert result.exit_code == 1, result.output
    assert "fuse (fusion) breaks the result" in result.stdout
    assert "relu" in result.stdout
    assert "wrote smelt-fault.py" in result.stdout
    # on its own, without the fault: the script holds what was wrong
    shown = subprocess.run(
        [sys.executable, "smelt-fault.py"], env={**os.environ, "PYTHONPATH": PACKAGE}, capture_output=True, text=True
    )
    assert shown.returncode == 1, shown.stderr
    assert re.fullmatch(r"\S+ instead of \S+ in \d+ elements\n", shown.stdout)


@pytest.mark.usefixtures("wrong_fusion")
def test_json_and_another_file(model: str, tmp_path: Path) -> None:
    result = run(model, "--json", "--out", "shown.py")
    assert result.exit_code == 1, result.output
    data = json.loads(result.stdout)
    assert (data["finding"]["stage"], data["wrote"]) == ("fusion", "shown.py")
    assert (tmp_path / "shown.py").read_text(encoding="utf-8") == data["finding"]["script"]


def test_a_model_of_several_graphs(tmp_path: Path) -> None:
    model = tmp_path / "split.py"
    model.write_text(
        "import torch\n\ndef make_model():\n    return lambda x: x + 1 if x.sum() > 0 else x, (torch.ones(2),)\n",
        encoding="utf-8",
    )
    result = run(f"{model}:make_model")
    assert result.exit_code == 2  # 1 would say that something was found
    assert "Only a model that is one graph can be bisected" in result.output
