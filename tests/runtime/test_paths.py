"""Calls that are like one before: which take the short path, and that nothing else changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

import smelt
from smelt.ir.errors import InputError, UnsupportedError
from smelt.runtime.paths import MISS


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.table = nn.Linear(8, 8), nn.Embedding(5, 8)

    def forward(self, x: Tensor, at: Tensor | None = None, *, twice: bool = False) -> dict[str, Any]:
        y = torch.relu(self.linear(x))
        y = y if at is None else y + self.table(at)
        return {"y": y + y if twice else y, "x": x}


@pytest.fixture
def fast() -> smelt.CompiledModule:
    return smelt.compile(Model().eval(), cache=False)


def takes_path(fast: smelt.CompiledModule, *args: Any, **kwargs: Any) -> bool:
    """Whether a call is run by a path; it equals the model's result either way."""
    by_path = fast._captures.paths.run(args, kwargs)
    found = fast(*args, **kwargs) if by_path is MISS else by_path
    with torch.no_grad():
        torch.testing.assert_close(found, fast.original(*args, **kwargs))
    return by_path is not MISS


X, AT = torch.randn(3, 8), torch.tensor([0, 4, 1])


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X,), {}),
        ((X, None), {}),
        ((X, AT), {}),
        ((X,), {"at": AT}),
        ((), {"at": AT, "x": X}),
    ],
    ids=["one", "none", "two", "by name", "all by name"],
)
def test_a_second_call_takes_the_path(fast: smelt.CompiledModule, args: Any, kwargs: Any) -> None:
    with torch.no_grad():
        assert not takes_path(fast, *args, **kwargs)
        again = [torch.randn_like(value) if value is X else value for value in args]
        assert takes_path(fast, *again, **kwargs)


def test_empty_tensors_take_the_long_way(fast: smelt.CompiledModule) -> None:
    with torch.no_grad():
        for _ in range(3):
            assert not takes_path(fast, X[:0])


def test_other_sizes_types_and_values_have_paths_of_their_own(fast: smelt.CompiledModule) -> None:
    with torch.no_grad():
        for call in range(2):
            for rows in (1, 2, 7):
                assert takes_path(fast, torch.randn(rows, 8)) == bool(call)
            assert takes_path(fast, X, AT) == bool(call)
            assert not takes_path(fast, X, twice=True)  # a bool may equal the default: its route is not known
    assert len(fast.entries) == 3


def _offset() -> Tensor:
    return torch.randn(25)[1:].view(3, 8)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(8, 3).T,
        lambda: torch.randn(6, 8)[::2],
        _offset,
        lambda: torch.randn(1, 8).expand(3, 8),
        lambda: torch.randn(3, 8, dtype=torch.complex64).conj().imag.contiguous()._neg_view(),
        lambda: nn.Parameter(torch.randn(3, 8), requires_grad=False),
        lambda: torch._efficientzerotensor((3, 8)),
    ],
    ids=["transposed", "strided", "unaligned", "expanded", "negated", "parameter", "zeros without memory"],
)
def test_tensors_that_must_be_copied_take_the_long_way(fast: smelt.CompiledModule, make: Callable[[], Tensor]) -> None:
    with torch.no_grad():
        fast(X)
        assert takes_path(fast, torch.randn(3, 8))
        assert not takes_path(fast, make())


def test_what_is_refused_is_refused_on_the_path_too(fast: smelt.CompiledModule) -> None:
    fast(X)
    fast(X)
    with pytest.raises(InputError, match="requires grad"):
        fast(torch.randn(3, 8, requires_grad=True))
    with torch.no_grad():
        fast(torch.randn(3, 8, requires_grad=True))
    with pytest.raises(InputError, match="meta"):
        fast(torch.empty(3, 8, device="meta"))
    with pytest.raises(InputError, match="layout"):
        fast(torch.randn(3, 8).to_sparse())
    with pytest.raises(UnsupportedError, match="autocast"), torch.autocast("cpu"):
        fast(X)
    fast.original.train()
    with pytest.raises(UnsupportedError, match="training"):
        fast(X)


SURROUNDINGS: list[tuple[Callable[[], Any], str]] = [
    (lambda: torch.device("meta"), "default device"),
    (lambda: torch.autocast("cpu", dtype=torch.bfloat16), "autocast"),
    (forward_ad.dual_level, "forward_ad"),
    (FakeTensorMode, "traces"),
]


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_what_surrounds_a_call_is_seen_on_the_path_too(fast: smelt.CompiledModule) -> None:
    def inside(x: Tensor) -> Tensor:
        return fast(X)["y"] + x  # type: ignore[no-any-return]

    fast(X)
    for around, message in SURROUNDINGS:
        assert takes_path(fast, X)
        with pytest.raises(UnsupportedError, match=message), around():
            fast(X)
    with pytest.raises(UnsupportedError, match=r"torch\.func"):
        torch.func.vmap(inside)(X)
    with pytest.raises(UnsupportedError, match="trace"):
        torch.jit.trace(inside, (X,))
    with torch.autocast("cpu", enabled=False), torch.device("cpu"):  # which change nothing
        assert takes_path(fast, X)
        fast(X)


