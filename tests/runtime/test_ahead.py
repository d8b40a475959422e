"""Memory for packed weights that is made ready while a model is captured."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("tvm")

import smelt
from smelt.codegen.tvm.packing import ALIGNMENT
from smelt.runtime import ahead
from smelt.runtime.ahead import Ahead, memory_for, packed_bytes
from smelt.runtime.entry import Entry
from smelt.runtime.saved.entry import KeptEntry

MIB = 1 << 20


class Tied(nn.Module):
    """A table whose matrix is that of the last product too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(100, 64)
        self.inner = nn.Linear(64, 64)
        self.last = nn.Linear(64, 100, bias=False)
        self.last.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.last(self.inner(self.table(ids)))
        return scores


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Ahead]]:
    """The memory that is made ready, for models of any size."""
    found: list[Ahead] = []

    def kept(nbytes: int) -> Ahead:
        found.append(Ahead(nbytes))
        return found[-1]

    monkeypatch.setattr(ahead, "LEAST_BYTES", 1)
    monkeypatch.setattr(ahead, "nothing_shared", lambda: True)
    monkeypatch.setattr(ahead, "Ahead", kept)
    monkeypatch.setattr(ahead, "usable_cores", lambda: 2)
    yield found
    assert all(not pool._thread.is_alive() for pool in found)


def _writers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "smelt-memory"]


def test_what_is_taken_lies_apart_and_is_aligned() -> None:
    pool = Ahead(8 * MIB)
    parts = [pool.take(nbytes) for nbytes in (3 * MIB + 1, 2 * MIB, 1, 7 * MIB, MIB)]
    for number, part in enumerate(parts):
        assert part.data_ptr() % ALIGNMENT == 0
        part.fill_(number)
    pool.close()
    pool.close()
    for number, part in enumerate(parts):
        assert bool((part == number).all())
    assert [part.untyped_storage().data_ptr() == pool._region.data_ptr() for part in parts] == [
        *(True, True, True),
        False,  # there was no room
        True,
    ]


def test_the_thread_ends_where_nothing_is_taken() -> None:
    pool = Ahead(64 * MIB)
    pool.close()
    assert not pool._thread.is_alive()


def test_matrices_are_counted_once_and_tables_where_a_product_reads_them() -> None:
    assert packed_bytes(Tied()) == (64 + 100) * 64 * 4
    assert packed_bytes(nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 64))) == 64 * 64 * 4
    assert memory_for(Tied()) is None  # too few
    assert memory_for(lambda x: x) is None


def test_a_system_that_gives_no_memory_ahead_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is packed may be less than all matrices: nothing where PyTorch runs the model."""

    def refuse(nbytes: int) -> Tensor:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(ahead, "LEAST_BYTES", 1)
    monkeypatch.setattr(ahead, "usable_cores", lambda: 2)
    monkeypatch.setattr(ahead, "nothing_shared", lambda: True)
    monkeypatch.setattr(ahead, "memory", refuse)
    assert memory_for(nn.Linear(64, 64)) is None


def test_packed_weights_lie_in_it(made: list[Ahead]) -> None:
    model = nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 512)).eval()
    fast = smelt.compile(model, cache=False)
    x = torch.randn(70, 256)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
        (pool,) = made
        region = pool._region
        executable = fast.entries[0].executable
        packed = [t for t in executable._packed.values() if t.ndim == 4]
        assert len(packed) == 2
        assert all(t.untyped_storage().data_ptr() == region.data_ptr() for t in packed)
        model[0].weight.mul_(2)
        fast.refresh()  # into other memory: threads may still read this
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)


def test_packed_weights_of_a_kept_capture_lie_in_it(
    made: list[Ahead], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMELT_CACHE_DIR", str(tmp_path / "cache"))
    model = nn.Sequential(nn.Linear(256, 768), nn.ReLU(), nn.Linear(768, 512)).eval()
    x = torch.randn(70, 256)
    first, second = smelt.compile(model), smelt.compile(model)
    results = [first(x), second(x)]
    entries = [fast._captures.entries[0] for fast in (first, second)]
    assert [type(entry) for entry in entries] == [Entry, KeptEntry]
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert len(made) == 2
    assert all(pool._used for pool in made)
    kept = [t for t in entries[1].executable._packed.values() if t.ndim == 4]
    assert len(kept) == 2
    # equal panels are kept once: those that were packed first
    assert {t.untyped_storage().data_ptr() for t in kept} == {made[0]._region.data_ptr()}


def test_a_model_that_cannot_be_captured_leaves_nothing(made: list[Ahead]) -> None:
    class Branch(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if y.sum() > 0 else -y

    with pytest.raises(smelt.CaptureError):
        smelt.compile(Branch(8, 8).eval(), fallback="error", cache=False)(torch.ones(2, 8))
    assert made
    assert not _writers()
