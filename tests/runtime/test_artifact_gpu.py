"""Artifacts for GPUs: what is in them, and what arrives at the driver when they are called. No GPU is needed."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

import smelt
from smelt.runtime.artifact import gpu_load
from smelt.runtime.artifact.gpu_load import Gpu
from smelt.runtime.artifact.loader import ArtifactWarning
from smelt.runtime.artifact.targets import GpuTargetRecord, best_gpu
from smelt.runtime.cuda.driver import Driver
from smelt.runtime.cuda.errors import DriverError
from smelt.tools.zoo import ZOO

from .artifact_models import Cache
from .fake_cuda_driver import FakeLibrary, Launched, playing_driver
from .fake_gpu import TARGET
from .test_artifact import cache_entries

pytest.importorskip("triton")

from ..codegen.interpreter import workers

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("two-layer-mlp", "llama-decode")


class Tokens(nn.Module):
    """An embedding, products, a norm, state, and something for PyTorch that names a device."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.last = nn.Embedding(11, 16), nn.LayerNorm(16), nn.Linear(16, 7)
        self.register_buffer("calls", torch.zeros(3))

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        self.calls.add_(1.0)
        h = self.last(self.norm(self.embedding(tokens)))
        order = torch.cummax(h.sum(-1), 0)[0]
        return {"logits": h, "order": order + self.calls.sum()}


def make_tokens() -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(2)
    return Tokens().eval(), (torch.tensor([3, 1, 10, 0, 5]),)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for a processor and two GPUs."""
    model, args = make_tokens()
    path = tmp_path_factory.mktemp("gpu") / "tokens.smelt"
    smelt.export(model, args, target=("auto", "sm_80", "sm_90")).save(path)
    return path


@pytest.fixture(scope="module", params=MODELS)
def zoo(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    torch.manual_seed(0)
    model, args, kwargs = ZOO[request.param].make(tiny=True)
    path = tmp_path_factory.mktemp("zoo") / "model.smelt"
    smelt.export(model, args, kwargs, target="sm_90").save(path)
    return request.param, path


class OneQuery(nn.Module):
    """Attention of one query for each of 8 heads, on any number of keys."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(q.view(-1, 8, 1, 16), k, v)


def one_query(batch: int, keys: int) -> tuple[Tensor, ...]:
    return torch.randn(batch, 128), torch.randn(batch, 8, keys, 16), torch.randn(batch, 8, keys, 16)


# --- results ----------------------------------------------------------------------------------------------------------


def distances(name: str, path: Path) -> tuple[list[float], int]:
    """How far the results of an artifact's launches, interpreted, are from eager's in some calls; and how many."""
    from . import interpreted_code

    torch.manual_seed(0)
    model, args, kwargs = ZOO[name].make(tiny=True)
    ours, theirs = copy.deepcopy(args), copy.deepcopy(args)
    found = []
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        loaded, code = interpreted_code.loaded(path, "sm_90", patch)
        for _ in range(3):
            pairs = zip(
                pytree.tree_leaves((loaded(*ours, **kwargs), ours)),
                pytree.tree_leaves((model(*theirs, **kwargs), theirs)),
                strict=True,
            )
            found.append(max(_distance(*pair) for pair in pairs))
        assert loaded.entry_points["forward"].entry.executable.graph_report().replays == 1
    return found, len(code.launched)


def _distance(ours: Any, theirs: Any) -> float:
    if not isinstance(ours, Tensor) or not ours.numel():
        return 0.0
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1))


def test_the_records_of_launches_compute_what_the_model_does(zoo: tuple[str, Path]) -> None:
    found, launches = workers().submit(distances, *zoo).result()
    assert max(found) < 2e-6
    assert launches >= 3 * 2


