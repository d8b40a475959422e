"""Who computes which tiles of a product: parts of the terms, even shares, tiles in turns; tensor descriptors."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from smelt.codegen.gpu import GpuMatmulSchedule
from smelt.ir import ops
from smelt.ir.types import symbol

from . import prologue_cases
from .cases import Case, operand
from .triton_harness import build

M = symbol("m")
DOT = GpuMatmulSchedule(16, 16, 16, group=2)
SUM = GpuMatmulSchedule(2, 16, 16, group=2, dot=False)
ORDERS = {
    "splits": {"splits": 3},
    "more splits than blocks": {"splits": 8},
    "streams": {"streams": 5},
    "one stream": {"streams": 1},
    "persistent": {"persistent": 3},
}
SIZES = ({"m": 0}, {"m": 1}, {"m": 17})


def long(dtype: torch.dtype = torch.float32, terms: int = 70) -> Case:
    x, w, b = operand(0, (M, terms), dtype), operand(1, (40, terms), dtype), operand(2, (40,), dtype)
    return Case([x, w, b], [ops.relu(ops.linear(x, w, b))], SIZES, weights=frozenset([1]))


def batched() -> Case:
    a, b = operand(0, (3, M, 37)), operand(1, (3, 37, 20))
    return Case([a, b], [ops.matmul(a, b)], SIZES)


CASES_HERE = {
    "linear": long(),
    "half": long(torch.bfloat16),
    "integers": long(torch.int32),
    "few terms": long(terms=1),
    "batched": batched(),
    "norm": next(c for n, c in prologue_cases.cases().items() if c.sizes is prologue_cases.ROWS),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("tile", [DOT, SUM], ids=["dot", "sum"])
@pytest.mark.parametrize("name", CASES_HERE)
def test_orders(name: str, tile: GpuMatmulSchedule, order: str) -> None:
    if name == "integers" and tile.dot:
        pytest.skip("integers have no tl.dot")
    kernel = build(CASES_HERE[name], replace(tile, **ORDERS[order]))  # type: ignore[arg-type]
    for sizes in SIZES if name == "linear" else SIZES[-1:]:
        kernel.check(sizes)


def test_no_terms() -> None:
    for order in ({"splits": 2}, {"streams": 3}):
        kernel = build(long(terms=0), replace(SUM, **order))  # type: ignore[arg-type]
        kernel.check({"m": 3})


def test_parts_are_added_in_one_order() -> None:
    kernel = build(long(terms=700), replace(DOT, splits=7))
    tensors = kernel.case.tensors({"m": 17})
    first = kernel.run(tensors, {"m": 17})[0]
    assert torch.equal(kernel.run(tensors, {"m": 17})[0], first)
    assert "atomic" not in kernel.file.text


def matrix(rows: object, columns: int, terms: int, dtype: torch.dtype = torch.float16) -> Case:
    x, w = operand(0, (rows, terms), dtype), operand(1, (columns, terms), dtype)  # type: ignore[arg-type]
    return Case([x, w], [ops.linear(x, w)], [{}], weights=frozenset([1]))


@pytest.mark.parametrize(("rows", "columns", "terms"), [(17, 40, 72), (64, 32, 64), (1, 16, 8)])
@pytest.mark.parametrize("persistent", [0, 2])
def test_descriptors(rows: int, columns: int, terms: int, persistent: int) -> None:
    kernel = build(matrix(rows, columns, terms), replace(DOT, tma=True, persistent=persistent))
    # one row is no matrix in memory
    assert kernel.file.text.count("tl.make_tensor_descriptor") == (2 if rows > 1 else 1)
    kernel.check({})


def test_a_right_operand_that_is_not_transposed() -> None:
    a, b = operand(0, (20, 40), torch.float16), operand(1, (40, 24), torch.float16)
    kernel = build(Case([a, b], [ops.matmul(a, b)], [{}]), replace(DOT, tma=True))
    assert kernel.file.text.count("tl.make_tensor_descriptor") == 2
    kernel.check({})


@pytest.mark.parametrize(
    ("rows", "terms", "dtype"), [(17, 33, torch.float16), (17, 40, torch.float32), (M, 40, torch.float16)]
)
def test_what_descriptors_do_not_take_is_read_by_pointers(rows: object, terms: int, dtype: torch.dtype) -> None:
    kernel = build(matrix(rows, 40, terms, dtype), replace(DOT, tma=True))
    assert kernel.file.text.count("tl.make_tensor_descriptor") < 2
    kernel.check({"m": 5} if rows is M else {})
