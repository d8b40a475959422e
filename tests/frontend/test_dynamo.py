"""Graphs that Dynamo hands to a backend."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from smelt.frontend.capture import Capture
from smelt.frontend.dynamo import lower_fx

from .calls import run_and_apply, same


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Backend:
    """A backend that interprets, and keeps what it captured."""

    def __init__(self) -> None:
        self.captures: list[Capture] = []

    def __call__(self, gm: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        captured = lower_fx(gm, inputs)
        self.captures.append(captured)
        return lambda *args: run_and_apply(captured, args)


def compare(model: Callable[..., Any], *calls: tuple[Any, ...], **options: Any) -> Backend:
    backend = Backend()
    compiled = torch.compile(model, backend=backend, **options)
    with torch.no_grad():
        for args in calls:
            copies = [a.clone() if isinstance(a, Tensor) else a for a in args]
            same(compiled(*args), model(*copies))
            same(args, tuple(copies))
    return backend


def test_static_sizes() -> None:
    backend = compare(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), (torch.randn(2, 4),))
    assert len(backend.captures) == 1
    assert backend.captures[0].fallbacks == ()


def test_symbolic_sizes_and_integers() -> None:
    def f(x: Tensor, n: int) -> Any:
        return x * n + x.shape[0], n + 1

    backend = compare(f, *((torch.randn(s, 3), n) for s, n in [(4, 5), (6, 7), (8, 9)]), dynamic=True)
    (captured,) = backend.captures
    kinds = [spec.kind for spec in captured.inputs]
    assert kinds.count("symbol") >= 2


def test_graph_breaks() -> None:
    def f(x: Tensor) -> Tensor:
        y = x.sin()
        if y.sum() > 0:
            y = y + 1
        return y.cos()

    backend = compare(f, (torch.ones(3),), (-torch.ones(3),))
    assert len(backend.captures) >= 3


def test_mutation_of_arguments() -> None:
    def f(x: Tensor, y: Tensor) -> Tensor:
        x.add_(y)
        return x * 2

    compare(f, (torch.randn(3), torch.randn(3)))


def test_floats_become_constants() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.eps = 1e-3
            self.inner = nn.LayerNorm(4, eps=1e-3)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    backend = compare(Norm().eval(), (torch.randn(2, 4),), (torch.randn(5, 4),), dynamic=True)
    assert all("layer_norm" in {n.op.name for n in c.graph.nodes} for c in backend.captures)


def test_origins_are_those_of_the_model() -> None:
    def f(x: Tensor) -> Tensor:
        return torch.tanh(x)

    (captured,) = compare(f, (torch.randn(3),)).captures
    (tanh,) = (n for n in captured.graph.nodes if n.op.name == "tanh")
    assert tanh.origin.source.startswith("test_dynamo.py:")


def test_a_recurrent_layer_keeps_its_sequence_symbolic() -> None:
    backend = Backend()
    model = nn.GRU(3, 4)
    torch._dynamo.config.allow_rnn = True
    try:
        compiled = torch.compile(model.eval(), backend=backend, dynamic=True)
        with torch.no_grad():
            for steps in (5, 7):
                x = torch.randn(steps, 2, 3)
                same(compiled(x), model(x))
    finally:
        torch._dynamo.config.allow_rnn = False
