"""Rows kernels in Triton, interpreted: whole rows at once, and rows in passes of a few elements."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from smelt.codegen.gpu import GpuMachine, GpuRowsSchedule
from smelt.codegen.gpu_schedule import default_gpu_schedule
from smelt.codegen.program import Skeleton
from smelt.ir import ops

from . import rows_cases as cpu
from .cases import Case, Sizes
from .regions import FILLED, SIZES, B, one
from .triton_harness import TritonKernel, build

PASSES = GpuRowsSchedule(rows=2, columns=8, at_once=False)
ROWS: dict[str, Case] = {
    name: case for name, case in cpu.CASES.items() if "awkward" not in name and case.program().skeleton is Skeleton.ROWS
}
NAN, INF = float("nan"), float("inf")


def kernel_of(case: Case) -> TritonKernel:
    """At once where rows have a known length, in passes otherwise."""
    chosen = default_gpu_schedule(case.program(), GpuMachine())
    assert isinstance(chosen, GpuRowsSchedule)
    return build(case, chosen if chosen.at_once else PASSES)


def sizes_of(case: Case) -> Sequence[Sizes]:
    """The sizes that tell most; of nothing, where there may be nothing."""
    return {id(SIZES): SIZES[2:4], id(FILLED): FILLED[2:3]}.get(id(case.sizes), case.sizes[-2:])


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
def test_rows(name: str) -> None:
    kernel = kernel_of(ROWS[name])
    for sizes in sizes_of(ROWS[name]):
        kernel.check(sizes)


@pytest.mark.parametrize("name", ["layer_norm", "softmax of 17", "argmax 2", "cumsum 2", "amax (2,)"])
def test_both_ways_compute_the_same(name: str) -> None:
    case = ROWS[name]
    for schedule in (PASSES, GpuRowsSchedule(rows=2, columns=128), GpuRowsSchedule(1, 32, False)):
        build(case, schedule).check(case.sizes[0])


@pytest.mark.parametrize("at", [0, 5, 9])
@pytest.mark.parametrize("name", ["amax (2,)", "amin (1,)", "softmax 1", "argmax 1", "argmin 2", "argmax of any"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_a_number_that_is_none(name: str, value: float, at: int) -> None:
    kernel, sizes = kernel_of(ROWS[name]), {"b": 2, "s": 10}
    (source,) = kernel.case.tensors(sizes)
    source.reshape(2, 10, -1)[0, at] = value
    (expected,), (found,) = kernel.case.meaning([source], sizes), kernel.run([source], sizes)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-5, equal_nan=True)


def test_the_first_of_equals_is_chosen() -> None:
    source = torch.tensor([[0.0, 2.0] * 10, [NAN, 1.0] * 10, [-INF] * 20])
    for schedule in (PASSES, GpuRowsSchedule(rows=4, columns=32)):
        kernel = build(one(lambda v: ops.argmax(v, dim=1), (B, 20)), schedule)
        (found,) = kernel.run([source], {"b": 3})
        assert found.tolist() == [1, 0, 0]


def test_awkward_sizes() -> None:
    case = one(lambda v: ops.softmax(v, dim=1), (B, 781))
    build(case, GpuRowsSchedule(rows=64, columns=1024)).check({"b": 1823})
