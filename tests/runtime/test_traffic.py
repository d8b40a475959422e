"""Bytes moved, and the least that could have been."""

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime.entry import Entry
from smelt.runtime.traffic import Traffic, traffic_of


def traffic(model: nn.Module, *args: Tensor, cache_bytes: int = 1 << 40, dynamic: bool = True) -> Traffic:
    entry = entry_of(model, *args, dynamic=dynamic)
    return traffic_of(entry.executable, entry.sizes or {}, cache_bytes)


def entry_of(model: nn.Module, *args: Tensor, dynamic: bool = True) -> Entry:
    fast = smelt.compile(model.eval(), dynamic=dynamic)
    fast(*args)
    return fast.entries[-1]


class Chain(nn.Module):
    """A product and a normalisation: two kernels, with one value between them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(16, 32), nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.linear(x))
        return y


X, Y = 5 * 16 * 4, 5 * 32 * 4
LINEAR, NORM = (16 * 32 + 32) * 4, 2 * 32 * 4


def test_a_chain_of_two_kernels() -> None:
    found = traffic(Chain(), torch.randn(5, 16))
    assert [step.least for step in found.steps] == [X + LINEAR, NORM + Y]
    assert [step.others for step in found.steps] == [0, Y]
    assert [step.written for step in found.steps] == [Y, Y]
    assert found.total.least == X + LINEAR + NORM + Y
    # a packed weight has whole panels
    assert found.total.nbytes >= found.total.least + 2 * Y
    assert found.ratio == found.total.nbytes / found.total.least


def test_the_columns_of_panels_are_padded_and_not_their_terms() -> None:
    found = traffic(nn.Linear(21, 100), torch.randn(5, 21))
    entry = entry_of(nn.Linear(21, 100), torch.randn(5, 21))
    (packing,) = (b.packing for b in entry.executable.plan.buffers if b.packing is not None)
    columns = -(-100 // packing.layout.tile) * packing.layout.tile
    assert columns > 100
    assert found.steps[0].sources == (5 * 21 + 21 * columns + 100) * 4


def test_what_does_not_fit_the_cache_must_spill() -> None:
    fits, spills = (traffic(Chain(), torch.randn(5, 16), cache_bytes=n) for n in (Y, Y - 100))
    assert spills.total.least - fits.total.least == 200
    assert [b.least - a.least for a, b in zip(fits.steps, spills.steps, strict=True)] == [100, 100]
    assert spills.total.nbytes == fits.total.nbytes


class Tied(nn.Module):
    """A language model's ends: rows of a table looked up, and the table as a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 16)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.linear(self.table(ids).exp(), self.table.weight)


def test_a_table_counts_once_however_often_it_is_read() -> None:
    found = traffic(Tied(), torch.arange(3).reshape(1, 3))
    assert found.total.least == 3 * 8 + 50 * 16 * 4 + 3 * 50 * 4
    assert found.steps[0].least == 3 * 8 + 3 * 16 * 4


class Counter(nn.Module):
    """State that a call changes in part."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.zeros(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.state[3:5] = x
        return x * 2


def test_of_state_only_what_changes_is_needed_and_copies_of_it_are_counted() -> None:
    found = traffic(Counter(), torch.ones(2, 4), dynamic=False)
    assert found.total.least == 3 * 2 * 4 * 4  # x is read once, the update and the result are written
    assert found.total.nbytes > found.total.least


def test_results_that_share_memory_are_copied() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = x.exp()
            return y, y.reshape(-1)

    found = traffic(Twice(), torch.ones(2, 4), dynamic=False)
    assert found.around.nbytes == 2 * 2 * 4 * 4
    assert found.total.least == 3 * 2 * 4 * 4


def test_nothing_to_move_has_no_ratio() -> None:
    class Empty(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.exp()

    assert traffic(Empty(), torch.ones(0, 4), dynamic=False).ratio is None


def test_the_report_tells_it() -> None:
    fast = smelt.compile(Chain().eval())
    fast(torch.randn(5, 16))
    (capture,) = fast.report().captures
    assert capture.bytes_over_minimum == pytest.approx(traffic(Chain(), torch.randn(5, 16)).ratio)
    assert sum(kernel.least_bytes or 0 for kernel in capture.kernels) == X + LINEAR + NORM + Y
    assert capture.kernels[1].bytes_over_minimum == (2 * Y + NORM) / (NORM + Y)
    assert "times the least" in str(fast.report())
