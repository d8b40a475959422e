"""explain() of models for GPUs: what needs no GPU, and roofs measured by a clock that is played."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.ir.cost import Roofs
from smelt.runtime.cache import KernelCache
from smelt.runtime.cuda import measure, roofs
from smelt.runtime.explain_text import explanation_text
from smelt.runtime.plan import KernelStep
from smelt.runtime.report import WIDTH

from .fake_gpu import TARGET, FakeGpu, playing

ROOFS = Roofs(1e9, 1e8, 1e8, 1e-3, 1e9, {"float32": 1e9, "bfloat16": 1e11})


class Model(nn.Module):
    """Two products, and a norm that is not in their kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(16, 64), nn.LayerNorm(64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu()).softmax(-1)  # type: ignore[no-any-return]


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with playing() as played:
        yield played


def test_without_a_gpu_there_are_bytes_and_operations_and_no_times(gpu: FakeGpu) -> None:
    model, x = Model().eval(), torch.randn(9, 16)
    fast = smelt.compile(model, target=TARGET)
    found = fast.explain((x,))
    assert gpu.log.count("launch") == 0  # nothing is run
    assert found.roofs is None
    (part,) = found.parts
    executable = fast.entries[0].executable
    assert len(part.steps) == len(executable.plan.steps)
    assert part.steps[0].flops > 2 * 9 * 16 * 64 - 1
    assert all(step.estimated is None and step.share_of_roof is None for step in part.steps)
    assert part.traffic.total.nbytes > part.traffic.total.least > 0
    assert part.refused
    assert all(group.seconds is None for group in part.refused)
    assert [g.nbytes for g in part.refused] == sorted((g.nbytes for g in part.refused), reverse=True)
    json.dumps(found.to_dict())
    for text in (str(found), explanation_text(found, everything=True)):
        assert "not measured" in text
        assert "us a run" not in text
        assert all(len(line) <= WIDTH for line in text.splitlines())


def test_products_are_held_against_the_roof_of_their_dtype(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofs, "gpu_roofs_of", lambda target, cache: ROOFS)

    def products(dtype: torch.dtype) -> list[float]:
        fast = smelt.compile(Model().eval().to(dtype), target=TARGET)
        (part,) = fast.explain((torch.randn(4096, 16).to(dtype),)).parts
        return [step.estimated or 0.0 for step in part.steps if "linear" in step.operators]

    single, half = products(torch.float32), products(torch.bfloat16)
    assert len(single) == len(half) > 0
    assert single[0] > 2 * half[0]  # the other one computes the norm, too
    assert all(seconds > ROOFS.launch_seconds for seconds in half)


class Ticks:
    """A clock that launches move on, a millisecond each."""

    now = 0

    def __init__(self) -> None:
        self.at = 0

    def record(self) -> None:
        self.at = Ticks.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Any) -> float:
        return float(other.at - self.at)


def test_each_step_is_timed_between_two_events(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(Model):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1.0)
            return torch.cummax(super().forward(x), 0)[0] + self.calls

    class Log(list[str]):
        def append(self, entry: str) -> None:
            super().append(entry)
            Ticks.now += entry.startswith("launch")

    gpu.log = Log()
    monkeypatch.setattr(measure, "_event", Ticks)
    monkeypatch.setattr(measure, "_pause", lambda: gpu.log.append("pause"))
    model, x = Counting().eval(), torch.randn(9, 16)
    twin = copy.deepcopy(model)
    fast = smelt.compile(model, target=TARGET)
    entry, sizes, call = fast.entry_for((x,), {})
    found = measure.measure_gpu_steps(entry, call, sizes, model, seconds=0.0)
    steps = entry.executable.plan.steps
    launches = [float(isinstance(step, KernelStep)) for step in steps]
    assert 0.0 in launches  # PyTorch's step
    assert found.steps == tuple(1e-3 * n for n in launches)
    assert found.run == pytest.approx(1e-3 * sum(launches))
    first = gpu.log.index("pause")
    assert "launch" not in "".join(gpu.log[:first])  # the whole run is queued behind it
    assert not model.calls.any()
    torch.testing.assert_close(fast(x), twin(x))


class Event:
    """Each stretch of work takes two milliseconds."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, other: Any) -> float:
        return 2.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roofs, "_event", Event)
    monkeypatch.setattr(roofs, "SIZES", {"float32": 8, "bfloat16": 16})
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (32 << 20, 64 << 20))
    properties = SimpleNamespace(L2_cache_size=1 << 20, name="played", total_memory=64 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())


@pytest.mark.usefixtures("clock")
def test_roofs_are_what_was_done_over_the_time_of_a_call() -> None:
    found = roofs.measure(torch.device("cpu"))
    seconds = 2e-3 / roofs.CALLS
    assert found.peaks == {"float32": 2 * 8**3 / seconds, "bfloat16": 2 * 16**3 / seconds}
    assert found.matmul_flops == found.peaks["float32"]
    assert found.bytes_per_second == 2 * (4 << 20) / seconds  # read and written, an eighth of what is free
    assert found.cache_bytes_per_second == 2 * (1 << 17) / seconds
    assert found.launch_seconds == seconds / roofs.LAUNCHES
    assert found.scalar_flops > 0


@pytest.mark.usefixtures("clock")
def test_roofs_are_kept_for_each_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Any] = []
    monkeypatch.setattr(roofs, "measure", lambda device: measured.append(device) or ROOFS)
    target = smelt.Target("cuda", "sm_90", (), 1, TARGET.machine, TARGET.gpu, torch.device("cuda", 0))
    cache = KernelCache(tmp_path)
    assert roofs.gpu_roofs_of(target, cache) == roofs.gpu_roofs_of(target, cache) == ROOFS
    assert len(measured) == 1
    assert roofs.gpu_roofs_of(TARGET, cache) is None
