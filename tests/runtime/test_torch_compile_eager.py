"""What ``torch.compile`` with this backend and eager were found to differ in, each as small as it can be."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import smelt
from smelt.runtime import dynamo_backend
from smelt.runtime.dynamo_backend import backend
from smelt.runtime.fx_weights import WeightWatch

from .dynamo import QUIET, fresh_dynamo

__all__ = ["fresh_dynamo"]  # which every test here has

pytestmark = QUIET


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)).eval()


# --- weights that change without a version ----------------------------------------------------------------------------


def _train(model: nn.Module) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(torch.ones(4, 8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def _assign_twice(model: nn.Module) -> None:
    for scale in (3.0, 2.0):  # the second may be where the first one's predecessor was
        model[0].weight.data = model[0].weight.data * scale  # type: ignore[index, union-attr, operator]


def _by_numpy(model: nn.Module) -> None:
    values: Any = model[0].weight.detach().numpy()  # type: ignore[index, union-attr, operator]
    values *= 2


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a fused optimizer": _train,
    "data": lambda model: model[0].weight.data.mul_(2),
    "data of a bias": lambda model: model[2].bias.data.zero_(),
    "data is another tensor": _assign_twice,
    "NumPy": _by_numpy,
}


@pytest.mark.parametrize("name", CHANGES)
def test_weights_that_change_without_a_version(name: str) -> None:
    torch.manual_seed(0)
    model = mlp()
    twin, x = copy.deepcopy(model), torch.randn(3, 8)
    compiled: Any = torch.compile(model, backend=backend)
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), twin(x))
        CHANGES[name](model)
        CHANGES[name](twin)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), twin(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_weights_made_in_inference_mode(mode: Callable[[], Any]) -> None:
    with torch.inference_mode():
        model = mlp()
        twin = copy.deepcopy(model)
    compiled, x = torch.compile(model, backend=backend), torch.randn(3, 8)
    for _ in range(3):
        with mode():
            torch.testing.assert_close(compiled(x), twin(x))
        with torch.inference_mode():
            for changed in (model, twin):
                changed[0].weight[3, 5] += 1  # type: ignore[index, union-attr, operator]


def test_words_are_of_every_part_of_a_weight() -> None:
    for weight in (torch.zeros(4, 100), torch.zeros(100, 4).t(), torch.zeros(3), torch.zeros((), dtype=torch.int8)):
        watch = WeightWatch({"w": 0})
        watch.note([weight])
        assert not watch.changed([weight])
        weight.data.add_(1)
        assert watch.changed([weight])
        watch.note([weight])
        weight.data.flatten()[-1:].add_(1)
        assert watch.changed([weight]) == weight.is_contiguous()
    empty = torch.zeros(0, 3)
    watch = WeightWatch({"w": 0})
    watch.note([empty])
    assert not watch.changed([empty])


# --- memory that results share ----------------------------------------------------------------------------------------


def test_arguments_that_overlap_in_the_first_call_only() -> None:
    """No guard says that they did, so a view is of the argument that it was made of."""

    def f(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, y[1]

    for dynamic in (None, True):
        torch._dynamo.reset()
        compiled: Any = torch.compile(f, backend=backend, dynamic=dynamic)
        base = torch.randn(6, 4)
        with torch.no_grad():
            for x, y in ((base[:4], base[2:]), (torch.randn(4, 4), torch.randn(4, 4)), (base[2:], base[:4])):
                torch.testing.assert_close(compiled(x, y), f(x, y))
                assert compiled(x, y)[1].data_ptr() == y[1].data_ptr()


def test_a_view_of_the_whole_is_another_tensor() -> None:
    def f(x: Tensor) -> tuple[Tensor, ...]:
        return x.detach(), x[:], x[:], x.view_as(x), x

    compiled: Any = torch.compile(f, backend=backend)
    for x in (torch.randn(3, 4), torch.randn(3, 4, requires_grad=True)):
        with torch.no_grad():
            ours, eager = compiled(x), f(x)
        assert [t.requires_grad for t in ours] == [t.requires_grad for t in eager]
        assert [t is x for t in ours] == [False, False, False, False, True]
        assert len({id(t) for t in ours}) == 5
        assert {t.data_ptr() for t in ours} == {x.data_ptr()}


def test_views_of_weights_are_no_parameters() -> None:
    model = nn.Linear(4, 4)

    def f() -> tuple[Tensor, ...]:
        return model.weight.detach(), model.weight.t(), model.bias.expand(3, 4), model.bias

    compiled: Any = torch.compile(f, backend=backend)
    with torch.no_grad():
        ours, eager = compiled(), f()
    assert [type(t) for t in ours] == [type(t) for t in eager] == [Tensor] * 3 + [nn.Parameter]
    assert [t.requires_grad for t in ours] == [t.requires_grad for t in eager]
    torch.testing.assert_close(ours, eager, check_stride=True)


# --- graphs that PyTorch runs -----------------------------------------------------------------------------------------


def _enabled(x: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad((leaf**3).sum(), leaf)
    return gradient


LEFT: dict[str, tuple[Callable[..., Any], str]] = {
    "vmap": (lambda x: torch.vmap(lambda row: row[1:] * 2)(x), "transform of torch.func"),
    "grad": (lambda x: torch.func.grad(lambda y: (y**3).sum())(x), "transform of torch.func"),
    "hessian": (lambda x: torch.func.hessian(lambda y: (y**3).sum())(x[0]), "transform of torch.func"),
    "gradients in a region": (_enabled, "gradients are enabled"),
    "complex constants": (lambda x: torch.view_as_real(torch.view_as_complex(x) * 1j), "type complex"),
    "quantised": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8).dequantize(), "quantised tensors"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", LEFT)
def test_graphs_that_pytorch_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: set[str] = set()
    monkeypatch.setattr(dynamo_backend, "_told", told)
    function, reason = LEFT[name]
    compiled: Any = torch.compile(function, backend=backend)
    with torch.no_grad():
        for rows in (3, 4):
            x = torch.randn(rows, 2)
            torch.testing.assert_close(compiled(x), function(x), check_stride=True)
    assert any(reason in text or text == "grad" for text in told)


@pytest.mark.filterwarnings("ignore:smelt compiles for inference:UserWarning")
def test_a_result_with_a_history_has_one() -> None:
    weight = nn.Parameter(torch.randn(4, 4))

    def f(x: Tensor) -> Tensor:
        with torch.enable_grad():
            return x @ weight

    compiled: Any = torch.compile(f, backend=backend)
    with torch.no_grad():
        found = compiled(torch.ones(3, 4))
    found.sum().backward()
    assert torch.equal(weight.grad, torch.full((4, 4), 3.0))  # type: ignore[arg-type]


def test_a_fault_of_the_compiler_is_told_and_pytorch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamo_backend, "_told", set())

    def fail(*args: Any) -> Any:
        raise KeyError("for the test")

    monkeypatch.setattr(dynamo_backend, "compile_fx", fail)
    x = torch.randn(3)
    with torch.no_grad():
        with pytest.warns(UserWarning, match="a fault of smelt: KeyError: 'for the test'"):
            torch.testing.assert_close(torch.compile(torch.sin, backend=backend)(x), x.sin())
        with pytest.raises(Exception, match="for the test"):
            torch.compile(torch.cos, backend=backend, options={"fallback": "error"})(x)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["grad", "complex constants"])
def test_what_cannot_be_one_graph_is_refused_by_a_typed_error(name: str) -> None:
    with pytest.raises(smelt.UnsupportedError), torch.no_grad():
        smelt.compile(LEFT[name][0])(torch.randn(3, 2))


@pytest.mark.filterwarnings("ignore:PyTorch runs a graph:UserWarning")
def test_weights_that_compute_in_their_own_way() -> None:
    model: Any = nn.Linear(3, 3).eval()
    model.weight = nn.Parameter(TwoTensor(torch.ones(3, 3), torch.zeros(3, 3)), requires_grad=False)
    compiled, x = torch.compile(model, backend=backend), torch.randn(2, 3)
    with torch.no_grad():
        ours, eager = compiled(x), model(x)
    assert type(ours) is type(eager) is TwoTensor
    torch.testing.assert_close((ours.a, ours.b), (eager.a, eager.b))


@pytest.mark.filterwarnings("ignore:PyTorch runs a graph:UserWarning")
def test_another_default_device() -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 2, torch.ones(3)

    compiled, x = torch.compile(f, backend=backend), torch.randn(3)
    with torch.no_grad():
        for device in ("cpu", "meta", "cpu"):
            with torch.device(device):
                ours, eager = compiled(x), f(x)
            assert [t.device for t in ours] == [t.device for t in eager]
            torch.testing.assert_close(ours[0], eager[0])
