"""The short way through a run: which plans take it, and calls that cannot."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime.direct import direct


class Model(nn.Module):
    def __init__(self, result: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.table, self.result = nn.Linear(8, 8), nn.Embedding(5, 8), result

    def forward(self, x: Tensor, at: Tensor) -> Any:
        return self.result(torch.relu(self.linear(x)), self.table(at))


def compiled(result: Callable[[Tensor, Tensor], Any]) -> smelt.CompiledModule:
    fast = smelt.compile(Model(result).eval(), cache=False)
    smelt.verify(fast, *arguments())
    return fast


def arguments(rows: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, 8, generator=generator), torch.randint(0, 5, (rows,), generator=generator)


@pytest.mark.parametrize(
    ("result", "short"),
    [
        (lambda x, e: x + e, True),
        (lambda x, e: (x + e, torch.tanh(x)), True),
        (lambda x, e: (x + e).reshape(-1), False),  # a view of a result
        (lambda x, e: torch.cummax(x + e, 1).values, False),  # PyTorch's
    ],
    ids=["one", "two", "view", "fallback"],
)
def test_which_plans_take_it(result: Callable[[Tensor, Tensor], Any], short: bool) -> None:
    plan = compiled(result).entries[0].executable.plan
    assert (direct(plan) is not None) == short


def test_results_are_the_callers_and_empty_calls_work() -> None:
    fast = compiled(lambda x, e: (x + e, torch.tanh(x)))
    first, second = fast(*arguments(3)), fast(*arguments(4))
    model = fast.original
    with torch.no_grad():
        torch.testing.assert_close(first, model(*arguments(3)))
        torch.testing.assert_close(second, model(*arguments(4)))
    assert [tuple(r.shape) for r in fast(torch.randn(0, 8), torch.zeros(0, dtype=torch.int64))] == [(0, 8), (0, 8)]
    assert not any(r.requires_grad for r in first)


def test_an_index_out_of_range_is_told_once() -> None:
    fast = compiled(lambda x, e: x + e)
    x, _ = arguments(2)
    with pytest.raises(IndexError, match="out of range"):
        fast(x, torch.tensor([1, 9]))
    with torch.no_grad():
        torch.testing.assert_close(fast(x, torch.tensor([1, 4])), fast.original(x, torch.tensor([1, 4])))
