"""Kernels of a graph on several streams: every order that the streams allow gives the same result."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime.cuda import branches, streams
from smelt.runtime.cuda.branches import levels_of
from smelt.runtime.placement import placed
from smelt.tools.zoo import ZOO

from .fake_gpu import TARGET, executable_of, playing
from .many_streams import ManyStreams, any_of, last

ORDERS = [lambda ready: ready[0], last, *map(any_of, range(6))]


class Towers(nn.Module):
    """Two chains of layers, as of an image and of a text, whose results meet."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.left, self.right = (
            nn.Sequential(*(m for _ in range(depth) for m in (nn.Linear(16, 16), nn.LayerNorm(16), nn.ReLU())))
            for _ in range(2)
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.left(x) @ self.right(y).T  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """A chain whose layers read projections of one source, which depend on nothing else; it keeps a state."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.of_source = nn.ModuleList(nn.Linear(16, 8) for _ in range(layers))
        self.of_chain = nn.ModuleList(nn.Linear(16, 8) for _ in range(layers))
        self.back = nn.ModuleList(nn.Linear(8, 16) for _ in range(layers))
        self.register_buffer("seen", torch.zeros(16))

    def forward(self, x: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        held = torch.softmax(self.first(source), -1)
        for key, query, back in zip(self.of_source, self.of_chain, self.back, strict=True):
            x = x + back(torch.softmax(query(x) @ key(held).T, -1) @ key(held))
        self.seen.add_(x.sum(0))
        return x, held


def towers() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Towers().eval(), (torch.randn(5, 16), torch.randn(3, 16))


def decoder() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return Decoder().eval(), (torch.randn(5, 16), torch.randn(7, 16))


MODELS = {"towers": towers, "decoder": decoder}


def results_of(make: Any, gpu: ManyStreams, count: int = 3, calls: int = 5) -> list[Tensor]:
    """All results and states of some calls, the last of which are replays; PyTorch's after them."""
    torch.manual_seed(0)
    model, args, *rest = make()
    kwargs = rest[0] if rest else {}
    eager = copy.deepcopy(model)
    with playing(gpu), torch.no_grad():
        fast = smelt.compile(model, target=TARGET, streams=count)
        found = []
        for module, plain in ((fast, model), (eager, eager)):
            for _ in range(calls):
                got = module(*args, **kwargs)
                found += [*(got if isinstance(got, tuple) else (got,)), *(b.clone() for b in plain.buffers())]
        report = executable_of(fast).graph_report()
    assert report.replays == calls - 2
    assert (report.streams or 0) <= count
    return found


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("order", range(len(ORDERS)))
def test_every_order_gives_the_same_result(name: str, order: int) -> None:
    gpu = ManyStreams(ORDERS[order])
    found = results_of(MODELS[name], gpu)
    ours, theirs = found[: len(found) // 2], found[len(found) // 2 :]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    used = {entry.stream for entries in gpu.captured for entry in entries}
    assert len(used) > 1


@pytest.mark.parametrize("name", ["bart-base", "t5-small"])
def test_a_model_of_the_zoo(name: str) -> None:
    pytest.importorskip("transformers")
    model, args, kwargs = ZOO[name].make(tiny=True)
    gpu = ManyStreams(last)
    with playing(gpu), torch.no_grad():
        fast = smelt.compile(model, target=TARGET, streams=4)
        for seed in range(4):
            found = fast(*args, **kwargs)
            gpu.choose = any_of(seed)
        expected = model(*args, **kwargs)
    assert any(entry.stream for entries in gpu.captured for entry in entries)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(2))
def test_a_step_that_writes_its_cache(seed: int) -> None:
    """Nothing runs beside a kernel that writes to the model's own memory; the state is right after each call."""
    pytest.importorskip("transformers")
    found = results_of(lambda: ZOO["llama-decode"].make(tiny=True), ManyStreams(any_of(seed)), count=4)
    assert len(found) > 2 * 5  # caches are among them
    for a, b in zip(found[: len(found) // 2], found[len(found) // 2 :], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


class Drawing(nn.Module):
    """Two branches that PyTorch draws random numbers in, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.left(x)), torch.relu(self.right(x))
        drawn = left + torch.randn_like(left)
        return drawn @ (right + torch.randn_like(right)).T  # type: ignore[no-any-return]


def test_steps_of_pytorch_keep_their_order() -> None:
    model, x, gpu = Drawing().eval(), torch.randn(5, 16), ManyStreams(last)
    with playing(gpu), torch.no_grad():
        fast = smelt.compile(model, target=TARGET, streams=4)
        for _ in range(4):
            torch.manual_seed(3)
            found = fast(x)
        torch.manual_seed(3)
        torch.testing.assert_close(found, model(x))


def test_orders_that_are_not_kept_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where kernels wait for nothing, some order gives another result: the tests above can fail."""
    monkeypatch.setattr(streams, "conflict", lambda one, other: False)
    found = results_of(towers, ManyStreams(last))
    ours, theirs = found[: len(found) // 2], found[len(found) // 2 :]
    assert not all(torch.allclose(a, b) for a, b in zip(ours, theirs, strict=True))


def test_memory_that_was_placed_for_one_stream_costs_only_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for what is read from addresses: branches that share memory come one after another."""
    monkeypatch.setattr("smelt.runtime.cuda.build.by_levels", lambda plan: plan)
    for order in ORDERS:
        found = results_of(towers, ManyStreams(order))
        for a, b in zip(found[: len(found) // 2], found[len(found) // 2 :], strict=True):
            torch.testing.assert_close(a, b)


def test_kernels_of_a_level_share_no_memory() -> None:
    model, args = towers()
    with playing(ManyStreams()), torch.no_grad():
        fast = smelt.compile(model, target=TARGET, streams=2)
        fast(*args)
        executable = executable_of(fast)
    plan = executable.plan
    sizes = fast.entries[0].sizes
    assert sizes is not None
    levels, offsets = levels_of(plan), executable.placed(sizes).offsets
    assert levels == sorted(levels)
    assert max(map(levels.count, levels)) == 2
    for level in set(levels):
        steps = [step for step, its in zip(plan.steps, levels, strict=True) if its == level]
        written = [p for step in steps for p in branches.accesses(plan, step)[1]]
        places = [offsets[p] for p in written if p in offsets]
        assert len(places) == len(set(places))
    # a plan that is in this order stays as it is
    assert placed(branches.by_levels(plan), sizes, lend=None).offsets == offsets


def test_kernels_that_fill_the_gpu_have_it_alone() -> None:
    assert TARGET.gpu is not None
    gpu = ManyStreams()
    with playing(gpu), torch.no_grad():
        small = replace(TARGET, gpu=replace(TARGET.gpu, processors=1))
        model, args = towers()
        fast = smelt.compile(model, target=small, streams=4)
        for _ in range(3):
            fast(*args)
    assert {entry.stream for entries in gpu.captured for entry in entries} == {0}


def test_one_stream_is_the_default() -> None:
    gpu = ManyStreams()
    found = results_of(towers, gpu, count=1)
    assert {entry.stream for entries in gpu.captured for entry in entries} == {0}
    assert found
    for wrong in (0, True, "2"):
        with pytest.raises(ValueError, match="streams is"):
            smelt.compile(Towers(), target=TARGET, streams=wrong)  # type: ignore[arg-type]