def test_hooks_put_in_place_of_others_run(fast: smelt.CompiledModule) -> None:
    """As libraries do that take a module's hooks off and put them on again."""
    for _ in range(2):
        fast(X)
    seen: list[str] = []
    fast.__dict__["_forward_hooks"] = OrderedDict({0: lambda *_: seen.append("called")})
    fast(X)
    assert seen == ["called"]


def test_complex_numbers_may_be_conjugated_later() -> None:
    fast = smelt.compile(lambda x: torch.view_as_real(x * 2).sum(-1), cache=False)
    x = torch.randn(3, 8, dtype=torch.complex64)
    for value in (x, x, x.conj(), x):
        torch.testing.assert_close(fast(value), fast.original(value))
    assert fast._captures.paths.run((x,), {}) is MISS


def test_several_threads_take_one_path(fast: smelt.CompiledModule) -> None:
    inputs = [torch.randn(3, 8) for _ in range(8)]
    with torch.no_grad():
        expected = [fast.original(x)["y"] for x in inputs]
    fast(X)

    def calls(at: int) -> bool:
        return all(torch.allclose(fast(inputs[at])["y"], expected[at]) for _ in range(200))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(calls, range(len(inputs))))


def test_an_index_out_of_range_is_told_and_the_next_call_is_right(fast: smelt.CompiledModule) -> None:
    with torch.no_grad():
        for _ in range(2):
            takes_path(fast, X, AT)
        for _ in range(2):
            with pytest.raises(IndexError):
                fast(X, torch.tensor([0, 9, 1]))
        assert takes_path(fast, X, AT)


@pytest.mark.parametrize("change", ["refresh", "load", "reset", "convert"])
def test_a_changed_model_counts(fast: smelt.CompiledModule, change: str) -> None:
    model = fast.original
    with torch.no_grad():
        fast(X)
        assert takes_path(fast, X)
        if change == "load":
            fast.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})
        elif change == "convert":
            fast.double()
        else:
            model.linear.weight.add_(1)
            getattr(fast, change)()
        x = X.double() if change == "convert" else X
        assert not takes_path(fast, x)
        assert takes_path(fast, x)


def test_a_model_that_writes_to_its_arguments_has_no_path() -> None:
    def add(x: Tensor) -> Tensor:
        return x.add_(1) * 2

    fast = smelt.compile(add, cache=False)
    for _ in range(3):
        x = torch.ones(3, 8)
        assert torch.equal(fast(x), torch.full((3, 8), 4.0))
        assert torch.equal(x, torch.full((3, 8), 2.0))
        assert fast._captures.paths.run((x,), {}) is MISS


def test_the_arena_grows_for_another_path(fast: smelt.CompiledModule) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + torch.softmax(layer(x), -1)
            return x

    deep = smelt.compile(Deep().eval(), cache=False)
    inputs = [torch.randn(rows, 64) for rows in (2, 500, 3, 9)]
    with torch.no_grad():
        for _ in range(3):
            for x in inputs:
                torch.testing.assert_close(deep(x), deep.original(x))
    assert all(deep._captures.paths.run((x,), {}) is not MISS for x in inputs)


def test_the_report_shows_the_sizes_of_the_last_call(fast: smelt.CompiledModule) -> None:
    with torch.no_grad():
        for rows in (3, 5, 3):
            fast(torch.randn(rows, 8))
    assert [tuple(entry.sizes.values()) for entry in fast.entries if entry.sizes] == [(3,)]


@pytest.mark.parametrize("kind", ["own", "own before", "all", "all before"])
def test_hooks_run_around_the_path(fast: smelt.CompiledModule, kind: str) -> None:
    seen: list[str] = []
    with torch.no_grad():
        for _ in range(2):
            fast(X)
        register = {
            "own": fast.register_forward_hook,
            "own before": fast.register_forward_pre_hook,
            "all": nn.modules.module.register_module_forward_hook,
            "all before": nn.modules.module.register_module_forward_pre_hook,
        }[kind]
        handle = register(lambda module, *_: seen.append(type(module).__name__))
        fast(X)
        handle.remove()
        fast(X)
    assert seen == ["CompiledModule"]


def test_a_replaced_forward_is_called(fast: smelt.CompiledModule) -> None:
    fast(X)
    fast.forward = lambda x: "mine"  # type: ignore[method-assign,assignment]
    assert fast(X) == "mine"
    del fast.forward
    with torch.no_grad():
        torch.testing.assert_close(fast(X), fast.original(X))


def test_a_capture_that_was_forgotten_meanwhile_gets_no_path(fast: smelt.CompiledModule) -> None:
    """As where another thread resets the model during a call."""
    with torch.no_grad():
        fast(X)
        captures = fast._captures
        (entry,) = captures.entries
        sizes = entry.sizes
        fast.reset()
        captures.keep_path((X,), {}, entry, sizes)
        assert captures.paths.run((X,), {}) is MISS
