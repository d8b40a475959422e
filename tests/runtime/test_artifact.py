"""Models as artifacts: the same numbers from one copy of the weights, shared state, and no code of the model."""

import os
import subprocess
import sys
import threading
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime.artifact import loader as loader_module
from smelt.runtime.artifact.loader import ArtifactWarning
from smelt.runtime.artifact.targets import TargetRecord, best, present_features
from smelt.runtime.artifact.trees import Output
from smelt.tools.zoo import ZOO

from .artifact_models import Block, Cache, Pair, Part, make_block

ROOT = Path(__file__).resolve().parents[2]
X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def block(folder: Path) -> Path:
    """A block as an artifact for two processors."""
    model, args = make_block()
    path = folder / "block.smelt"
    smelt.export(model, args, target=("auto", "x86-64-v3")).save(path)
    return path


@pytest.fixture(scope="module")
def bert(folder: Path) -> Path:
    model, args, kwargs = ZOO["bert-base"].make(tiny=True)
    path = folder / "bert.smelt"
    smelt.export(model, args, kwargs).save(path)
    return path


@pytest.fixture(scope="module")
def cached(folder: Path) -> Path:
    """Entry points that share a table."""
    torch.manual_seed(5)
    path = folder / "cache.smelt"
    smelt.export(cache_entries(Cache().eval())).save(path)
    return path


def cache_entries(model: Cache) -> dict[str, Any]:
    return {
        "write": (Part(model, "write").eval(), (torch.randn(2, 32), torch.tensor([3, 5]))),
        "product": (model, (torch.randn(4, 16),)),
        "total": (Part(model, "total").eval(), (torch.randn(4, 32),)),
    }


# --- results ----------------------------------------------------------------------------------------------------------


def test_results_are_those_of_the_compiled_model(block: Path) -> None:
    model, _ = make_block()
    expected = smelt.compile(model)(X)
    with smelt.load(block) as loaded:
        found = loaded(X)
    assert torch.equal(found["answer"].logits, expected["answer"].logits)
    assert torch.equal(found["list"][0], expected["list"][0])
    assert found["list"][0].stride() == expected["list"][0].stride()
    assert torch.equal(found["list"][1][0], expected["list"][1][0])
    assert found["rows"] == 2
    assert found["same"] is X


def test_classes_of_the_model_become_mappings_with_attributes(block: Path) -> None:
    found = smelt.load(block)(X)
    answer, pair = found["answer"], found["pair"]
    assert type(answer) is Output
    assert list(answer) == ["logits"]
    assert answer[0] is answer.logits is answer["logits"] is answer.to_tuple()[0]
    with pytest.raises(AttributeError, match="logits"):
        answer.hidden  # noqa: B018
    low, high = pair
    assert pair._fields == Pair._fields
    assert torch.equal(pair.low, low)
    assert (high >= low).all()


def test_other_sizes_and_constants(block: Path) -> None:
    model, _ = make_block()
    loaded = smelt.load(block)
    for shape in ((1, 1, 16), (3, 40, 16), (7, 2, 16)):
        x = torch.randn(shape)
        torch.testing.assert_close(loaded(x=x)["answer"].logits, model(x)["answer"].logits)
    with pytest.raises(smelt.InputError, match="scale"):
        loaded(X, scale=2.0)
    with pytest.raises(smelt.InputError, match="dim 2 is 8"):
        loaded(torch.randn(2, 5, 8))
    with pytest.raises(smelt.InputError, match="do not fit"):
        loaded(X, 1.0, 2.0)
    with pytest.raises(smelt.InputError, match="requires grad"):
        loaded(X.clone().requires_grad_())
    with pytest.raises(smelt.InputError, match="float64"):
        loaded(X.double())


class Defaults(nn.Module):
    def forward(
        self,
        x: Tensor,
        scale: float = 2.5,
        mode: str = "add one",
        sizes: tuple[int, float] = (1000, 2.5),
        to: torch.dtype = torch.float32,
        many: int = 1000,
    ) -> Tensor:
        y = x * scale + sizes[0] * sizes[1] + many
        return (y + 1 if mode == "add one" else y).to(to)


