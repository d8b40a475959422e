"""What `make gpu-check` finds right, and what it says of it: rows, verdicts, results, tables, the page."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from smelt.tools.gpu_check import builders, cases, figures, page, record, table, tiny
from smelt.tools.gpu_check.__main__ import main
from smelt.tools.gpu_check.few_bits import dequantised
from smelt.tools.gpu_check.kernels import kernel
from smelt.tools.gpu_check.measure import measure
from smelt.tools.gpu_check.row import COMPILED, EAGER, GRAPHS, PARTS, PEERS, SMELT, TUNED, Target
from smelt.tools.gpu_check.rows import CASES, ONE, ROWS, rows_of
from smelt.tools.gpu_check.workload import Workload, Wrong, expected, verdict

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


# --- rows -------------------------------------------------------------------------------------------------------------


def test_rows() -> None:
    names = [(row.part, row.name) for row in ROWS]
    assert len(set(names)) == len(names)
    assert {peer for row in ROWS for peer in row.peers} <= set(PEERS)
    assert {t.figure for row in ROWS for t in row.targets} == set(figures.FIGURES)
    assert [row.part for row in ROWS] == [name for name in PARTS for _ in rows_of(name)]


def test_the_list_of_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list", "--part", "prefill"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "prefill: llama-3.2-1b bfloat16 2048"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--only", "["], "no regular expression"),
        (["--minutes", "-1"], "no time"),
        (["--minutes", "nan"], "no time"),
        (["--minutes", "soon"], "no time"),
        (["--part", "all"], "invalid choice"),
        (["--dry-run", "--only", "no row has this name"], "--list names them"),
    ],
)
def test_what_cannot_be_asked_for(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Above all a name of no row: that nothing was wrong then says nothing."""
    try:
        code: Any = main(given)
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert said in capsys.readouterr().err


def test_without_a_gpu_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["--out", str(tmp_path), "--only", "softmax"]) == 2
    assert "PyTorch finds no GPU here: say --dry-run" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


# --- what is right ----------------------------------------------------------------------------------------------------


