"""Scatter and recurrence kernels in Triton, interpreted; indices out of range."""

from __future__ import annotations

import pytest
import torch

from smelt.codegen.program import Skeleton
from smelt.ir import ops

from . import cached_cases as cached
from . import recurrence_cases as recurrence
from . import rows_cases as rows
from .cases import Case
from .regions import I64, B, S, all_regions, operand, x, y, z
from .test_recurrence import scaled
from .triton_harness import TritonKernel, build

SCATTERS = {n: c for n, c in all_regions().items() if c.program().skeleton is Skeleton.SCATTER}
SCATTERS["two writes"] = cached.CASES["two writes"]
RECURRENCES = {n: c for n, c in recurrence.cases().items() if c.schedule is None}


@pytest.mark.parametrize("name", SCATTERS)
def test_scatter(name: str) -> None:
    kernel = build(SCATTERS[name])
    for sizes in SCATTERS[name].sizes:
        kernel.check(sizes)


def test_the_last_writer_wins() -> None:
    value = ops.reshape(ops.permute(y(S, B), dims=(1, 0)), shape=(B, S, 1))
    case = Case([x(9, 2), y(S, B), z(B, S, dtype=I64)], [ops.index_put(x(9, 2), value, z(B, S, dtype=I64), dim=0)])
    given = [torch.zeros(9, 2), torch.randn(7, 5), torch.randint(-9, 9, (5, 7))]
    expected = torch.zeros(9, 2)
    for b in range(5):
        for s in range(7):
            expected[given[2][b, s]] = given[1][s, b]
    assert torch.equal(build(case).run(given, {"b": 5, "s": 7})[0], expected)


@pytest.mark.parametrize(
    ("name", "position", "bad"),
    [
        ("embedding", 1, 7),
        ("embedding", 1, -1),
        ("index wraps", 1, -8),
        ("index by two", 2, 5),
        ("index along the last axis", 1, 2**40),
        ("gather", 1, -1),
        ("mean of embeddings", 1, 7),
        ("embedding under padding", 1, 7),
        ("index_put", 2, 9),
        ("index_put", 2, -10),
        ("index_put adds torch.float32", 2, 9),
        ("scatter", 1, -1),
        ("scatter adds", 1, 2**33),
    ],
)
def test_index_out_of_range(name: str, position: int, bad: int) -> None:
    kernel, sizes = build(rows.CASES[name]), {"b": 2, "s": 3}
    tensors = kernel.case.tensors(sizes)
    kernel.run(tensors, sizes)
    tensors[position].reshape(-1)[-1] = bad
    with pytest.raises(IndexError):
        kernel.run(tensors, sizes)  # which also checks that nothing around the buffers was touched


def test_a_place_out_of_range_is_not_written() -> None:
    target, at, new = x(4), y(1, dtype=I64), operand(2, (1,))
    case = Case([target, new, at], [ops.index_put(target, operand(1, (1,)), operand(2, (1,), I64), dim=0)])
    case.inputs = [target, operand(1, (1,)), operand(2, (1,), I64)]
    kernel = build(case)
    held: list[torch.Tensor] = []
    with pytest.raises(IndexError):
        held += kernel.run([torch.arange(4.0), torch.tensor([9.0]), torch.tensor([4])], {})
    assert not held


# --- recurrent layers -------------------------------------------------------------------------------------------------


def agrees(kernel: TritonKernel, sizes: dict[str, int], tensors: list[torch.Tensor]) -> None:
    exact, rtol = kernel.case.meaning(tensors, sizes, torch.float64), kernel.case.rtol
    for found, wide in zip(kernel.run(tensors, sizes), exact, strict=True):
        torch.testing.assert_close(found.double(), wide, rtol=rtol, atol=rtol, check_stride=False, equal_nan=True)


@pytest.mark.parametrize("name", RECURRENCES)
def test_recurrence(name: str) -> None:
    kernel = build(RECURRENCES[name])
    for sizes in ({"t": 0, "b": 3}, {"t": 5, "b": 0}, {"t": 4, "b": 17}):
        agrees(kernel, sizes, scaled(kernel, sizes))  # type: ignore[arg-type]


def test_nan_in_one_row_stays_in_it() -> None:
    kernel, sizes = build(RECURRENCES["gru 17"]), {"t": 3, "b": 6}
    tensors = scaled(kernel, sizes)  # type: ignore[arg-type]
    tensors[0][1, 2, 0] = float("nan")
    agrees(kernel, sizes, tensors)