@pytest.mark.parametrize("given", [(), ("scale",), ("mode", "sizes"), ("to", "many")])
def test_a_default_that_is_given_is_the_default(given: tuple[str, ...], tmp_path: Path) -> None:
    """As an equal object: where the file is loaded, none is the model's own."""
    values = {"scale": float("2.5"), "mode": "".join(["add", " one"]), "sizes": (int("1000"), float("2.5"))}
    values |= {"to": torch.float32, "many": int("1000")}
    x = torch.randn(3, 4)
    model = Defaults().eval()
    smelt.export(model, (x,), {name: values[name] for name in given}, cache=False).save(tmp_path / "defaults.smelt")
    with smelt.load(tmp_path / "defaults.smelt") as loaded:
        for names in ((), *((name,) for name in values), tuple(values)):
            torch.testing.assert_close(loaded(x, **{name: values[name] for name in names}), model(x))
        for other in ({"scale": -2.5}, {"many": 1000.0}, {"sizes": (1000, 3)}, {"mode": "none"}):
            with pytest.raises(smelt.InputError, match="was not exported for this call"):
                loaded(x, **other)


def test_arguments_may_be_objects_of_another_class(folder: Path) -> None:
    class Sum(nn.Module):
        def forward(self, pair: Pair, more: dict[str, Tensor]) -> Tensor:
            return pair.low + pair.high + more["x"]

    path = folder / "sum.smelt"
    low, high = torch.randn(2, 4)
    smelt.export(Sum().eval(), (Pair(low, high), {"x": low})).save(path)
    found = smelt.load(path)(Output(low=low, high=high) and Pair(low, high), {"x": low})
    torch.testing.assert_close(found, low + high + low)
    with pytest.raises(smelt.InputError):
        smelt.load(path)((low, high), {"x": low})


def test_an_index_out_of_range_is_found(bert: Path) -> None:
    loaded = smelt.load(bert)
    ids = torch.zeros(1, 4, dtype=torch.int64)
    loaded(input_ids=ids, attention_mask=torch.ones_like(ids))
    with pytest.raises(IndexError):
        loaded(input_ids=ids + 10**6, attention_mask=torch.ones_like(ids))


def test_loading_within_inference_mode(block: Path, cached: Path) -> None:
    expected = smelt.load(block)(X)["answer"].logits
    with torch.inference_mode():
        loaded, state = smelt.load(block), smelt.load(cached)
        torch.testing.assert_close(loaded(X)["answer"].logits, expected)
    torch.testing.assert_close(loaded(X)["answer"].logits, expected)
    assert not any(tensor.is_inference() for tensor in state.state.values())
    state.entry_points["write"](torch.randn(2, 32), torch.tensor([3, 5]))
    state.reset()


def test_autocast_is_refused(block: Path) -> None:
    loaded = smelt.load(block)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(smelt.UnsupportedError, match="autocast"):
        loaded(X)


# --- targets ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not {"avx2", "fma"} <= (present_features() or set()), reason="for processors with AVX2")
def test_kernels_of_another_target_give_the_same(block: Path) -> None:
    expected = smelt.load(block)(X)["answer"].logits
    loaded = smelt.load(block, target="x86-64-v3")
    assert loaded.report().target == "x86-64-v3, 256-bit vectors"
    torch.testing.assert_close(loaded(X)["answer"].logits, expected)
    code = zipfile.ZipFile(block).read("forward/x86-64-v3/kernels.so")
    assert code[:4] == b"\x7fELF"


def test_the_best_target_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(name: str, bits: int, *features: str) -> TargetRecord:
        from smelt.codegen.machine import Machine

        return TargetRecord(name, features, "Linux", "x86_64", Machine(vector_bits=bits))

    v3, v4 = record("v3", 256, "avx2", "fma"), record("v4", 512, "avx2", "avx512f")
    zen = record("zen", 512, "avx2", "avx512f", "avx512vnni")
    present: frozenset[str] = frozenset()
    monkeypatch.setattr("smelt.runtime.artifact.targets.present_features", lambda: present)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    present = frozenset({"avx2", "fma"})
    assert best([v3, v4, zen]) is v3
    present = frozenset({"avx2", "fma", "avx512f"})
    assert best([v3, v4, zen]) is v4
    present = present | {"avx512vnni"}
    assert best([v3, zen, v4]) is zen
    present = frozenset({"avx"})
    assert best([v3, v4, zen]) is None
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert best([v3, v4, zen]) is None


