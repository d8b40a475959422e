"""Captures kept between processes: found again, giving the same numbers, and never when they are damaged or stale."""

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime import captures as captures_module
from smelt.runtime.cache import CacheWarning, KernelCache
from smelt.runtime.module import CompiledModule
from smelt.runtime.saved import entry as saved_entry
from smelt.runtime.saved.entry import KeptEntry

ROOT = Path(__file__).resolve().parents[2]


class Block(nn.Module):
    """A residual block with merged projections, a view as result, state, and something for PyTorch to run."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.norm = nn.LayerNorm(16)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
        h = nn.functional.scaled_dot_product_attention(*(p(self.norm(x))[:, None] for p in (self.q, self.k, self.v)))
        self.calls.add_(1.0)
        y = x + h[:, 0] * scale
        return {"y": y, "t": y.transpose(1, 2), "sorted": torch.cummax(y, dim=-1)[0], "rows": x.shape[0], "same": x}


X = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    """A cache that holds the capture of a block for X, the block's weights, and the result."""
    folder, model = tmp_path_factory.mktemp("made") / "cache", Block().eval()
    kept = copy.deepcopy(model.state_dict())
    fast, expected = run(model, KernelCache(folder, grace=0), X)
    assert not was_kept(fast)
    assert entry_of(fast).unkept == ""
    return folder, kept, expected


@pytest.fixture
def expected(made: tuple[Path, Any, Any]) -> Any:
    return made[2]


@pytest.fixture
def cache(made: tuple[Path, Any, Any], tmp_path: Path) -> KernelCache:
    shutil.copytree(made[0], tmp_path / "cache")
    (tmp_path / "cache").chmod(0o700)
    return KernelCache(tmp_path / "cache", grace=0)


@pytest.fixture
def model(made: tuple[Path, Any, Any]) -> Block:
    """A block of those weights, as in another process."""
    block = Block().eval()
    block.load_state_dict(made[1])
    return block


def entry_of(fast: CompiledModule) -> Any:
    """The last entry as it is, without completing it."""
    return fast._captures.entries[-1]


def was_kept(fast: CompiledModule) -> bool:
    return type(entry_of(fast)) is KeptEntry


def run(model: Any, cache: KernelCache, *args: Any, **kwargs: Any) -> tuple[CompiledModule, Any]:
    """A newly compiled module, and its result."""
    fast = smelt.compile(model, cache=cache, threads=1)
    return fast, fast(*args, **kwargs)


