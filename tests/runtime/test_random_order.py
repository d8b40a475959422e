"""Calls that draw random numbers: with one seed they give what eager gives, in the order that the model has."""

from typing import Any

import torch
from torch import Tensor

import smelt
from smelt.rewrites.schedule import Tasks, one_after_another


def draws(x: Tensor) -> tuple[Tensor, ...]:
    """Many draws, whose results are used in another order."""
    first = torch.rand(4)
    second = torch.randn_like(x)
    third = torch.randint(0, 9, (5,))
    fourth = torch.nn.functional.dropout(x, 0.5, training=True)
    return fourth * 2, third + 1, x + first, second.exp() - first


def test_the_order_of_draws_is_that_of_the_model() -> None:
    x = torch.randn(6, 4)
    fast: Any = smelt.compile(draws)
    fast(x)
    for seed in (1, 2):
        torch.manual_seed(seed)
        eager = draws(x), draws(x)
        torch.manual_seed(seed)
        torch.testing.assert_close((fast(x), fast(x)), eager)


def test_tasks_run_one_after_another_where_they_can() -> None:
    tasks = Tasks((frozenset(), frozenset(), frozenset({1}), frozenset({0, 2})), (4, 4, 4, 4), frozenset({3}))
    assert one_after_another(tasks, (1, 2, 0, 3), (0, 1)) == (0, 1, 2, 3)
    assert one_after_another(tasks, (1, 2, 0, 3), (1, 0)) == (1, 2, 0, 3)
    assert one_after_another(tasks, (1, 2, 0, 3), (3, 0)) == (1, 2, 0, 3)  # which cannot be
    assert one_after_another(tasks, (1, 2, 0, 3), ()) == (1, 2, 0, 3)