def state_and_pytorch(path: Path) -> None:
    """Launches, a step of PyTorch's, state, and an index out of range, interpreted."""
    from . import interpreted_code

    model, _ = make_tokens()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        loaded, _ = interpreted_code.loaded(path, "sm_90", patch)
        for rows in (5, 1, 9, 9, 9, 9):
            x = torch.randint(0, 11, (rows,))
            ours, theirs = loaded(x), model(x)
            for name in theirs:
                torch.testing.assert_close(ours[name], theirs[name])
        assert float(loaded.state["calls"][0]) == 6.0
        loaded.reset()
        assert not loaded.state["calls"].any()
        with pytest.raises(IndexError):
            loaded(torch.tensor([99]))


def test_state_steps_of_pytorch_and_indices(tokens: Path) -> None:
    workers().submit(state_and_pytorch, tokens).result()


def compiled_anew(path: Path) -> tuple[str, str]:
    """The same file where kernels are interpreted: none of its code runs, and they are made from its graph."""
    model, _ = make_tokens()
    x = torch.randint(0, 11, (4,))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", ArtifactWarning)
        loaded = smelt.load(path, device="cuda")
    for name, value in model(x).items():
        torch.testing.assert_close(loaded(x)[name] if name == "logits" else value, value)
    told = [str(one.message) for one in said if issubclass(one.category, ArtifactWarning)]
    return loaded.report().target, "|".join(told)


def test_kernels_are_made_anew_from_the_graph(tokens: Path) -> None:
    target, told = workers().submit(compiled_anew, tokens).result()
    assert target == "this GPU, compiled anew"
    assert told.count("compiled anew") == 1
    assert "TRITON_INTERPRET is set" in told


# --- what arrives at the driver ---------------------------------------------------------------------------------------


def values(launched: Launched) -> list[int]:
    return [int.from_bytes(part, "little") for part in launched.arguments]


def test_modules_are_loaded_once_and_launched_as_recorded(tokens: Path) -> None:
    with playing_driver() as driver:
        loaded = smelt.load(tokens, device="cuda:0")
        assert loaded.report().target == "sm_90, sm_90a code"
        assert [entry[0] for entry in driver.log[:2]] == ["retain", "context"]
        functions = [entry[1] for entry in driver.log if entry[0] == "load"]
        x = torch.tensor([3, 1, 10])
        for _ in range(4):
            loaded(x)
        assert len([entry for entry in driver.log if entry[0] == "load"]) == len(functions)
    per_call = len(driver.launches) // 4
    assert len(driver.launches) == 4 * per_call > 0
    assert {one.function for one in driver.launches} <= set(functions)
    assert all(one.stream == 7 for one in driver.launches)
    calls = [driver.launches[i * per_call : (i + 1) * per_call] for i in range(4)]
    assert all([one.function for one in call] == [one.function for one in calls[0]] for call in calls)
    # 32 bits suffice for the size, which stands before two scratch buffers that there are none of
    sized = [one for one in driver.launches if len(one.arguments[-3]) == 4]
    assert sized
    assert all(values(one)[-3:] == [3, 0, 0] for one in sized)


def test_sizes_that_need_wide_offsets_get_them(tokens: Path) -> None:
    with playing_driver() as driver:
        loaded = smelt.load(tokens, device="cuda")
        executable: Any = loaded.entry_points["forward"].entry.executable
        symbol = executable.plan.graph.symbols[0].symbol
        kernels = [step.kernel for step in executable.plan.steps if hasattr(step, "kernel")]
        launcher = executable.gpu.launcher
        for kernel in kernels:
            tensors = [torch.empty(64, dtype=dtype) for dtype in kernel.dtypes]
            for rows, nbytes in ((7, 4), (1 << 31, 8)) if kernel.narrow is not None else ():
                driver.launches.clear()
                launch, _ = launcher(kernel, {symbol: rows})
                launch(tensors)
                assert driver.launches
                assert all(len(one.arguments[-3]) == nbytes for one in driver.launches)
                assert all(values(one)[-3] == rows for one in driver.launches)
        sized = [kernel for kernel in kernels if kernel.narrow is not None]
        assert sized
        with pytest.raises(smelt.BackendError, match="too large"):
            launcher(sized[0], {symbol: 1 << 60})


