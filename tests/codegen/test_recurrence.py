"""Recurrent kernels: all kinds, directions and dtypes, sequences of any length."""

import pytest
import torch

from smelt.codegen.machine import Machine
from smelt.codegen.schedule import RecurrenceSchedule, default_schedule
from smelt.ir.ops.recurrent import GATES

from .harness import Kernel, build, tvm_module
from .recurrence_cases import case, cases


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


@pytest.mark.parametrize("kind", GATES)
def test_tasks_that_share_columns_compute_the_same_bits(kernels: dict[str, Kernel], kind: str) -> None:
    shared, alone = kernels[f"{kind} shared"], kernels[f"{kind} not shared"]
    text = tvm_module.kernel_text("shared", shared.program, shared.schedule)
    assert [text.split("for step")[i].count("T.parallel") for i in (0, 1)] == [
        0,
        2,
    ]  # whether it is around the steps, or in them
    for sizes in shared.case.sizes:
        tensors = scaled(shared, dict(sizes))
        for found, expected in zip(shared.run(tensors, sizes), alone.run(tensors, sizes), strict=True):
            assert torch.equal(found, expected)


def test_a_weight_of_more_than_half_the_second_cache_is_shared() -> None:
    """One row at hidden sizes 128 and 512: two tasks took 1.1 and 0.58 of the time of one."""
    schedules = {h: default_schedule(case("lstm", h).program(), Machine()) for h in (128, 512)}
    assert [isinstance(s, RecurrenceSchedule) and s.shared for s in schedules.values()] == [False, True]
