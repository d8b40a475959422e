"""``smelt explain``: what it prints, and with which exit code."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from smelt.ir.cost import Roofs
from smelt.tools import cli, plot

TINY = "zoo:two-layer-mlp:tiny"


@pytest.fixture(autouse=True)
def known_roofs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Roofs that need no measuring."""
    monkeypatch.setattr("smelt.runtime.explain.roofs_of", lambda target, cache: Roofs())


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.app, ["explain", *args])
    assert result.exit_code == code, result.output
    return result


def run_json(*args: str) -> Any:
    return json.loads(run(*args, "--json").stdout)


def test_kernels_bytes_memory_and_refusals() -> None:
    text = run(TINY).stdout
    for expected in ("roofs", "kernels", "linear", "times the least", "memory", "refused"):
        assert expected in text


def test_data() -> None:
    data = run_json(TINY)
    assert data["name"] == TINY
    assert all(step["measured"] is None for step in data["parts"][0]["steps"])


def test_measured() -> None:
    (part,) = run_json(TINY, "--measure")["parts"]
    assert all(step["measured"] > 0 for step in part["steps"])
    assert part["footprint"]["eager"] > 0
    assert part["measured"] > 0


def test_one_rule() -> None:
    text = run(TINY, "--why-not", "linear-of-matmul").stdout
    assert "linear-of-matmul, a rule of the pass recognise, fired" in text
    data = run_json(TINY, "--why-not", "linear-of-matmul")
    assert data["parts"][0]["rule"] == "linear-of-matmul"


def test_a_rule_that_is_not_there() -> None:
    assert "did you mean linear-of-matmul" in run(TINY, "--why-not", "linear-of-matmuls", code=1).stderr.replace(
        "\n", " "
    )


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_a_picture(tmp_path: Path, ending: str) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"roofline.{ending}"
    run(TINY, "--plot", str(path))
    assert path.stat().st_size > 5000
    missing = tmp_path / "folder" / path.name
    assert "there is no folder" in run(TINY, "--plot", str(missing), code=1).stderr


def test_a_picture_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plot, "find_spec", lambda name: None)
    result = run(TINY, "--plot", str(tmp_path / "x.png"), code=1)
    assert "pip install matplotlib" in result.stderr
    assert not (tmp_path / "x.png").exists()


def test_a_gpu_that_is_not_here() -> None:
    text = run(TINY, "--target", "sm_90").stdout
    assert "a GPU sm_90, which need not be here" in text
    assert "not measured: there is no GPU here" in text
    assert "times the least" in text
    data = run_json(TINY, "--target", "sm_90")
    assert data["roofs"] is None
    assert all(step["estimated"] is None for step in data["parts"][0]["steps"])
    assert "there is no GPU here" in run(TINY, "--target", "sm_90", "--measure", code=1).output
    assert "there is no target 'sm_70': of GPUs there are sm_80" in run(TINY, "--target", "sm_70", code=1).output