def test_enough_queries_take_all_their_keys_in_one_launch(tmp_path: Path) -> None:
    smelt.export(OneQuery().eval(), one_query(2, 40), target="sm_90").save(tmp_path / "model.smelt")
    with playing_driver() as driver:
        loaded = smelt.load(tmp_path / "model.smelt", device="cuda")
        executable: Any = loaded.entry_points["forward"].entry.executable
        (kernel,) = [step.kernel for step in executable.plan.steps]
        b, k = (r.symbol for r in executable.plan.graph.symbols)
        assert {one.function for one in kernel.launches} <= {entry[1] for entry in driver.log if entry[0] == "load"}
        for batch, names in ((1, ["parts", "whole"]), (65, ["parts", "whole"]), (66, ["alone"])):
            driver.launches.clear()
            loaded(*one_query(batch, 40))
            assert [one.function.rpartition("_")[2] for one in driver.launches] == names
    few, many = kernel.at({b: 66, k: 40}), kernel.at({b: 66, k: 1 << 24})  # whose offsets need 64 bits
    assert few == kernel.alone
    assert many == kernel.wide != kernel.narrow
    assert kernel.narrow == kernel.at({b: 65, k: 40})


def test_a_thread_without_a_context_gets_pytorchs(tokens: Path) -> None:
    with playing_driver() as driver:
        loaded = smelt.load(tokens, device="cuda")
        driver.context = None
        loaded(torch.tensor([1]))
        assert driver.context == 1100


def test_loading_leaves_a_thread_its_context(tokens: Path) -> None:
    for context in (1101, None):  # that of another GPU, and none
        with playing_driver() as driver:
            driver.context = context
            smelt.load(tokens, device="cuda")
            assert [entry for entry in driver.log if entry[0] == "load"]
            assert driver.context == context
    library = FakeLibrary()
    library.context = 1101
    library.fails["cuModuleLoadData"] = 209
    with playing_driver(library), pytest.raises(DriverError):
        smelt.load(tokens, device="cuda")
    assert library.context == 1101


def test_what_the_driver_refuses_is_a_typed_error(tokens: Path) -> None:
    library = FakeLibrary()
    library.fails["cuModuleLoadData"] = 209
    with playing_driver(library), pytest.raises(DriverError, match="cuModuleLoadData: CUDA_ERROR_NO_BINARY") as found:
        smelt.load(tokens, device="cuda")
    assert (found.value.code, found.value.function) == (209, "cuModuleLoadData")
    library = FakeLibrary()
    with playing_driver(library):
        loaded = smelt.load(tokens, device="cuda")
        library.fails["cuLaunchKernel"] = 719
        with pytest.raises(smelt.BackendError, match="cuLaunchKernel: error 719"):
            loaded(torch.tensor([1]))


def test_entry_points_share_state_on_the_gpu(tmp_path: Path) -> None:
    path = tmp_path / "cache.smelt"
    smelt.export(cache_entries(Cache().eval()), target="sm_90").save(path)
    with playing_driver() as driver:
        loaded = smelt.load(path, device="cuda")
        table = next(t for name, t in loaded.state.items() if name.endswith("table"))
        calls = {
            "write": (torch.randn(2, 32), torch.tensor([3, 5])),
            "product": (torch.randn(4, 16),),
            "total": (torch.randn(4, 32),),
        }
        for name, args in calls.items():
            driver.launches.clear()
            loaded.entry_points[name](*args)
            assert any(table.data_ptr() in values(one) for one in driver.launches), name
        loaded.reset()
        loaded.close()
    with pytest.raises(smelt.ArtifactError, match="closed"):
        loaded.entry_points["write"](*calls["write"])


def test_weights_are_copied_to_the_gpu_once_and_when_they_are_needed() -> None:
    values = {name: torch.randn(3) for name in ("a", "b")}
    found = gpu_load._Resident(values, torch.device("meta"))
    assert (len(found), list(found), "a" in found, "c" in found) == (2, ["a", "b"], True, False)
    assert not found.held
    assert found["a"] is found["a"]
    assert found["a"].device.type == "meta"
    assert list(found.held) == ["a"]


