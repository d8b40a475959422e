"""Results of quantised activations that were rounded another way: held to how far the reference itself moves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

import smelt
from smelt.runtime.verify_quantized import Judge, judged


def _judge(row: list[float]) -> Judge:
    """Of a layer whose first 32 features are a row; its scale is 1 where the largest is 127."""
    torch.manual_seed(0)
    fast = smelt.compile(nn.Sequential(nn.Linear(32, 32)).eval(), quantize="int8-dynamic")
    x = torch.zeros(1, 32)
    x[0, : len(row)] = torch.tensor(row)
    fast(x)
    return Judge(*fast.entry_for((x,), {}), {})


@pytest.mark.parametrize(("number", "is_tie"), [(63.5, True), (63.2, False)])
def test_the_reference_moves_where_a_number_is_between_two(number: float, is_tie: bool) -> None:
    judge = _judge([127.0, number, 3.0])
    given = list(judge.inputs)
    reference = judge.quantised(torch.float64)
    (spread,) = judge.spread(reference).values()
    assert (spread > 1e-2) == is_tie
    assert all(a is b for a, b in zip(judge.inputs, given, strict=True))


class Keeps(nn.Module):
    """Writes what it computes to an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 32)

    def forward(self, x: Tensor, kept: Tensor) -> Tensor:
        kept.copy_(self.linear(x))
        return kept * 2


def test_arguments_that_are_written_are_followed() -> None:
    torch.manual_seed(0)
    fast = smelt.compile(Keeps().eval(), quantize="int8-dynamic")
    x, kept = torch.zeros(1, 32), torch.zeros(1, 32)
    x[0, :2] = torch.tensor([127.0, 63.5])
    judge = Judge(*fast.entry_for((x, kept), {}), {id(x): "argument [0]", id(kept): "argument [1]"})
    spread = judge.spread(judge.quantised(torch.float64))
    assert set(spread) == {"result", "argument [1]"}
    assert min(spread.values()) > 1e-2


@dataclass
class Fake:
    """A judge of one output: quantisation moves it by 1, and rounding another way by some distance."""

    distance: float
    asked: list[bool] = field(default_factory=list)

    def plain(self, dtype: torch.dtype | None = None) -> dict[str, Any]:
        return {"y": torch.zeros(4, dtype=dtype or torch.float32)}

    def quantised(self, dtype: torch.dtype | None = None) -> dict[str, Any]:
        return {"y": torch.ones(4, dtype=dtype or torch.float32)}

    def spread(self, reference: Mapping[str, Tensor]) -> dict[str, float]:
        self.asked.append(True)
        return {"y": self.distance}


@pytest.mark.parametrize(
    ("error", "distance", "ties", "passes"),
    [
        (0.4, 0.0, True, True),  # within half of what quantisation moved
        (0.8, 0.0, True, False),
        (0.8, 0.3, True, False),
        (0.8, 0.5, True, True),  # within twice of what rounding another way does
        (0.8, 0.5, False, False),  # where nothing is rounded
        (0.4, 0.5, False, False),
    ],
)
def test_what_explains_an_error(error: float, distance: float, ties: bool, passes: bool) -> None:
    judge, zero = Fake(distance), {"y": torch.zeros(4)}
    exact = {"y": torch.zeros(4, dtype=torch.float64)}
    (result,), _ = judged({"y": torch.full((4,), 1 + error)}, zero, exact, ["y"], cast(Judge, judge), ties)
    assert result.passed == passes
    assert bool(judge.asked) == (ties and error > 0.5)  # eight evaluations: only where they are needed
