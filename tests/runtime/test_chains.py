"""Long chains in one kernel: building one must not take time exponential in its depth."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import smelt

STEPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "relu": lambda x, y: torch.relu(x * y + x),
    "maximum": lambda x, y: torch.maximum(x, y * x),
    "gelu": lambda x, y: torch.nn.functional.gelu(x) * y,
    "clamp": lambda x, y: (x * x).clamp(-1, 1) + y,
    "where": lambda x, y: torch.where(x > y, x * x, y + x),
    "sign": lambda x, y: torch.sign(x) * x + y,
    "round": lambda x, y: torch.round(x) * x - y,
}


@pytest.mark.parametrize("name", STEPS)
def test_a_chain_of_conditions_builds(name: str) -> None:
    class Chain(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            for _ in range(10):  # named values put in place took minutes from the sixth step on
                x = STEPS[name](x, y)
            return x

    smelt.verify(smelt.compile(Chain().eval(), cache=False), torch.rand(3, 37), torch.rand(3, 37))
