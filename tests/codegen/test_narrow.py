"""Products of few columns: lanes along the terms."""

from __future__ import annotations

import pytest
import torch

from smelt.codegen.machine import Machine
from smelt.codegen.narrow import is_narrow
from smelt.codegen.schedule import default_schedule
from smelt.ir import ops
from smelt.ir.types import symbol

from .harness import Case, Kernel, build
from .matmul_cases import linear_case
from .prologue_cases import norm_case

B, M = symbol("b"), symbol("m")
ROWS = [{"m": m} for m in (0, 1, 2, 15, 16, 17, 33, 700)]


def _cases() -> dict[str, Case]:
    shapes = [(16, 1), (17, 1), (128, 1), (128, 2), (100, 3), (768, 7), (31, 8)]
    found = {f"{terms}x{columns}": linear_case((M,), terms, columns, sizes=ROWS) for terms, columns in shapes}
    found["known rows"] = linear_case((5,), 40, 3, sizes=[{}])
    found["no rows"] = linear_case((), 40, 3, sizes=[{}])
    found["gelu"] = linear_case((M,), 70, 4, after=ops.gelu, sizes=ROWS)
    found["many terms"] = linear_case((M,), 8190, 2, sizes=ROWS[:4])
    found["on all threads"] = linear_case((M,), 8190, 7, sizes=[{"m": 65}])
    two = [{"b": b, "m": m} for b, m in ((0, 3), (1, 1), (3, 17))]
    found["two row axes"] = linear_case((B, M), 40, 3, sizes=two)
    return found


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return build(_cases())


@pytest.mark.parametrize("name", list(_cases()))
def test_product(kernels: dict[str, Kernel], name: str) -> None:
    kernel = kernels[name]
    assert kernel.schedule.tile_n == 1  # type: ignore[union-attr]
    for sizes in kernel.case.sizes:
        kernel.check(sizes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("term", [0, 99])
def test_special_values_stay_in_their_row(kernels: dict[str, Kernel], value: float, term: int) -> None:
    kernel, sizes = kernels["100x3"], {"m": 17}
    tensors = kernel.case.tensors(sizes)
    tensors[0][16, term] = value
    (exact,), (found,) = kernel.case.meaning(tensors, sizes, torch.float64), kernel.run(tensors, sizes)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert found[:16].isfinite().all()


@pytest.mark.parametrize(
    "case",
    [
        linear_case((M,), 64, 9),
        linear_case((M,), 15, 2),
        linear_case((M,), 8193, 2),
        linear_case((M,), 64, 2, torch.bfloat16),
        linear_case((M,), 64, 2, operands={0: (1, 0)}),
        norm_case(64, 2),
    ],
    ids=["columns", "few terms", "many terms", "bfloat16", "transposed", "norm"],
)
def test_others_keep_lanes_along_columns(case: Case) -> None:
    program = case.program()
    assert not is_narrow(program, 16)
    assert default_schedule(program, Machine()).tile_n >= 16  # type: ignore[union-attr]


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_a_lane_sums_no_more_with_shorter_vectors(lanes: int) -> None:
    assert is_narrow(linear_case((M,), 512 * lanes, 2).program(), lanes)
    assert not is_narrow(linear_case((M,), 512 * lanes + 1, 2).program(), lanes)