class Logits(nn.Module):
    """The logits that it is told to give."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def work_of(*logits: float, tokens: bool = True) -> Workload:
    return Workload(Logits(), (torch.tensor([[logits]], dtype=torch.bfloat16),), tokens=tokens)


def test_a_result_like_pytorchs() -> None:
    work = work_of(1, 2, 3)
    found = verdict(lambda x: x + 0, work, expected(work))
    assert (found.error, found.tokens, found.ties) == (0, 1, 0)


@pytest.mark.parametrize("change", [lambda x: x * 1.1, lambda x: x * torch.nan, lambda x: x[..., :2]])
def test_a_result_that_is_off(change: Any) -> None:
    work = work_of(1, 2, 3, tokens=False)
    with pytest.raises(Wrong, match="off by"):
        verdict(change, work, expected(work))


def test_another_number_of_results() -> None:
    work = work_of(1, 2)
    with pytest.raises(Wrong, match="another number"):
        verdict(lambda x: (x, x), work, expected(work))


def test_another_token_is_right_only_in_a_tie() -> None:
    """PyTorch is off by 0.01 in each logit here."""

    class Rounded(Logits):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.dtype == torch.float32 else x + 0.01

    def second(x: Tensor) -> Tensor:
        found = x + 0.01
        found[..., 0], found[..., 1] = x[..., 1], x[..., 0]
        return found

    def work(first: float) -> Workload:
        logits = torch.full((1, 1, 10_000), -1.0)
        logits[..., 0], logits[..., 1] = first, 1.0
        return Workload(Rounded(), (logits.half(),), tokens=True)

    near, far = work(1.002), work(1.1)
    right = expected(near)
    assert right.error == pytest.approx(0.01, rel=0.1)
    assert verdict(second, near, right).ties == 1
    with pytest.raises(Wrong, match=r"token 0 is \[1\] in place of \[0\]"):
        verdict(second, far, expected(far))


def test_a_call_that_does_not_write_its_cache_is_wrong() -> None:
    """Though PyTorch wrote the right keys and values there just before."""
    for kind, options in (("decode", {"context": 0}), ("prefill", {"length": 0})):
        work = builders.BUILDERS[kind](CPU, True, model="llama-3-8b", dtype="float32", **options)
        right = expected(work)
        verdict(work.model, work, right)
        frozen = copy.deepcopy(work.model)
        with pytest.raises(Wrong, match="off by"):
            verdict(frozen, work, right, model=work.model)


def test_weights_of_few_bits_stand_for_what_is_stored() -> None:
    model = nn.Sequential(nn.Linear(256, 8, bias=False)).bfloat16().requires_grad_(False)
    for quantize, most in (
        ("int8", 1 / 127),
        ("int4", 1 / 4),
    ):  # 7 steps on the side of the smaller one, 8 on the other
        own, wide, saved = dequantised(model, quantize)
        before, after = model[0].weight.float(), wide[0].weight
        assert after.dtype == torch.float32
        assert torch.equal(own[0].weight, after.bfloat16())
        assert 0 < float((before - after).abs().max() / before.abs().max()) <= most / 2 + 1e-3
        scales = 8 * (1 if quantize == "int8" else 2)
        assert saved == 256 * 8 * 2 - (256 * 8 * (1 if quantize == "int8" else 0.5) + 4 * scales)


def test_a_peer_that_is_wrong_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from smelt.tools.gpu_check import measure as module

    monkeypatch.setattr(module, "ready", lambda name, work: lambda x: x * (2 if name == SMELT else 1))
    found = measure([SMELT, EAGER, GRAPHS], work_of(1, 2), lambda *_: None, dry=True)
    assert found["status"] == "wrong"
    assert "off by" in found["peers"][SMELT]["wrong"]
    assert found["peers"][EAGER]["error"] == 0
    assert found["peers"][GRAPHS] == {"skipped": "it needs a GPU"}
    assert "median" not in json.dumps(found)


def test_a_peer_that_fails_costs_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from smelt.tools.gpu_check import measure as module

    def ready(name: str, work: Workload) -> Any:
        if name == SMELT:
            raise RuntimeError("no\n  memory")
        return lambda x: x

    monkeypatch.setattr(module, "ready", ready)
    found = measure([SMELT, EAGER], work_of(1, 2), lambda *_: None, dry=True)
    assert (found["status"], found["peers"][SMELT]["failed"]) == ("failed", "RuntimeError: no memory")
    assert "error" in found["peers"][EAGER]


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (lambda out, other: None, "Tensor-likes are not close"),  # results stay poisoned
        (lambda out, other: out.flat.zero_(), "written outside of"),
        (lambda out, other: other.zero_(), "was changed"),
    ],
)
def test_kernels_that_do_the_wrong_thing(does: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases.cases_of("map")["awkward gelu"]
    made: list[cases.Memory] = []

    class Kept(cases.Memory):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(self)

    monkeypatch.setattr(cases, "Memory", Kept)
    monkeypatch.setattr(cases, "run", lambda file, buffers, sizes: does(made[1], made[0].tensor))
    with pytest.raises(AssertionError, match=said):
        cases.check(cases.kernel_of(case, None), {"b": 3, "s": 7}, CPU)


def test_a_kernel_that_means_what_its_region_does(monkeypatch: pytest.MonkeyPatch) -> None:
    made = cases.kernel_of(cases.cases_of("map")["awkward gelu"], None)
    given, result = (p.name for p in made.program.params)

    def run(file: Any, buffers: dict[str, Tensor], sizes: Any) -> None:
        buffers[result][:21] = torch.nn.functional.gelu(buffers[given][:21])

    monkeypatch.setattr(cases, "run", run)
    cases.check(made, {"b": 3, "s": 7}, CPU)


def test_sizes_that_tell_most() -> None:
    sizes = [{"m": m} for m in (0, 1, 2, 17, 203)]
    assert cases.telling(sizes, 3) == [{"m": 203}, {"m": 17}, {"m": 0}]
    assert cases.telling(sizes[:1], 3) == [{"m": 0}]
    assert cases.telling(sizes, 1) == [{"m": 203}]


def test_a_row_ends_in_time() -> None:
    found = cases.check_cases(CPU, True, lambda *_: None, 0.0, group="matmul", batch=0, batches=4)
    assert found == {"status": "dry", "agreed": 0, "left": 2}


def test_every_class_of_kernels_has_cases() -> None:
    assert all(len(cases.cases_of(group)) > 5 for group in CASES if group not in ("rows", "scatter"))  # as map


def test_what_kernels_move() -> None:
    work = kernel(CPU, True, op="linear", rows=1, terms=4096, columns=14336)
    assert (work.flops, work.nbytes) == (2 * 33 * 33, 2 * (33 + 33 * 33 + 33))
    attention = kernel(CPU, True, op="attention", batch=1, heads=16, length=99, head=128, causal=True)
    assert attention.flops == 4 * 4 * 16 * (33 * 34 // 2)


# --- results ----------------------------------------------------------------------------------------------------------


def test_a_part_that_is_run_again_replaces_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "h200.json"
    first = record.Results(path, False, {"gpu": {}})
    first.add("decode", "one", {"status": "ok"})
    first.add("kernels", "two", {"status": "ok"})
    record.Results(path, False, {"gpu": {"name": "new"}}).add("decode", "one", {"status": "wrong"})
    found = record.load(path)["parts"]
    assert found["decode"]["rows"] == {"one": {"status": "wrong"}}
    assert found["decode"]["environment"] == {"gpu": {"name": "new"}}
    assert found["kernels"]["rows"] == {"two": {"status": "ok"}}
    with pytest.raises(record.RecordError, match="is of a real run"):
        record.Results(path, True, {})


@pytest.mark.parametrize("text", ["", "[]", '{"version": 0, "parts": {}}'])
def test_files_that_are_no_results(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(record.RecordError):
        record.load(tmp_path / "a.json")


def test_names_of_gpus() -> None:
    names = {"NVIDIA H200": "h200", "NVIDIA A100-SXM4-80GB": "a100-sxm4-80gb", "NVIDIA": "gpu"}
    assert {name: record.name_of({"name": name}) for name in names} == names


def measured() -> dict[str, Any]:
    """A step of the 1B model: 2.6 GB at 4 TB/s are 0.65 ms at least."""
    peers = {
        SMELT: {"rounds": [0.0008, 0.0007, 0.0007], "median": 0.0007, "error": 0.012, "eager_error": 0.01, "ties": 1},
        TUNED: {"rounds": [0.0008, 0.0007, 0.0014], "median": 0.0008},
        EAGER: {"rounds": [0.007] * 3, "median": 0.007},
        COMPILED: {"wrong": "off by 1.0"},
    }
    peers[SMELT]["tokens"] = 16
    roofs = {"bytes": [4e12] * 3, "flops": [7e14] * 3}
    launched = {"graph_launches": 1}
    return {"status": "ok", "peers": peers, "bytes": 2_600_000_000, "flops": 0, "roofs": roofs, "launched": launched}


def test_figures_and_aims() -> None:
    row = rows_of("decode")[0]
    assert row.name == "llama-3.2-1b bfloat16 context 128"
    text = figures.aims(row, measured(), {})
    assert text == (
        "<= 0.66 ms: missed, 0.70 ms; >= 1.15x max-autotune: missed, 1.00x max-autotune; "
        "<= 1 graph launches: reached, 1 graph launches; >= 87% of the roof: reached, 93% of the roof"
    )
    assert figures.best_peer(measured()) == (TUNED, 1.0)
    assert "not measured" in figures.aims(row, {}, {})
    assert figures.bound(measured()) == "bytes"


def test_a_line_of_the_table() -> None:
    row = rows_of("decode")[0]
    head, [line] = table.cells_of(PARTS["decode"], {row.name: measured()}, [row])
    assert head[:6] == [
        "decoding, one token",
        "smelt ms",
        "eager ms",
        "graphs ms",
        "compiled ms",
        "max-autotune ms",
    ]
    assert line[:8] == [
        row.name,
        "0.700",
        "7.000",
        "not measured",
        "WRONG",
        "0.800",
        "93",
        "16 tokens, 1.2x eager's error, 1 in a tie",
    ]


def test_rates_of_kernels() -> None:
    row = rows_of("kernels")[0]
    found = {"status": "ok", "flops": 2.2e12, "bytes": 2.7e8, "roofs": {"bytes": [4e12], "flops": [7e14]}}
    found["peers"] = {SMELT: {"median": 0.004, "rounds": [0.004]}, EAGER: {"failed": "no"}}
    _, [line] = table.cells_of(PARTS["kernels"], {row.name: found}, [row])
    assert line[1:3] == ["550 TFLOP/s", "FAILED"]
    assert line[-1] == ">= 450 TFLOP/s: reached, 550 TFLOP/s; >= best 550 TFLOP/s: reached, best 550 TFLOP/s"


def test_cold_compile_is_compared_with_another_row() -> None:
    rows = {
        r.name: {"peers": {r.peers[0]: {"first_call": s}}} for r, s in zip(rows_of("start"), (8, 20, 80), strict=True)
    }
    row = rows_of("start")[0]
    assert figures.aims(row, rows[row.name], rows) == (
        "<= 10.0 s: reached, 8.0 s; <= 0.125 of max-autotune: reached, 0.100 of max-autotune"
    )


def test_a_layer_of_a_decoding_step_is_six_launches() -> None:
    """Each kernel of a layer is one: counted without a GPU, at real sizes."""
    found = tiny.launches(torch.device("cpu"), ONE)
    assert found["launches"] == 6
    assert found["status"] == "ok"


def test_results_of_the_zoo() -> None:
    known = [row for row in rows_of("tests") if row.name in ("zoo gru-lm", "zoo gpt2", "launches per layer")]
    rows = {
        "zoo gru-lm": {"status": "ok", "peers": {SMELT: {"error": 2e-7}}},
        "zoo gpt2": {"status": "skipped", "error": "no transformers"},
        "launches per layer": {"status": "ok", "launches": 10, "kernels": 24},
    }
    assert table.cells_of(PARTS["tests"], rows, known)[1] == [
        ["launches per layer", "ok, 10 for each layer, <= 6 launches a layer: missed, 10 launches a layer"],
        ["zoo gru-lm", "ok, off by 2.0e-07"],
        ["zoo gpt2", "skipped, no transformers"],
    ]


def test_cases_of_a_class_are_one_line() -> None:
    agreed = {"status": "ok", "agreed": 5}
    rows: dict[str, Any] = {f"map {i} of 4": agreed | {"refused": {f"c{i}": "no"}} for i in (1, 2, 4)}
    rows["map 3 of 4"] = {"status": "wrong", "agreed": 4, "wrong": {"gelu": "off by 1"}}
    known = [r for r in rows_of("tests") if r.name in rows]
    assert table.cells_of(PARTS["tests"], rows, known)[1] == [["kernels: map", "WRONG: gelu: off by 1"]]
    rows["map 3 of 4"] = {"status": "ok", "agreed": 6}
    assert table.cells_of(PARTS["tests"], rows, known)[1] == [["kernels: map", "ok, 21 agree, 3 not offered"]]


def test_faults_are_listed_last() -> None:
    bad = measured()
    bad["peers"][SMELT] = {"wrong": "off by 0.5"}
    data = {"dry": False, "parts": {"decode": {"rows": {"a": bad | {"status": "wrong"}}}}}
    assert table.faults(data) == ["decode: a: wrong: off by 0.5", f"decode: a: {COMPILED}: off by 1.0"]
    assert table.text(data, ["decode"]).splitlines()[-3:] == [
        "What went wrong:",
        "  decode: a: wrong: off by 0.5",
        f"  decode: a: {COMPILED}: off by 1.0",
    ]


def test_the_table_printed_last_is_short() -> None:
    rows = {row.name: {"status": "ok", "agreed": 3} for row in rows_of("tests")}
    rows["launches per layer"] = {"status": "ok", "launches": 10}
    rows["tiny bert"] = {"status": "wrong", "peers": {SMELT: {"wrong": "off by 1"}}}
    found = {row.name: measured() for row in rows_of("decode")[:2]}
    data = {"dry": False, "parts": {"tests": {"rows": rows}, "decode": {"rows": found}}}
    lines = table.text(data, list(PARTS)).splitlines()
    count = len(table.cells_of(PARTS["tests"], rows, rows_of("tests"))[1])
    assert lines[1:5] == [
        "Correctness",
        f"check               {count - 2} ok",
        "launches per layer  ok, 10 for each layer, <= 6 launches a layer: missed, 10 launches a layer",
        "tiny bert           WRONG: off by 1",
    ]
    assert "not measured" not in "\n".join(lines)


def test_targets() -> None:
    assert Target("ms", "<=", 2).met(2)
    assert not Target("ms", "<=", 2).met(2.1)
    assert not Target("share", ">=", 0.9).met(0.89)


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_page_shows_what_was_measured() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    data = record.load(page.RECORD) if page.RECORD.exists() else page.NOTHING
    assert page.made(text, data) == text


def test_a_page_has_every_row() -> None:
    text = page.made(page.PAGE.read_text(encoding="utf-8"), page.NOTHING)
    assert all(f"| {row.name} |" in text for row in ROWS if row.kind != "cases")
    row = rows_of("decode")[0]
    found = {"when": "2026-01-02", "environment": {"gpu": {"name": "NVIDIA H200"}, "driver": "1", "versions": {}}}
    data = {"dry": False, "parts": {"decode": found | {"rows": {row.name: measured()}}}}
    text = page.made(text, data)
    assert f"| {row.name} | 0.700 | 7.000 |" in text
    assert "2026-01-02, NVIDIA H200, driver 1" in text
    assert f"- decode: {row.name}: {COMPILED}: off by 1.0" in text


def test_a_dry_run_is_not_put_into_a_page() -> None:
    with pytest.raises(record.RecordError, match="dry run"):
        page.made(page.PAGE.read_text(encoding="utf-8"), {"dry": True, "parts": {}})
