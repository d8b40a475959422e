"""What PyTorch's operator database found, each as a minimal test."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import smelt


def same(function: Any, *args: Tensor) -> None:
    """That a compiled function gives what it gives in eager, and makes the same of its arguments."""
    ours, eager = [a.clone() for a in args], [a.clone() for a in args]
    with torch.no_grad():
        found, expected = smelt.compile(function, dynamic=False, cache=False)(*ours), function(*eager)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("name", ["logical_and_", "logical_or_", "logical_xor_"])
def test_conditions_that_are_written_to_floats(name: str) -> None:
    same(lambda x, y: getattr(x, name)(y), torch.tensor([0.0, 2.0, 0.0, -1.0]), torch.tensor([0.0, 0.0, 3.0, 4.0]))


def test_a_negation_that_is_written_to_integers() -> None:
    same(lambda x: x.logical_not_(), torch.tensor([0, 2, -3]))


def test_in_place_where_the_other_operator_has_another_overload() -> None:
    """``aten.ldexp.default`` is an operator on numbers."""
    same(lambda x, y: x.ldexp_(y), torch.randn(4), torch.arange(4))


def test_a_batch_norm_of_one_empty_axis() -> None:
    same(lambda x, mean, variance: functional.batch_norm(x, mean, variance), *(torch.empty(0) for _ in range(3)))


def test_statistics_of_another_dtype_than_pytorch_says() -> None:
    """The functional form of a batch norm returns float32 for running statistics in bfloat16."""

    def normed(x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return functional.batch_norm(x, mean, variance, training=True)

    args = [t.bfloat16() for t in (torch.randn(8, 3, 4), torch.zeros(3), torch.ones(3))]
    same(normed, *args)


def test_a_result_that_nobody_reads_may_have_another_shape() -> None:
    """PyTorch's trace of an embedding bag in half types has more numbers of its other results than there are."""
    weight, ids, offsets = torch.randn(5, 4, dtype=torch.bfloat16), torch.tensor([0, 2, 1, 4]), torch.tensor([0, 2])

    def f(weight: Tensor, ids: Tensor, offsets: Tensor) -> Tensor:
        return functional.embedding_bag(ids, weight, offsets, mode="sum") * 2

    torch.testing.assert_close(smelt.compile(f)(weight, ids, offsets), f(weight, ids, offsets))