def same(one: Any, other: Any) -> bool:
    """Whether results are equal bit by bit."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.stride() == other.stride() and torch.equal(one, other)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(one[name], other[name]) for name in one)
    return bool(one == other)


# --- hits -------------------------------------------------------------------------------------------------------------


def test_a_kept_capture_gives_the_same(
    model: Block, cache: KernelCache, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("captured again")

    monkeypatch.setattr(captures_module, "capture", refuse)
    fast, found = run(model, cache, X)
    assert was_kept(fast)
    assert same(found, expected)
    assert found["same"] is X
    assert model.calls.item() == 1
    # other sizes and other weights, by the same capture
    wide = torch.randn(3, 7, 16)
    torch.testing.assert_close(fast(wide), model(wide))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.5)
    fast.refresh()
    torch.testing.assert_close(fast(wide), model(wide))


def test_calls_of_other_kinds(model: Block, cache: KernelCache) -> None:
    fast, scaled = run(model, cache, X, scale=0.5)
    assert not was_kept(fast)
    again, found = run(model, cache, X, scale=0.5)
    assert was_kept(again)
    assert same(found, scaled)
    assert was_kept(run(model, cache, X)[0])


def test_a_kept_capture_can_be_looked_into(model: Block, cache: KernelCache, expected: Any) -> None:
    fast, _ = run(model, cache, X)
    anew = smelt.compile(model, cache=False, threads=1)
    anew(X)
    assert was_kept(fast)
    assert fast.ir() == anew.ir()
    assert not was_kept(fast)
    assert [k.name for k in fast.report().captures[0].kernels] == [k.name for k in anew.report().captures[0].kernels]
    assert "restore" in fast.report().captures[0].seconds
    assert same(fast(X), expected)


def test_weights_are_the_models(model: Block, cache: KernelCache) -> None:
    """The same code with other values is the same capture, with its own numbers."""
    other = Block().eval()
    fast, found = run(other, cache, X)
    assert was_kept(fast)
    torch.testing.assert_close(found["y"], other(X)["y"])
    fast.load_state_dict(model.state_dict())
    torch.testing.assert_close(fast(X)["y"], model(X)["y"])


class Table(nn.Module):
    def __init__(self, held: bool) -> None:
        super().__init__()
        self.table = torch.arange(4.0) if held else None

    def forward(self, x: Tensor) -> Tensor:
        return x + (torch.tensor([1.0, 2.0, 3.0, 5.0]) if self.table is None else self.table)


def test_constants_are_kept(cache: KernelCache) -> None:
    x = torch.randn(3, 4)
    _, expected = run(Table(False).eval(), cache, x)
    fast, found = run(Table(False).eval(), cache, x)
    assert was_kept(fast)
    assert same(found, expected)


def test_tensors_that_are_no_buffers_are_not(cache: KernelCache) -> None:
    model, x = Table(True).eval(), torch.randn(3, 4)
    first, _ = run(model, cache, x)
    assert "neither a parameter nor a buffer" in entry_of(first).unkept
    assert "not kept" in str(first.report())
    assert not was_kept(run(model, cache, x)[0])


class FirstScale(nn.Module):
    """It divides by the largest of the first call."""

    largest: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.largest is None:
            self.largest = x.amax()
        return x / self.largest


@pytest.mark.filterwarnings("ignore:The tensor attribute")
def test_what_the_first_call_settles_is_not(cache: KernelCache) -> None:
    """Another process would divide by what this one saw, and its model would never know."""
    x = torch.arange(1.0, 5.0)
    first, found = run(FirstScale().eval(), cache, x)
    assert torch.equal(found, x / 4)
    assert "sets attributes" in entry_of(first).unkept
    model = FirstScale().eval()
    fast, found = run(model, cache, x + 4)
    assert not was_kept(fast)
    assert torch.equal(found, (x + 4) / 8)
    assert model.largest is not None
    assert torch.equal(model.largest, torch.tensor(8.0))


def test_it_can_be_switched_off(model: Block, cache: KernelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMELT_CACHE_DIR", str(cache.folder))
    kept, kernels = smelt.compile(model, threads=1), smelt.compile(model, cache="kernels", threads=1)
    for fast in (kept, kernels):
        fast(X)
    assert was_kept(kept)
    assert not was_kept(kernels)
    with pytest.raises(ValueError, match="kernels"):
        smelt.compile(model, cache="captures")  # type: ignore[arg-type]


SCRIPT = """
import sys, torch, smelt
sys.path.insert(0, {folder!r})
from a_model import Model
torch.manual_seed(0)
fast = smelt.compile(Model().eval(), threads=1)
y = fast(torch.ones(2, 4))
entry = fast._captures.entries[-1]
print(type(entry).__name__, y.sum().item().hex(), "tvm" in sys.modules)
"""
SOURCE = """
import torch
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
    def forward(self, x):
        return torch.relu(self.linear(x))
"""


def test_between_processes(tmp_path: Path) -> None:
    """Another process finds it, whatever its strings hash to, without TVM's package and without Dynamo."""
    (tmp_path / "a_model.py").write_text(SOURCE)
    environment = {**os.environ, "SMELT_CACHE_DIR": str(tmp_path / "cache"), "PYTHONHASHSEED": "random"}
    environment["PYTHONPATH"] = str(ROOT / ".typecheck")
    command = [sys.executable, "-c", SCRIPT.format(folder=str(tmp_path))]
    first, second = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    )
    assert first[0] == "Entry"
    assert second == ["KeptEntry", first[1], "False"]


# --- damage -----------------------------------------------------------------------------------------------------------


