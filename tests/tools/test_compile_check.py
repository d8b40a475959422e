"""``smelt compile-check``: what it prints, and with which exit code. No GPU is needed."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from smelt.ir.errors import BackendError
from smelt.tools import cli

pytest.importorskip("triton")

TINY = "zoo:two-layer-mlp:tiny"


def run(*args: str, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.app, ["compile-check", TINY, *args])
    assert result.exit_code == code, result.output
    return result


def test_a_table_and_the_sources(tmp_path: Path) -> None:
    text = run("--target", "sm_80", "--out", str(tmp_path / "kernels")).stdout
    for expected in ("sm_80", "regs", "spills", "shared", "occup.", "nothing was run or measured", "0 failed"):
        assert expected in text
    files = sorted((tmp_path / "kernels").glob("*.py"))
    assert files
    assert all("@triton.jit" in f.read_text() for f in files)


def test_data() -> None:
    data = json.loads(run("--json").stdout)
    assert data["target"] == "sm_90"
    for kernel in data["kernels"]:
        assert kernel["error"] is None
        assert kernel["calls"] >= 1
        for f in kernel["functions"]:
            assert f["registers"] > 0
            assert f["spills"] == 0


def test_a_kernel_that_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BackendError("no such instruction")

    monkeypatch.setattr("smelt.codegen.triton.cubin.compile_file", refuse)
    text = run(code=1).stdout
    assert "FAILED" in text
    assert "no such instruction" in text


def test_an_unknown_target() -> None:
    assert "sm_100" in run("--target", "sm_20", code=2).stderr
