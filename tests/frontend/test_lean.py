"""What PyTorch need not compute while it traces: captures are the same, and PyTorch is left as it was."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from smelt.frontend import tracing as tracing_module
from smelt.frontend.export import capture
from smelt.frontend.lean import lean
from smelt.ir.errors import CaptureError
from smelt.ir.text import print_graph

torch_config = torch._dynamo.config
nodes = torch.fx.experimental.proxy_tensor
proxies = torch.fx.proxy


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.inner(x).softmax(-1)
        return self.twice(y) + x

    def twice(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(0, 1).reshape(x.shape[1], -1).view(x.shape[1], x.shape[0], 4).transpose(0, 1) * 2


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([Part() for _ in range(5)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in self.parts:
            x = part(x)
        if x.shape[0] > 1:  # a guard
            x = x[1:]
        return x


class Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@contextmanager
def _nothing_left_out() -> Iterator[None]:
    yield


def test_captures_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Whole().eval(), torch.randn(3, 5, 4)
    found = capture(model, (x,))
    monkeypatch.setattr(tracing_module, "lean", _nothing_left_out)
    expected = capture(model, (x,))
    assert print_graph(found.graph, origins=True) == print_graph(expected.graph, origins=True)
    assert "test_lean.py:" in print_graph(found.graph, origins=True)
    assert (found.guards, found.reasons, found.specialised) == (expected.guards, expected.reasons, expected.specialised)
    assert found.guards or found.reasons


def _settings() -> tuple[object, ...]:
    return (
        torch_config.fake_tensor_cache_enabled,
        nodes._extract_tensor_metadata,
        proxies.CapturedTraceback,
    )


def test_pytorch_is_left_as_it_was() -> None:
    before = _settings()
    with lean():
        assert all(a is not b for a, b in zip(_settings(), before, strict=True))
        assert not torch_config.fake_tensor_cache_enabled
    assert _settings() == before
    with pytest.raises(CaptureError):
        capture(Branches().eval(), (torch.randn(3),))
    assert _settings() == before
    with pytest.raises(ZeroDivisionError), lean():
        _ = 1 / 0
    assert _settings() == before


def test_other_threads_trace_as_ever() -> None:
    with lean(), ThreadPoolExecutor(1) as pool:
        assert nodes._extract_tensor_metadata(torch.ones(2)) is None
        assert pool.submit(nodes._extract_tensor_metadata, torch.ones(2)).result().shape == (2,)
        names = [frame.name for frame in pool.submit(proxies.CapturedTraceback.extract).result().summary()]
    assert "run" in names  # of the pool's thread


def test_another_version_of_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does not have is left alone."""
    monkeypatch.delattr(nodes, "_extract_tensor_metadata")
    monkeypatch.delattr(proxies, "CapturedTraceback")
    with lean():
        assert not hasattr(nodes, "_extract_tensor_metadata")
    assert not hasattr(nodes, "_extract_tensor_metadata")
    assert not hasattr(proxies, "CapturedTraceback")


def test_frames_of_forward_are_those_of_pytorch() -> None:
    class Asks(nn.Module):
        def forward(self, tracebacks: list[object]) -> None:
            tracebacks += [kind.extract().summary() for kind in (proxies.CapturedTraceback, theirs)]

    theirs, found = proxies.CapturedTraceback, list[object]()
    with lean():
        nn.Sequential(Asks())(found)
    mine, expected = ([(f.filename, f.lineno) for f in s if f.name == "forward"] for s in found)  # type: ignore[attr-defined]
    assert mine == expected
    assert len(mine) == 2