def kept_file(cache: KernelCache) -> Path:
    (path,) = (cache.folder / "captures").glob("*.json")
    return path


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change an entry so that its digest is right again, as whoever wrote it wrongly would have."""
    head_text, text = path.read_text().split("\n")[:2]
    head, body = json.loads(head_text), json.loads(text)
    change(body)
    text = json.dumps(body)
    head["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    path.write_text(f"{json.dumps(head)}\n{text}\n")


def find(model: Block, cache: KernelCache) -> Any:
    """The kept entry for a call with X, and what was said meanwhile."""
    fast = smelt.compile(model, cache=cache, threads=1)
    call = fast._reader.read((X,), {})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        keeper = captures_module.Keeper(model, call, fast.options, captures_module.weights_of(model))
        found = [keeper.find(fast._reader.signature) for _ in range(2)]
    assert [w.category for w in said] == ([] if all(found) else [CacheWarning])
    assert found[0] is found[1] is None or all(found)
    return found[0]


def test_an_entry_is_found(model: Block, cache: KernelCache) -> None:
    assert find(model, cache) is not None


@pytest.mark.parametrize("cut", [0, 1, 40, -2, -40])
def test_a_truncated_entry(cut: int, model: Block, cache: KernelCache) -> None:
    path = kept_file(cache)
    path.write_bytes(path.read_bytes()[:cut])
    assert find(model, cache) is None


def test_a_flipped_bit(model: Block, cache: KernelCache) -> None:
    path = kept_file(cache)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert find(model, cache) is None


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no plan": lambda body: body.pop("plan"),
    "a graph that is none": lambda body: body["plan"].update(graph="graph {"),
    "code for a graph": lambda body: body["plan"].update(graph="__import__('os').abort()"),
    "an unknown weight": lambda body: body["capture"].update(weights=["nothing"]),
    "a place that is none": lambda body: body["plan"]["buffers"][0].__setitem__(0, "elsewhere"),
    "code for a size": lambda body: body["plan"]["buffers"][1].__setitem__(2, ["__import__('os')"]),
    "a step less": lambda body: body["plan"]["steps"].pop(),
    "code for a tree": lambda body: body["capture"].update(in_spec="__import__('os')"),
    "a guard that is none": lambda body: body["capture"].update(guards=[[["eval", "1"], ""]]),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_an_entry_that_was_written_wrongly(wrong: str, model: Block, cache: KernelCache) -> None:
    rewritten(kept_file(cache), WRONG[wrong])
    assert find(model, cache) is None


def test_an_entry_of_another_format(model: Block, cache: KernelCache) -> None:
    path = kept_file(cache)
    path.write_text(path.read_text().replace('"format": 1', '"format": 0'))
    with pytest.raises(AssertionError):  # it is passed over, and nothing is said
        find(model, cache)


def test_kernels_that_are_gone(model: Block, cache: KernelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(**_: Any) -> Any:
        raise AssertionError("weights are packed for nothing")

    for path in cache.folder.glob("*.so"):
        path.unlink()
    monkeypatch.setattr(saved_entry, "Executable", pack)
    assert find(model, cache) is None


def test_an_entry_under_the_name_of_another(model: Block, cache: KernelCache) -> None:
    path = kept_file(cache)
    rewritten(path, lambda body: body)
    text = path.read_text()
    path.write_text(text.replace('"key": "', '"key": "0'))
    assert find(model, cache) is None


def test_damage_is_mended(model: Block, cache: KernelCache, expected: Any) -> None:
    kept_file(cache).write_text("nonsense")
    with pytest.warns(CacheWarning, match="damaged"):
        fast, found = run(model, cache, X)
    assert not was_kept(fast)
    assert same(found, expected)
    assert was_kept(run(model, cache, X)[0])


def test_a_capture_that_is_not_the_models_any_more(
    model: Block, cache: KernelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a key did not tell all, looking into the capture says so, and the new one is used."""
    fast, _ = run(model, cache, X)
    assert was_kept(fast)
    monkeypatch.setattr(model.norm, "eps", 1.0)
    with pytest.warns(CacheWarning, match="report"):
        fast.ir()
    torch.testing.assert_close(fast(X)["y"], model(X)["y"])