def test_features_are_named_as_llvm_names_them(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor: 0\nflags\t\t: fpu pni sse4_1 abm avx2 avx512_bf16 avx_vnni amx_tile bmi1 bmi2\n")
    found = present_features(info)
    assert found == {"fpu", "sse3", "sse4.1", "lzcnt", "avx2", "avx512bf16", "avxvnni", "amx-tile", "bmi", "bmi2"}
    assert present_features(tmp_path / "none") is None


def test_an_unknown_processor_compiles_and_says_so(block: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "best", lambda records: None)
    expected = make_block()[0](X)["answer"].logits
    with pytest.warns(ArtifactWarning, match=r"x86-64-v3.* compiled anew") as said:
        loaded = smelt.load(block)
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    torch.testing.assert_close(loaded(X)["answer"].logits, expected)
    assert "compile" in loaded.report().seconds


def test_kernels_may_be_compiled_on_purpose(block: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = smelt.load(block, target="compile")
    assert torch.equal(loaded(X)["answer"].logits, smelt.load(block)(X)["answer"].logits)


def test_native_code_that_cannot_be_loaded_is_compiled_anew(block: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise RuntimeError("no such symbol\nand more")

    monkeypatch.setattr(loader_module, "_load_library", refuse)
    with pytest.warns(ArtifactWarning, match="no such symbol"):
        loaded = smelt.load(block)
    assert loaded.report().target == "this processor, compiled anew"
    torch.testing.assert_close(loaded(X)["answer"].logits, make_block()[0](X)["answer"].logits)


def test_the_report_says_which_entry_points_were_compiled(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = loader_module._load_library, []

    def refuse_the_first(code: bytes, names: Any) -> Any:
        calls.append(names)
        if len(calls) == 1:
            raise RuntimeError("no such symbol")
        return real(code, names)

    monkeypatch.setattr(loader_module, "_load_library", refuse_the_first)
    with pytest.warns(ArtifactWarning, match="no such symbol"):
        report = smelt.load(cached).report()
    first, *others = report.targets.values()
    assert first == "this processor, compiled anew"
    assert len(set(others)) == 1
    assert first not in others
    assert f"write: {first}; product: {others[0]}" in str(report)
    assert report.to_dict()["target"] == report.target


@pytest.mark.parametrize("target", ["sm_70", "no-such-processor", 3])
def test_there_is_no_such_target(target: Any) -> None:
    model, args = make_block()
    with pytest.raises(smelt.UnsupportedError, match=str(target)):
        smelt.export(model, args, target=target)


def test_there_is_no_target() -> None:
    model, args = make_block()
    with pytest.raises(smelt.ArtifactError, match='give "auto"'):
        smelt.export(model, args, target=())


def test_its_text_is_one_line() -> None:
    artifact = smelt.export(nn.ReLU().eval(), (torch.randn(3, 4),), target="x86-64-v3", cache=False)
    assert repr(artifact) == "<artifact for x86-64-v3: forward>"


def test_a_target_that_the_file_does_not_have(block: Path) -> None:
    with pytest.raises(smelt.ArtifactError, match="x86-64-v3"):
        smelt.load(block, target="x86-64-v4")


# --- weights and state ------------------------------------------------------------------------------------------------


def test_weights_are_a_safetensors_file_with_each_once(folder: Path) -> None:
    model, args = make_block()
    again = Block().eval()
    again.load_state_dict(model.state_dict())
    artifact = smelt.export({"first": (model, args), "second": (model, args), "equal": (again, args)})
    path = folder / "shared.smelt"
    artifact.save(path)
    archive = zipfile.ZipFile(path)
    assert archive.testzip() is None
    found = safetensors.torch.load(archive.read("weights.safetensors"))
    assert sum(t.nbytes for t in found.values()) <= sum(p.nbytes for p in model.parameters())
    loaded = smelt.load(path)
    logits = [loaded.entry_points[name](X)["answer"].logits for name in ("first", "second", "equal")]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    packs = {t.data_ptr() for e in loaded.entry_points.values() for t in e.entry.executable._packed.values()}
    assert len(packs) == len(loaded.entry_points["first"].entry.executable._packed)
    with pytest.raises(smelt.ArtifactError, match="first, second, equal"):
        loaded(X)


def test_entry_points_share_state(cached: Path) -> None:
    torch.manual_seed(5)
    model = Cache().eval()
    loaded = smelt.load(cached)
    write, product, total = (loaded.entry_points[name] for name in ("write", "product", "total"))
    x, y = torch.randn(4, 16), torch.randn(4, 32)
    for step in range(3):
        row, at = torch.randn(2, 32), torch.tensor([step, 7])
        with torch.no_grad():
            assert torch.equal(write(row, at), model.write(row, at))
            torch.testing.assert_close(product(x), model(x))
            torch.testing.assert_close(total(y), model.total(y))
    assert {name.rpartition(".")[2] for name in loaded.state} == {"table", "calls"}
    loaded.reset()
    assert not product(x).any()
    assert torch.equal(total(y), y)


def test_state_of_the_file_is_that_of_the_model(folder: Path, cached: Path) -> None:
    first, second = smelt.load(cached), smelt.load(cached)
    first.entry_points["write"](torch.randn(2, 32), torch.tensor([0, 1]))
    assert not second.entry_points["product"](torch.randn(4, 16)).any()
    assert not smelt.load(cached).entry_points["product"](torch.randn(4, 16)).any()


def test_views_of_state_are_refused() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            table = torch.zeros(4, 8)
            self.register_buffer("table", table)
            self.register_buffer("first", table[0])

        def forward(self, x: Tensor) -> Tensor:
            self.table.add_(1.0)
            return x + self.first

    with pytest.raises(smelt.SmeltError):
        smelt.export(Views().eval(), torch.randn(8))


@pytest.mark.parametrize("quantize", ["int8", "fp8"])
def test_a_model_of_few_bits_holds_few_bytes(folder: Path, quantize: Any) -> None:
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)).eval()
    x = torch.randn(3, 256)
    path = folder / f"{quantize}.smelt"
    artifact = smelt.export(model, x, quantize=quantize)
    artifact.save(path)
    assert artifact.nbytes < 0.3 * sum(p.nbytes for p in model.parameters())
    expected = smelt.compile(model, quantize=quantize)(x)
    assert torch.equal(smelt.load(path)(x), expected)
    torch.testing.assert_close(smelt.load(path, target="compile")(x), expected)


# --- elsewhere --------------------------------------------------------------------------------------------------------

ELSEWHERE = """
import builtins, sys, torch
real = builtins.__import__
def guarded(name, *args, **kwargs):
    if name.partition(".")[0] in ("transformers", "artifact_models", "tvm", "safetensors") or "artifact_models" in name:
        raise ImportError(name + " is not here")
    return real(name, *args, **kwargs)
builtins.__import__ = guarded
import smelt
x, expected = torch.load({given!r}, weights_only=True)
loaded = smelt.load({path!r})
found = loaded(**x)
assert torch.equal(found[0], expected), (found[0] - expected).abs().max()
assert type(found).__name__ == "Output"
assert torch.equal(found.last_hidden_state, expected)
mapped = open("/proc/self/maps").read()
assert "libtvm_runtime" in mapped and "libtvm_compiler" not in mapped
assert not {{"tvm", "transformers", "smelt.frontend.export", "smelt.rewrites.pipeline"}} & set(sys.modules)
print("same")
"""


def test_a_process_without_the_code_or_a_compiler(bert: Path, tmp_path: Path) -> None:
    model, args, kwargs = ZOO["bert-base"].make(tiny=True)
    expected = smelt.compile(model)(*args, **kwargs)[0]
    given = tmp_path / "given.pt"
    torch.save((dict(kwargs), expected), given)
    code = ELSEWHERE.format(given=str(given), path=str(bert))
    result = run(code, tmp_path, PATH="/nowhere")
    assert (result.stdout.strip(), result.returncode) == ("same", 0), result.stderr


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    there = {"PYTHONPATH": str(ROOT / ".typecheck"), "OMP_NUM_THREADS": "2", "SMELT_CACHE_DIR": str(folder / "none")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **there, **environment},
        capture_output=True,
        text=True,
        timeout=100,
        cwd=folder,
    )


FORKED = """
import os, torch, smelt
loaded = smelt.load({path!r})
x = torch.arange(160, dtype=torch.float32).reshape(2, 5, 16) / 160
ends = []
for _ in range(2):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, loaded(x)["answer"].logits.numpy().tobytes())
        os._exit(0)
    ends.append((child, read))
expected = loaded(x)["answer"].logits.numpy().tobytes()
for child, read in ends:
    assert os.read(read, 1 << 20) == expected
    assert os.waitpid(child, 0)[1] == 0
child = os.fork()
if not child:
    try:
        loaded(x)
    except smelt.BackendError as error:
        assert "fork" in str(error)
        os._exit(7)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="for systems that fork")
def test_fork_before_the_first_call(block: Path, tmp_path: Path) -> None:
    result = run(FORKED.format(path=str(block)), tmp_path)
    assert (result.stdout.strip(), result.returncode) == ("done", 0), result.stderr


TWICE_FORKED = """
import os, sys
from smelt.codegen.tvm import native
from smelt.ir.errors import BackendError

def refuses(deeper):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        native.set_threads(1)
    except BackendError:
        os._exit(7 if not deeper or refuses(deeper - 1) == 7 else 1)
    os._exit(1)

native.set_threads(1)
print(refuses(2))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="for systems that fork")
def test_every_fork_after_the_first_call_is_refused(tmp_path: Path) -> None:
    result = run(TWICE_FORKED, tmp_path)
    assert (result.stdout.strip(), result.returncode) == ("7", 0), result.stderr


