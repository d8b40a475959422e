"""Compiled modules and artifacts that are called while PyTorch traces, compiles or transforms what calls them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import convert_frame
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import smelt
from smelt.runtime.artifact import entry_point

from .dynamo import QUIET, fresh_dynamo

__all__ = ["fresh_dynamo"]  # which every test here has

pytestmark = QUIET


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()


@pytest.fixture(scope="module")
def fast(model: nn.Module) -> smelt.CompiledModule:
    made = smelt.compile(model)
    made(torch.randn(3, 4))
    return made


@pytest.fixture(scope="module")
def loaded(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path: Path = tmp_path_factory.mktemp("traced") / "model.smelt"
    smelt.export(model, (torch.randn(3, 4),)).save(path)
    return smelt.load(path)


AROUND: dict[str, Callable[[Any], Any]] = {
    "itself": lambda f: f,
    "a function": lambda f: lambda x: f(x) * 2 / 2,
    "forward": lambda f: lambda x: getattr(f, "forward", f)(x),
}


@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("which", ["fast", "loaded"])
def test_torch_compile_around(which: str, around: str, model: nn.Module, request: pytest.FixtureRequest) -> None:
    """Dynamo traces through the model, and not through what runs its kernels, of which no guard says when it holds."""
    compiled: Any = torch.compile(AROUND[around](request.getfixturevalue(which)), backend="eager")
    with torch.no_grad():
        for rows in (3, 5, 1, 3):
            x = torch.randn(rows, 4)
            torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("around", AROUND)
def test_dynamo_stays_out_of_the_runtime(around: str, loaded: Any) -> None:
    converted = []
    hook = convert_frame.register_bytecode_hook(lambda code, _: converted.append(code.co_filename))
    try:
        with torch.no_grad():
            torch.compile(AROUND[around](loaded), backend="eager")(torch.randn(3, 4))
    finally:
        hook.remove()
    runtime = Path(entry_point.__file__).parents[1]
    assert not [path for path in converted if Path(path).is_relative_to(runtime)]


def test_a_part_of_an_exported_model(fast: smelt.CompiledModule, model: nn.Module) -> None:
    outer, x = nn.Sequential(nn.Linear(4, 4), fast).eval(), torch.randn(3, 4)
    with torch.no_grad():
        eager = model(outer[0](x))
        torch.testing.assert_close(torch.export.export(outer, (x,)).module()(x), eager)
        torch.testing.assert_close(smelt.compile(outer)(x), eager)


def _fake(f: Any, x: Tensor) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True):
        return f(x)


def _dual(f: Any, x: Tensor) -> Any:
    with forward_ad.dual_level():
        return f(forward_ad.make_dual(x, x))


REFUSED: dict[str, Callable[[Any, Tensor], Any]] = {
    "fake tensors": _fake,
    "make_fx": lambda f, x: make_fx(lambda y: f(y))(x),
    "vmap": lambda f, x: torch.vmap(lambda row: f(row[None])[0])(x),
    "grad": lambda f, x: torch.func.grad(lambda y: f(y).sum())(x),
    "forward gradients": _dual,
    "torch.jit.trace": lambda f, x: torch.jit.trace(lambda y: f(y), x),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("which", ["fast", "loaded"])
def test_what_kernels_cannot_take_part_in(which: str, name: str, request: pytest.FixtureRequest) -> None:
    f = request.getfixturevalue(which)
    with pytest.raises(smelt.UnsupportedError):
        REFUSED[name](f, torch.randn(3, 4))
    f(torch.randn(3, 4))
