"""``smelt compile-check``: what it prints, and with which exit code. No GPU is needed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from smelt.codegen.gpu import GPU_MACHINES
from smelt.codegen.gpu_schedule import default_gpu_schedule
from smelt.codegen.triton.file import KernelFile, Launch
from smelt.codegen.triton.module import emit
from smelt.ir.errors import BackendError, CaptureError
from smelt.tools import cli, compile_check
from smelt.tools import compile_check_page as page
from smelt.tools.compile_check_cache import Known, key_of, units_of
from smelt.tools.errors import OutputError
from smelt.tools.zoo import ZOO

pytest.importorskip("triton")

from ..codegen.rows_cases import CASES
from ..codegen.test_triton_text import written

ROOT = Path(__file__).resolve().parents[2]
H200 = GPU_MACHINES["sm_90"]
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


def test_a_kernel_that_cannot_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMELT_CACHE_DIR", str(tmp_path))  # where nothing is known

    def refuse(*_: object) -> None:
        raise BackendError("no such instruction")

    monkeypatch.setattr("smelt.codegen.triton.cubin.compile_function", refuse)
    text = run(code=1).stdout
    assert "FAILED" in text
    assert "no such instruction" in text


def test_a_model_of_the_zoo_that_is_not_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are compiled none the less. A model that was asked for by name is an error."""

    def refuse(*_: object) -> None:
        raise CaptureError("it decides by the values of tensors\nso it is traced in parts")

    monkeypatch.setattr(compile_check, "ZOO", {"two-layer-mlp": ZOO["two-layer-mlp"]})
    monkeypatch.setattr(compile_check, "capture", refuse)
    result = CliRunner().invoke(cli.app, ["compile-check", "--zoo", "--tiny", "--target", "sm_90", "--dtype", "f16"])
    assert result.exit_code == 0, result.output
    assert "PyTorch runs parts of zoo:two-layer-mlp:tiny on f16: it decides by the values of tensors" in result.stdout
    assert "it decides" in run("--dtype", "f16", code=2).stderr


def test_equal_functions_are_compiled_once(tmp_path: Path) -> None:
    """Within a run, and between runs; another name makes no other function, another source or target does."""
    (file, launch), (renamed, other) = (source("kernel"), source("k7_sum"))
    assert key_of(file, launch, H200) == key_of(renamed, other, H200)
    assert key_of(file, launch, H200) != key_of(file, launch, GPU_MACHINES["sm_80"])
    assert key_of(file, launch, H200) != key_of(file, replace(launch, warps=8), H200)
    changed = replace(file, text=file.text.replace("BLOCK: tl.constexpr = 1024", "BLOCK: tl.constexpr = 512"))
    assert key_of(file, launch, H200) != key_of(changed, launch, H200)
    with compile_check.Compiler(1, Known(tmp_path)) as compiler:
        first, second = compiler.compile([file, renamed], H200)
        assert compiler.known.compiled == len(units_of(file, H200))
    assert [f["function"] for f in second["functions"]] == ["k7_sum", "k7_sum"]
    with compile_check.Compiler(1, Known(tmp_path)) as compiler:
        assert compiler.compile([file], H200) == [first]
        assert compiler.known.compiled == 0
    for path in tmp_path.glob("*.json"):
        path.write_text("{")
    with compile_check.Compiler(1, Known(tmp_path)) as compiler:
        assert compiler.compile([file], H200) == [first]


def source(name: str) -> tuple[KernelFile, Launch]:
    """A kernel of one function, of that name."""
    program = CASES["awkward gelu"].program()
    file = emit(name, program, default_gpu_schedule(program, H200), CASES["awkward gelu"].region.symbols)
    return file, file.launches[0]


def test_every_way_of_a_kernel_is_compiled() -> None:
    """Attention of few queries has functions for many sizes of the batch, and a function for large ones."""
    file, _ = written("decode")
    assert file.alone is not None
    with compile_check.Compiler(1, Known()) as compiler:
        (answer,) = compiler.compile([file], H200)
    found = [(f["function"], f["bits"]) for f in answer["functions"]]
    assert found == [(x.function, f.bits) for f in file.all for x in f.launches]
    assert ("kernel_alone", 32) in found


def test_an_unknown_target() -> None:
    assert "sm_100" in run("--target", "sm_20", code=2).stderr


def test_several_targets_and_numbers() -> None:
    arguments = ("--target", "sm_80", "--target", "sm_100", "--dtype", "bf16+int4", "--json")
    found = json.loads(run(*arguments).stdout)
    assert [(d["target"], d["numbers"]) for d in found] == [("sm_80", "bf16+int4"), ("sm_100", "bf16+int4")]
    operators = {op for d in found for k in d["kernels"] for op in k["operators"]}
    assert "quantized_linear" in operators


@pytest.mark.parametrize("asked", ["f64", "bf16+int3", "int8"])
def test_numbers_that_there_are_not(asked: str) -> None:
    assert "bf16+int4" in run("--dtype", asked, code=2).stderr


def test_where_triton_interprets_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_check, "interprets", lambda: True)
    assert "unset it" in run(code=2).stderr


def test_a_model_or_the_zoo() -> None:
    assert "say either" in run("--zoo", code=2).stderr


SAMPLE = ("two-layer-mlp", "rnn-lm", "llama-decode")


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_a_sample_of_the_zoo_has_no_spills(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of it is in docs/gpu-kernels.md."""
    monkeypatch.setattr(compile_check, "ZOO", {name: ZOO[name] for name in SAMPLE})
    arguments = ["compile-check", "--zoo", "--tiny", "--target", target, "--dtype", "bf16", "--json"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [r["name"] for r in rows] == [f"zoo:{name}:tiny" for name in SAMPLE]
    for row in rows:
        assert row["kernels"] > 0
        assert row["failed"] == []
        assert row["spilling"] == []
        assert row["shared_bytes"] <= GPU_MACHINES[target].block_shared_bytes


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_is_made_from_its_data() -> None:
    found = json.loads((ROOT / page.KEPT).read_text(encoding="utf-8"))
    text = (ROOT / page.PAGE).read_text(encoding="utf-8")
    assert page.page_with(text, page.table_of(found)) == text
    assert not any(row["failed"] for row in found["rows"])


def test_findings_are_put_together() -> None:
    row = {"name": "zoo:a", "numbers": "f32", "target": "sm_100", "kernels": 1}
    older, newer = ({"versions": {}, "rows": [dict(row, kernels=n), dict(row, target="sm_90")]} for n in (1, 2))
    assert [(r["target"], r["kernels"]) for r in page.merged([older, newer])["rows"]] == [("sm_90", 1), ("sm_100", 2)]
    with pytest.raises(OutputError, match="different versions"):
        page.merged([older, newer | {"versions": {"triton": "0"}}])


def test_a_page_without_a_place_for_the_table() -> None:
    with pytest.raises(OutputError, match="no place"):
        page.page_with("# A page", "| |")