def test_eight_threads(block: Path) -> None:
    loaded = smelt.load(block)
    inputs = [torch.randn(1 + i % 3, 3 + i, 16) for i in range(8)]
    expected = [loaded(x)["answer"].logits for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(40):
            if not torch.equal(loaded(inputs[i])["answer"].logits, expected[i]):
                wrong.append(i)

    together(work)
    assert not wrong


def test_eight_threads_and_state(cached: Path) -> None:
    loaded = smelt.load(cached)
    write, total = loaded.entry_points["write"], loaded.entry_points["total"]
    seen: list[float] = []

    def work(i: int) -> None:
        for _ in range(20):
            seen.append(float(write(torch.zeros(2, 32), torch.tensor([0, 1]))))
            total(torch.zeros(1, 32))

    together(work)
    assert sorted(seen) == [float(n) for n in range(1, 161)]


def together(work: Any) -> None:
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def mapped(path: Path) -> int:
    """How often this process maps a file into its memory."""
    return Path("/proc/self/maps").read_text().count(str(path))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="for Linux")
def test_closing(block: Path, folder: Path) -> None:
    path = folder / "closed.smelt"
    path.write_bytes(block.read_bytes())
    descriptors = len(os.listdir("/proc/self/fd"))
    with smelt.load(path) as loaded:
        assert mapped(path) == 1
        kept = loaded(X)["answer"].logits
        before = kept.clone()
    assert mapped(path) == 0
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert torch.equal(kept, before)
    with pytest.raises(smelt.ArtifactError, match="closed"):
        loaded(X)
    with pytest.raises(smelt.ArtifactError, match="closed"):
        loaded.reset()
    loaded.close()


