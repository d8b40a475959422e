"""Kernels so small that LLVM puts them into one function: one must see what the one before it wrote."""

import torch
from torch import Tensor

import smelt


def test_a_kernel_reads_what_the_one_before_it_wrote() -> None:
    def added(x: Tensor, index: Tensor) -> Tensor:
        return x.index_add(2, index, x[:, :, :2]).clamp(-1, 2)

    fast = smelt.compile(added, dynamic=False, cache=False, threads=1)
    smelt.verify(fast, torch.rand(1, 2, 7), torch.tensor([3, 5]))
    smelt.verify(fast, torch.rand(1, 2, 7), torch.tensor([3, 3]))


def test_a_sum_along_an_axis_of_size_1() -> None:
    fast = smelt.compile(lambda x: x.cumsum(1) * 2, dynamic=False, cache=False, threads=1)
    smelt.verify(fast, torch.rand(3, 1, 4))
    smelt.verify(smelt.compile(lambda x: x.cumsum(0), dynamic=False, cache=False), torch.rand(1, 1))


def test_a_buffer_becomes_a_constant() -> None:
    class Reset(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("state", torch.rand(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            total = x + self.state
            self.state.fill_(0.25)
            return total

    smelt.verify(smelt.compile(Reset().eval(), cache=False), torch.rand(2, 3))


def test_a_weight_times_itself() -> None:
    class Gram(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.rand(8, 4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return torch.nn.functional.linear(self.w, self.w) + x, self.w.T @ x

    smelt.verify(smelt.compile(Gram().eval(), cache=False), torch.rand(8, 8))
