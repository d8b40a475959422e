"""Roofs: measured, kept, and measured again where what is kept is damaged."""

import re
from pathlib import Path

import pytest

from smelt.codegen.tvm import stream
from smelt.ir.cost import Roofs
from smelt.runtime import roofs
from smelt.runtime.cache import KernelCache
from smelt.runtime.target import Target

FOUND = Roofs(4e9, 3e9, 2e9, 1e-6, 5e9, {"float32": 4e9, "int8": 2e10})


@pytest.fixture
def count(monkeypatch: pytest.MonkeyPatch) -> list[Target]:
    """The targets that roofs were measured for."""
    asked: list[Target] = []
    monkeypatch.setattr(roofs, "measure", lambda target: (asked.append(target), FOUND)[1])
    return asked


def test_roofs_are_measured_once_for_each_number_of_threads(
    tmp_path: Path, count: list[Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVM_NUM_THREADS", "2")
    cache, target = KernelCache(tmp_path / "cache"), Target.detect(threads=1)
    assert roofs.roofs_of(target, cache) == roofs.roofs_of(target, cache) == FOUND
    assert len(count) == 1
    roofs.roofs_of(target.with_threads(2), cache)
    assert len(count) == 2


@pytest.mark.parametrize(("limit", "threads"), [("1", 1), ("2", 2), ("9", 4), ("0", 4), ("all", 4)])
def test_roofs_of_a_smaller_pool_are_kept_as_those_of_fewer_threads(
    tmp_path: Path, count: list[Target], monkeypatch: pytest.MonkeyPatch, limit: str, threads: int
) -> None:
    cache, target = KernelCache(tmp_path), Target.detect(threads=1)
    monkeypatch.setenv("TVM_NUM_THREADS", limit)
    roofs.roofs_of(target.with_threads(4), cache)
    assert [found.threads for found in count] == [threads]
    roofs.roofs_of(target.with_threads(threads), cache)
    assert len(count) == 1


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"matmul_flops": "x"}', "nan", '{"peaks": 1}'])
def test_damaged_roofs_are_measured_again(tmp_path: Path, count: list[Target], text: str) -> None:
    cache, target = KernelCache(tmp_path), Target.detect()
    roofs.roofs_of(target, cache)
    (path,) = tmp_path.glob("*.roofs")
    path.write_text(text)
    assert roofs.roofs_of(target, cache) == FOUND
    assert len(count) == 2


def test_roofs_that_cannot_be_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Roofs(4e9, 3e9, 2e9, 1e-6, 1e9)  # caches slower than memory: the machine was busy
    monkeypatch.setattr(roofs, "measure", lambda target: slow)
    assert roofs.roofs_of(Target.detect(), KernelCache(tmp_path)) == slow
    assert list(tmp_path.glob("*.roofs")) == []


def test_a_folder_that_cannot_be_used_is_no_error(tmp_path: Path, count: list[Target]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert roofs.roofs_of(Target.detect(), KernelCache(file)) == FOUND


def test_the_kernel_cache_leaves_roofs_alone(tmp_path: Path, count: list[Target]) -> None:
    cache = KernelCache(tmp_path, limit=0, grace=-1)
    roofs.roofs_of(Target.detect(), cache)
    cache._evict()
    assert len(list(tmp_path.glob("*.roofs"))) == 1


def test_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofs, "best_seconds", lambda run, budget=0.0: (run(), 1e-3)[1])
    monkeypatch.setattr(roofs, "peak_rates", lambda target: {"float32": 7e9, "bfloat16": 9e9})
    found = roofs.measure(Target.detect(threads=2))
    assert found.matmul_flops == 7e9
    assert found.peaks == {"float32": 7e9, "bfloat16": 9e9}
    assert found.bytes_per_second == pytest.approx(roofs.READ_BYTES / 1e-3)
    assert found.scalar_flops > 0
    assert found.launch_seconds == pytest.approx(1e-3 / 64)


def test_peaks_are_measured() -> None:
    found = roofs.peak_rates(Target.detect(threads=1))
    # no processor of today does less than one of these in a nanosecond or more than a thousand
    assert all(1e9 < rate < 1e13 for rate in found.values())
    assert "float32" in found


@pytest.mark.parametrize("threads", [1, 2])
def test_memory_is_read(threads: int) -> None:
    target, nbytes = Target.detect(threads=threads), 4 << 20
    meter = stream.meter(nbytes, threads, target.cpu)
    assert meter.amount == nbytes
    # no memory of today is read slower than this, and no cache faster
    assert 1e8 < roofs.rate(meter) < 1e13


def test_a_meter_reads_every_byte() -> None:
    text = stream.llvm_text()
    places = sorted(int(at) for at in re.findall(r"%p\d+ = getelementptr i8, ptr %here, i64 (\d+)", text))
    assert places == list(range(0, stream.BLOCK, stream.LINE))
    assert stream.meter(1, 1, Target.detect().cpu).amount == stream.BLOCK


def test_meters_are_of_a_dtype() -> None:
    target = Target.detect(threads=1)
    assert roofs.meters(target, "float8") == {}
    found = roofs.meters(target, "float32")
    assert set(found) == {"flops", "bytes"}
    assert all(roofs.rate(meter) > 1e8 for meter in found.values())


def test_the_best_of_several_runs() -> None:
    runs: list[int] = []
    assert 0 < roofs.best_seconds(lambda: runs.append(1), budget=0.0) < 1
    assert len(runs) == 3


def test_the_last_cache(tmp_path: Path) -> None:
    for number, size in enumerate(("48K", "1024K", "32M")):
        (tmp_path / f"index{number}").mkdir()
        (tmp_path / f"index{number}" / "size").write_text(size + "\n")
    assert roofs.last_cache_bytes(tmp_path) == 32 << 20
    assert roofs.last_cache_bytes(tmp_path / "nothing") == 32 << 20