def test_the_gpu_that_pytorch_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of PyTorch and of the driver: neither Triton nor a compiler."""
    properties = SimpleNamespace(name="played", major=9, minor=0, multi_processor_count=114, L2_cache_size=50 << 20)
    library = FakeLibrary()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(gpu_load, "driver", lambda: Driver(library))
    monkeypatch.setattr("smelt.runtime.cuda.target.find_spec", lambda name: None)
    for spec in ("cuda", "cuda:0"):
        found = gpu_load.find_gpu(spec)
        assert found.target.gpu is not None
        assert (found.capability, found.target.gpu.processors, found.shared) == (90, 114, 227 << 10)
        assert found.target.device == torch.device("cuda", 0)
        assert found.launcher is not None
        assert found.launcher.stream() == 77
        assert found.runner is not None
        assert found.runner.device == torch.device("cuda", 0)
    with pytest.raises(smelt.BackendError, match="there is no GPU 3"):
        gpu_load.find_gpu("cuda:3")
    properties.major = 7
    with pytest.raises(smelt.UnsupportedError, match=r"8\.0 and later"):
        gpu_load.find_gpu("cuda")


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("smelt.runtime.cuda.driver.LIBRARY", "libno-such-cuda.so.1")
    with pytest.raises(smelt.BackendError, match="NVIDIA's driver"):
        Driver()


# --- which kernels ----------------------------------------------------------------------------------------------------


def record(arch: str, shared: int = 1 << 10) -> GpuTargetRecord:
    from smelt.codegen.gpu import GpuMachine

    return GpuTargetRecord.of(GpuMachine(int(arch[3:].rstrip("af"))), arch, shared)


def test_code_runs_on_the_same_generation_and_with_a_letter_on_that_gpu_only() -> None:
    most = 227 << 10
    ampere, hopper, blackwell, family = record("sm_80"), record("sm_90a"), record("sm_100a"), record("sm_100f")
    everything = [ampere, hopper, blackwell]
    assert [best_gpu(everything, c, most) for c in (80, 86, 89)] == [ampere] * 3
    assert best_gpu(everything, 90, most) is hopper
    assert best_gpu(everything, 100, most) is blackwell
    assert [best_gpu(everything, c, most) for c in (75, 87, 103, 120)] == [None] * 4
    assert best_gpu([family], 103, most) is family
    # of one generation the newest that fits
    newer = record("sm_86")
    assert best_gpu([ampere, newer], 89, most) is newer
    assert best_gpu([ampere, newer], 80, most) is ampere
    # an RTX 3090 has less shared memory than the A100 that code was made for
    large = record("sm_80", 120 << 10)
    assert best_gpu([large], 86, 99 << 10) is None
    assert "122,880 bytes" in (large.unfit(86, 99 << 10) or "")


@pytest.mark.parametrize(("capability", "shared"), [(100, 227 << 10), (75, 64 << 10), (90, 100)])
def test_where_none_fits_that_is_said_or_an_error(
    tokens: Path, capability: int, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with playing_driver(capability=capability, shared=shared):
        with pytest.raises(smelt.ArtifactError, match="recompile is off"):
            smelt.load(tokens, device="cuda", recompile=False)
        with pytest.warns(ArtifactWarning, match=f"sm_{capability}|shared memory") as said:
            loaded = smelt.load(tokens, device="cuda")
        assert len(said) == 1
        assert "\n" not in str(said[0].message)
        assert loaded.report().target == "this GPU, compiled anew"
        monkeypatch.setattr(gpu_load, "find_spec", lambda name: None)
        with pytest.warns(ArtifactWarning), pytest.raises(smelt.BackendError, match="needs the package triton"):
            smelt.load(tokens, device="cuda")


def test_which_device(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert smelt.load(tokens).report().device == "cpu"
    assert smelt.load(tokens, device="cpu").report().device == "cpu"
    with pytest.raises(smelt.BackendError, match='device="cuda" needs a GPU, and this PyTorch'):
        smelt.load(tokens, device="cuda")
    with pytest.raises(smelt.BackendError, match="needs a GPU"):
        smelt.load(tokens, target="sm_90")
    with pytest.raises(smelt.UnsupportedError, match="no device 'mps'"):
        smelt.load(tokens, device="mps")
    for device, target in (("cpu", "sm_90"), ("cuda", smelt.load(tokens).report().target.split(",")[0])):
        with pytest.raises(smelt.ArtifactError, match="say which you want"):
            smelt.load(tokens, device=device, target=target)
    with pytest.raises(ValueError, match="graphs is -1"):
        smelt.load(tokens, graphs=-1)
    # a GPU is taken where there is one, and the file has something for it
    asked: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_load, "find_gpu", lambda spec: asked.append(spec) or Gpu(TARGET))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))  # too old for any kernel
    assert smelt.load(tokens).report().device == "cpu"
    assert not asked
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ArtifactWarning)
        smelt.load(tokens)
    assert asked == ["cuda"]
    smelt.load(tokens, device="cpu")
    assert asked == ["cuda"]


def test_a_file_for_processors_on_a_gpu_is_compiled(tmp_path: Path) -> None:
    smelt.export(nn.Linear(4, 8).eval(), torch.randn(2, 4)).save(tmp_path / "x.smelt")
    with playing_driver(), pytest.warns(ArtifactWarning, match="has no kernels for GPUs"):
        assert smelt.load(tmp_path / "x.smelt", device="cuda").report().target == "this GPU, compiled anew"


def test_targets_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model, args = make_tokens()
    with pytest.raises(smelt.UnsupportedError, match="sm_80, sm_90, sm_100"):
        smelt.export(model, args, target="sm_70")
    with pytest.raises(smelt.BackendError, match="needs a GPU"):
        smelt.export(model, args, target="cuda")
    monkeypatch.setattr("smelt.runtime.artifact.gpu.find_spec", lambda name: None)
    with pytest.raises(smelt.BackendError, match="pip install triton"):
        smelt.export(model, args, target="sm_90")


# --- what is in the file ----------------------------------------------------------------------------------------------


def test_the_file_holds_source_and_machine_code_and_no_paths(tokens: Path) -> None:
    archive = zipfile.ZipFile(tokens)
    names = set(archive.namelist())
    for target in ("sm_80", "sm_90"):
        assert {f"forward/{target}/{x}" for x in ("plan.json", "kernels.py", "kernels.cubins")} <= names
        code = archive.read(f"forward/{target}/kernels.cubins")
        assert code[:4] == b"\x7fELF"
        assert b"/tmp" not in code
        assert str(Path.home()).encode() not in code
        assert b"@triton.jit" in archive.read(f"forward/{target}/kernels.py")
    assert len([name for name in names if name.endswith("weights.safetensors")]) == 1


WITHOUT = """
import builtins, sys
real = builtins.__import__
def guarded(name, *args, **kwargs):
    if name.partition(".")[0] in ("triton", "tvm", "tvm_ffi", "transformers"):
        raise ImportError(name + " is not here")
    return real(name, *args, **kwargs)
builtins.__import__ = guarded
import pytest, torch, smelt
from {package}.fake_cuda_driver import playing_driver
with playing_driver() as driver:
    loaded = smelt.load({path!r}, device="cuda")
    loaded(torch.tensor([1, 2, 3]))
assert driver.launches
compilers = {{"triton", "tvm", "smelt.frontend.export", "smelt.codegen.triton.launch", "smelt.runtime.artifact.gpu"}}
assert not compilers & set(sys.modules)
print("launched")
"""


def test_loading_needs_neither_triton_nor_tvm(tokens: Path, tmp_path: Path) -> None:
    code = WITHOUT.format(path=str(tokens), package="smelt.tests.runtime")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".typecheck"), "PATH": "/nowhere"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100, cwd=tmp_path
    )
    assert (result.stdout.strip(), result.returncode) == ("launched", 0), result.stderr
