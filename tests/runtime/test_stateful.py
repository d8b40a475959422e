"""Models that keep something on themselves from call to call: as eager, or captured where the first call settles it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("tvm")

import smelt
from smelt.runtime.stateful import kept_of

# what PyTorch says of tensors that are assigned while a model is exported
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attribute")


class Cell:
    """An object of the model's own, as caches of research code are."""

    number = 0


class Stateful(nn.Module):
    """A layer, and what a function makes of its result and of what the module keeps."""

    def __init__(self, then: Callable[[Stateful, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 8)
        self.then = then
        self.number = 0
        self.kept: Tensor | None = None
        self.sum = torch.zeros(8)
        self.seen: list[int] = []
        self.tables: dict[str, Tensor] = {}
        self.ready = False
        self.cell = Cell()
        self.nested = {"one": [0]}

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self, self.layer(x))


def counted(model: Stateful, y: Tensor) -> Tensor:
    model.number += 1
    return y * model.number


def summed(model: Stateful, y: Tensor) -> Tensor:
    model.sum = model.sum + y.sum(0)
    return y + model.sum


def of_the_first_call(model: Stateful, y: Tensor) -> Tensor:
    if model.kept is None:
        model.kept = y.mean()
    return y - model.kept


def of_the_last_call(model: Stateful, y: Tensor) -> Tensor:
    before = y if model.kept is None else model.kept
    model.kept = y[:1]
    return y - before[:1]


def listed(model: Stateful, y: Tensor) -> Tensor:
    model.seen.append(y.shape[0])
    return y * len(model.seen)


def shown(model: Stateful, y: Tensor) -> Tensor:
    model.kept = y.abs()
    return torch.relu(y)


def cached(model: Stateful, y: Tensor) -> Tensor:
    if model.kept is None:
        model.kept = torch.arange(8.0)
    return y + model.kept


def remembered(model: Stateful, y: Tensor) -> Tensor:
    if not model.tables:
        model.tables["table"] = torch.arange(8.0)
        model.ready = True
    return y + model.tables["table"]


def in_object(model: Stateful, y: Tensor) -> Tensor:
    model.cell.number += 1
    return y * model.cell.number


def deep(model: Stateful, y: Tensor) -> Tensor:
    model.nested["one"][0] += 1
    return y * model.nested["one"][0]


CALLS = [torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (2, 2, 3, 5, 3)]


@pytest.mark.parametrize("then", [counted, summed, of_the_first_call, of_the_last_call, listed, shown, in_object, deep])
def test_state_that_is_set_again(then: Callable[[Stateful, Tensor], Tensor]) -> None:
    """Dynamo runs such a model, so that what it stores is there as in eager."""
    model = Stateful(then).eval()
    reference, fast = copy.deepcopy(model), smelt.compile(model, cache=False)
    with torch.no_grad():
        for x in CALLS:
            torch.testing.assert_close(fast(x), reference(x), rtol=1e-4, atol=1e-5)
    if reference.kept is not None:
        torch.testing.assert_close(model.kept, reference.kept, rtol=1e-4, atol=1e-5)
    assert fast.is_split
    try:
        told = str(fast.report())
    except smelt.CaptureError as error:  # Dynamo found no graph in it
        told = str(error)
    assert "from call to call" in told
    with pytest.raises(smelt.CaptureError, match="from call to call"):
        smelt.compile(Stateful(then).eval(), fallback="error", cache=False)(CALLS[0])


@pytest.mark.parametrize("then", [cached, remembered])
def test_state_that_the_first_call_settles(then: Callable[[Stateful, Tensor], Tensor]) -> None:
    model = Stateful(then).eval()
    reference, fast = copy.deepcopy(model), smelt.compile(model, fallback="error", cache=False)
    with torch.no_grad():
        for x in CALLS:
            torch.testing.assert_close(fast(x), reference(x), rtol=1e-4, atol=1e-5)
    assert len(fast.entries) == 1
    assert not fast.is_split


class Clipped(nn.Module):
    """A window that each call clips to its input for good, as Swin's do."""

    def __init__(self) -> None:
        super().__init__()
        self.window, self.shift = 4, 2

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] <= self.window:
            self.window, self.shift = x.shape[1], 0
        if self.shift > 0:
            x = torch.roll(x, self.shift, dims=1)
        return x * self.window + x[:, : self.window].sum(1, keepdim=True)


def test_numbers_that_each_call_sets_again() -> None:
    """What a call clips holds for those after it, those that were captured before included."""
    model = Clipped().eval()
    reference, fast = copy.deepcopy(model), smelt.compile(model, fallback="error", cache=False)
    for batch, width in ((2, 8), (3, 8), (2, 4), (3, 4), (2, 8), (5, 8), (2, 6), (3, 4)):
        x = torch.randn(batch, width)
        torch.testing.assert_close(fast(x), reference(x))
        assert (model.window, model.shift) == (reference.window, reference.shift)
    assert not fast.is_split
    assert len(fast.entries) <= 3  # one for each width: the batch stays symbolic