def test_the_digest_that_is_asked_for(block: Path, folder: Path) -> None:
    model, args = make_block()
    digest = smelt.export(model, args).save(folder / "again.smelt")
    assert smelt.load(folder / "again.smelt", digest=digest).digest == digest
    with pytest.raises(smelt.ArtifactError, match=digest[:20]):
        smelt.load(block, digest=digest)


def test_what_is_not_one_graph_is_refused() -> None:
    def branches(x: Tensor) -> Tensor:
        return x + 1 if bool(x.sum() > 0) else x - 1

    with pytest.raises(smelt.SmeltError):
        smelt.export(branches, torch.randn(3))


def test_weights_that_change_after_the_export_are_not_saved(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.LayerNorm(8)).eval()

    model, other = make(), make()
    with torch.no_grad():
        other[0].weight.mul_(2.0)  # type: ignore[union-attr,operator]
        other[2].weight.mul_(3.0)  # type: ignore[union-attr,operator]
    made = smelt.export(model, torch.randn(2, 8))
    made.save(tmp_path / "x.smelt")
    model.load_state_dict(other.state_dict())
    with pytest.raises(smelt.ArtifactError, match="changed after the model was exported"):
        made.save(tmp_path / "y.smelt")
    assert [path.name for path in tmp_path.iterdir()] == ["x.smelt"]


@pytest.mark.parametrize(
    ("model", "args"),
    [({}, ()), ({"a": 3}, ()), ({"a": (abs, torch.ones(2))}, torch.ones(2)), ({"a b": (abs, torch.ones(2))}, ())],
)
def test_entry_points_that_are_none(model: Any, args: Any) -> None:
    with pytest.raises(smelt.ArtifactError):
        smelt.export(model, args)


def test_without_a_cache_or_a_linker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = nn.Linear(4, 8).eval(), torch.randn(2, 4)
    smelt.export(model, x, cache=False).save(tmp_path / "x.smelt")
    assert torch.equal(smelt.load(tmp_path / "x.smelt")(x), smelt.compile(model, cache=False)(x))
    monkeypatch.setattr("smelt.runtime.build.find_linker", lambda: None)
    with pytest.raises(smelt.BackendError, match="install gcc"):
        smelt.export(model, x, cache=False)


def test_a_folder_that_cannot_be_written(block: Path, tmp_path: Path) -> None:
    model, args = make_block()
    with pytest.raises(smelt.ArtifactError, match="cannot be written"):
        smelt.export(model, args).save(tmp_path / "none" / "x.smelt")
    assert list(tmp_path.iterdir()) == []
