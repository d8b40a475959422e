"""Recurrent kernels: all kinds, directions and dtypes, sequences of any length."""

import pytest
import torch

from smelt.ir.ops.recurrent import GATES

from .harness import Kernel, build
from .recurrence_cases import cases


def scaled(kernel: Kernel, sizes: dict[str, int]) -> list[torch.Tensor]:
    """Operands with a weight that keeps the states from growing."""
    tensors = kernel.case.tensors(sizes)
    tensors[1] = (tensors[1].double() / tensors[1].shape[1] ** 0.5 / 2).to(tensors[1].dtype)
    return tensors


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return build(cases())


@pytest.mark.parametrize("name", list(cases()))
def test_recurrence(kernels: dict[str, Kernel], name: str) -> None:
    kernel = kernels[name]
    for sizes in kernel.case.sizes:
        tensors = scaled(kernel, dict(sizes))
        exact = kernel.case.meaning(tensors, sizes, torch.float64)
        for found, wide in zip(kernel.run(tensors, sizes), exact, strict=True):
            rtol = kernel.case.rtol
            torch.testing.assert_close(found.double(), wide, rtol=rtol, atol=rtol, check_stride=False)


def test_nan_in_one_row_stays_in_it(kernels: dict[str, Kernel]) -> None:
    sizes = {"t": 4, "b": 6}
    for kind in GATES:
        kernel = kernels[f"{kind} 17"]
        tensors = scaled(kernel, sizes)
        tensors[0][1, 2, 0] = float("nan")
        exact = kernel.case.meaning(tensors, sizes, torch.float64)
        for found, wide in zip(kernel.run(tensors, sizes), exact, strict=True):
            torch.testing.assert_close(found.double(), wide, rtol=2e-5, atol=2e-5, equal_nan=True)