def test_numbers_that_are_set_otherwise_again_and_again() -> None:
    """They are left to PyTorch, instead of a capture for each call."""
    model = Clipped().eval()
    reference, fast = copy.deepcopy(model), smelt.compile(model, cache=False)
    for width in (8, 4, 3, 2, 8, 4):
        x = torch.randn(2, width)
        torch.testing.assert_close(fast(x), reference(x))
        assert (model.window, model.shift) == (reference.window, reference.shift)
    assert fast.is_split


def flagged(model: Stateful, y: Tensor) -> Tensor:
    was_ready, model.ready = model.ready, True
    return y if was_ready else -y


def flagged_once(model: Stateful, y: Tensor) -> Tensor:
    if not model.ready:
        model.ready = True
        return -y
    return y


def by_size(model: Stateful, y: Tensor) -> Tensor:
    y = y * (1 + model.number)
    model.number = 9 if y.shape[0] > 4 else 3
    return y


def of_the_last_size(model: Stateful, y: Tensor) -> Tensor:
    y = y * (1 + model.number)
    model.number = y.shape[0]
    return y


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("then", [flagged, flagged_once, by_size, of_the_last_size])
def test_numbers_that_a_call_reads_before_it_sets_them(
    then: Callable[[Stateful, Tensor], Tensor], dynamic: bool
) -> None:
    """The call that sets them gives something else than those after it, and so is no capture of theirs."""
    model = Stateful(then).eval()
    reference, fast = copy.deepcopy(model), smelt.compile(model, dynamic=dynamic, cache=False)
    with torch.no_grad():
        for x in CALLS:
            torch.testing.assert_close(fast(x), reference(x), rtol=1e-4, atol=1e-5)
            assert (model.ready, model.number) == (reference.ready, reference.number)


class Table(nn.Module):
    """A buffer that the first call fills."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(8))
        self.ready = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.ready:
            self.table.copy_(torch.arange(8.0))
            self.ready = True
        return x + self.table


def test_a_buffer_that_the_first_call_fills() -> None:
    model = Table().eval()
    reference, fast = copy.deepcopy(model), smelt.compile(model, cache=False)
    for x in CALLS:
        torch.testing.assert_close(fast(x), reference(x))
    torch.testing.assert_close(model.table, reference.table)


def test_trials_leave_the_model_and_the_generator_as_they_were() -> None:
    for then in (counted, deep, in_object):
        model = Stateful(then).eval()
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        with pytest.raises(smelt.CaptureError):
            smelt.compile(model, fallback="error", cache=False)(CALLS[0])
        assert (model.number, model.nested, model.cell.number) == (0, {"one": [0]}, 0)
        assert torch.equal(torch.rand(2), expected)


# --- what one kind of call stores, and another one reads --------------------------------------------------------------


class Kinds(Stateful):
    def forward(self, x: Tensor, store: bool = False) -> Tensor:
        y = self.layer(x)
        if store:
            self.then(self, y)
            return y
        return y + self.sum + self.number + len(self.seen)


def stores_tensor(model: Stateful, y: Tensor) -> Tensor:
    model.sum = y.sum(0)
    return y


def stores_number(model: Stateful, y: Tensor) -> Tensor:
    model.number = y.shape[0]
    return y


def stores_in_list(model: Stateful, y: Tensor) -> Tensor:
    model.seen[:] = [0] * y.shape[0]
    return y


ORDERS = {"stored first": [True, False, True, False], "read first": [False, True, False, True, False]}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("then", [stores_tensor, stores_number, stores_in_list])
def test_what_another_kind_of_call_reads(then: Callable[[Stateful, Tensor], Tensor], order: str) -> None:
    """Where it was captured before, it held what was there then."""
    model = Kinds(then).eval()
    reference, fast = copy.deepcopy(model), smelt.compile(model, cache=False)
    with torch.no_grad():
        for x, store in zip(CALLS, ORDERS[order], strict=False):
            torch.testing.assert_close(fast(x, store), reference(x, store), rtol=1e-4, atol=1e-5)


def test_what_calls_store_that_pytorch_runs() -> None:
    """A result that shares memory with an argument, for one: two calls tell that it is set again."""
    model = Kinds(stores_number).eval()
    kept = kept_of(model)
    reference, fast = copy.deepcopy(model), smelt.compile(model, cache=False)
    with torch.no_grad():
        for x in CALLS:
            with kept.watching(model):
                model(x, True)
            reference(x, True)
            torch.testing.assert_close(fast(x), reference(x), rtol=1e-4, atol=1e-5)
    assert kept.reason == "it keeps number from call to call"


def test_a_model_that_was_changed_is_captured_again() -> None:
    model = Stateful(counted).eval()
    fast = smelt.compile(model, cache=False)
    with torch.no_grad():
        fast(CALLS[0])
        model.then = lambda model, y: y
        fast.reset()
        torch.testing.assert_close(fast(CALLS[0]), model(CALLS[0]))
    assert not fast.is_split
