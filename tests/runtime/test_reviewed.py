"""Faults that a review of the first compiled models found, each as small as it can be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import smelt


def compiled(function: Callable[..., Any]) -> smelt.CompiledModule:
    return smelt.compile(function, cache=False)


def test_a_view_that_pytorch_takes_of_an_intermediate_keeps_its_numbers() -> None:
    def bits(x: Tensor) -> tuple[Tensor, Tensor]:
        a = x.sin() * x.cos()
        return a.view(torch.int32), x.exp() @ x.T

    fast, x = compiled(bits), torch.randn(64, 64)
    first = fast(x)[0]
    kept = first.clone()
    torch.testing.assert_close(first.view(torch.float32), bits(x)[0].view(torch.float32))
    fast(torch.randn(64, 64))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("copy", [lambda x: x * 1, lambda x: x.clone(), lambda x: x.t().contiguous()])
def test_a_result_is_no_alias_of_an_argument(copy: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 4)
    before = x.clone()
    compiled(copy)(x).add_(100)
    assert torch.equal(x, before)


def test_equal_results_are_two_tensors() -> None:
    a, b = compiled(lambda x: (x.relu(), x.relu()))(torch.ones(3))
    a.add_(10)
    assert b.tolist() == [1, 1, 1]


def test_a_state_is_returned_as_it_was_before_it_changed() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("c", torch.zeros(1))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            old = self.c.clone()
            self.c.add_(1)
            return x + old, old

    fast = compiled(Counter().eval())
    results = [fast(torch.zeros(1)) for _ in range(3)]
    assert [(a.item(), b.item()) for a, b in results] == [(0, 0), (1, 1), (2, 2)]


def test_zeros_of_either_sign_are_different_constants() -> None:
    fast = compiled(lambda x, s: x / s)
    assert fast(torch.ones(1), 0.0).item() == float("inf")
    assert fast(torch.ones(1), -0.0).item() == -float("inf")


REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax, max": lambda x: x.softmax(-1).amax(-1),
    "softmax, squares": lambda x: (x.softmax(-1) ** 2).sum(-1),
    "entropy": lambda x: -(x.softmax(-1) * x.log_softmax(-1)).sum(-1),
    "mean of shares": lambda x: (x.exp() / x.exp().sum(-1, keepdim=True)).mean(-1),
}


@pytest.mark.parametrize("name", REDUCTIONS)
def test_a_row_is_reduced_again(name: str) -> None:
    for columns in (10, 33, 256):
        smelt.verify(compiled(REDUCTIONS[name]), torch.randn(8, columns))


def test_a_scalar_is_summed() -> None:
    smelt.verify(compiled(lambda x: x.sum()), torch.tensor(2.0))


def test_shifts_run_in_pytorch() -> None:
    fast = compiled(lambda x: (x >> 1, x << 2))
    smelt.verify(fast, torch.randint(0, 99, (3, 4)))


def test_an_empty_batch_may_come_first() -> None:
    smelt.verify(compiled(nn.Sequential(nn.Linear(4, 8), nn.GELU()).eval()), torch.randn(2, 0, 4))
    smelt.verify(compiled(lambda x: (x.exp().sort(-1)[0] * 2).sum(-1)), torch.randn(3, 0))


def test_an_index_into_an_empty_intermediate_raises() -> None:
    with pytest.raises(IndexError):
        compiled(lambda x, i: x.exp()[i].tanh())(torch.randn(0, 3), torch.tensor([0]))


MASKINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "added": lambda s, m: s + torch.zeros(m.shape).masked_fill(~m, -torch.inf),
    "filled": lambda s, m: s.masked_fill(~m, -torch.inf),
}


@pytest.mark.parametrize("name", MASKINGS)
def test_a_query_that_sees_no_key_is_nan_where_attention_is_written_out(name: str) -> None:
    class Attention(nn.Module):
        def forward(self, q: Tensor, m: Tensor) -> Tensor:
            scores = q.reshape(*q.shape[:3], 16) @ q.transpose(-1, -2) * 0.25
            return MASKINGS[name](scores, m).softmax(-1) @ q

    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    mask[2] = False
    fast, q = compiled(Attention().eval()), torch.randn(1, 2, 5, 16)
    smelt.verify(fast, q, mask)
    assert fast(q, mask).isnan().sum() == 2 * 16
