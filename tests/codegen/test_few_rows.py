"""Products of few rows with weights that come from memory, and attention of few queries over caches in half types."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from smelt.codegen.machine import Machine
from smelt.codegen.schedule import candidates
from smelt.codegen.tvm.matmul import tile_heights
from smelt.ir.types import symbol
from smelt.runtime.target import Target

from .attention_cases import RTOL, case
from .harness import Case, Kernel, build, tvm_module
from .matmul_cases import linear_case
from .quantized_cases import few_bits, tensors_of
from .test_dot import bytes_case, on_dot

M = symbol("m")
BF16, F16 = torch.bfloat16, torch.float16
SIZES = [{"b": b, "s": s, "k": k} for b, s, k in [(1, 1, 130), (2, 1, 49), (1, 5, 70), (1, 16, 64), (2, 3, 1)]]
SOME = [{"m": m} for m in (1, 8, 9, 16, 17, 24, 25)]


def _products() -> dict[str, Case]:
    found = {}
    for rows in (1, 3, 8, 16):  # known, so that other tiles are left out
        found[f"float32, {rows}"] = linear_case((rows,), 383, 331, sizes=[{}])
    found["float32"] = linear_case((M,), 383, 331, sizes=SOME)
    found["float32, longer than a block"] = linear_case((M,), 1203, 99, sizes=SOME[:4])
    found["int8, 1"] = few_bits(1203, 331, 8, rows=(1,), sizes=[{}])
    for group in (32, 128):
        found[f"int4 by {group}, 1"] = few_bits(781, 331, 4, group, rows=(1,), sizes=[{}])
    found["int4 by 32, 3"] = few_bits(781, 331, 4, 32, rows=(3,), sizes=[{}])
    found["int4 by 32"] = few_bits(781, 99, 4, 32, sizes=SOME)
    if Target.detect("cpu").machine.has_bf16_dot:
        for rows in (1, 5):
            found[f"bfloat16, {rows}"] = on_dot(linear_case((rows,), 767, 331, BF16, sizes=[{}]))
        found["bfloat16"] = on_dot(linear_case((M,), 767, 331, BF16, sizes=SOME))
    if Target.detect("cpu").machine.has_vnni:
        for rows in (1, 3):
            found[f"bytes, {rows}"] = on_dot(bytes_case(2051, 99, rows=rows))  # several blocks of terms
    return found


def _attention() -> dict[str, Case]:
    found = {}
    for dtype in (BF16, F16):
        for heads, groups, head in ((2, 1, 64), (6, 3, 32), (9, 9, 16), (4, 2, 48)):
            kind = f"{str(dtype).removeprefix('torch.')}, {heads} heads on {heads // groups} of {head}"
            found[kind] = case(heads, groups, head, dtype=dtype, sizes=SIZES)
    found["float32, 3 heads on 1, masked"] = case(3, 3, 32, mask=(symbol("b"), 1, 1, symbol("k")), sizes=SIZES)
    return found


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return build({**_products(), **_attention()})


@pytest.mark.parametrize("name", [*_products(), *_attention()])
def test_kernel(kernels: dict[str, Kernel], name: str) -> None:
    kernel = kernels[name]
    for sizes in kernel.case.sizes:
        quantised = name.startswith("int")
        kernel.check(sizes, tensors_of(kernel.case, dict(sizes)) if quantised else None)


@pytest.mark.parametrize("name", ["float32, 3", "float32", "int8, 1", "int4 by 32, 3", "int4 by 32, 1"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_special_values_stay_in_their_row(kernels: dict[str, Kernel], name: str, value: float) -> None:
    kernel = kernels[name]
    sizes = {"m": 9} if kernel.case.sizes[0] else {}
    tensors = tensors_of(kernel.case, sizes) if name.startswith("int") else kernel.case.tensors(sizes)
    tensors[0][-1, 5] = value
    (exact,), (found,) = kernel.case.meaning(tensors, sizes, torch.float64), kernel.run(tensors, sizes)
    torch.testing.assert_close(found.double(), exact, rtol=1e-3, atol=1e-3, equal_nan=True)
    assert exact[:-1].isfinite().all()
    assert not exact[-1].isfinite().all()


@pytest.mark.parametrize("name", ["bfloat16, 2 heads on 2 of 64", "bfloat16, 6 heads on 2 of 32"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_special_values_of_half_caches(kernels: dict[str, Kernel], name: str, value: float) -> None:
    kernel, sizes = kernels[name], {"b": 1, "s": 1, "k": 70}
    for at in range(3):
        tensors = kernel.case.tensors(sizes)
        tensors[at][0, 0, 0, 3] = value
        (exact,), (found,) = kernel.case.meaning(tensors, sizes, torch.float64), kernel.run(tensors, sizes)
        torch.testing.assert_close(found.double(), exact, rtol=RTOL[BF16], atol=RTOL[BF16], equal_nan=True)


@pytest.mark.parametrize("rows", [1, 4, 5])
@pytest.mark.parametrize("blocked", [False, True])
def test_sums_of_a_small_tile_stay_in_registers(rows: int, blocked: bool) -> None:
    program = linear_case((rows,), 1203, 99).program()
    schedule = replace(candidates(program, Machine())[0], blocked=blocked)  # type: ignore[arg-type]
    text = tvm_module.kernel_text("k", program, schedule)
    assert ("part0[0 + (" in text) == (rows == 5)  # where sums of a block are added to what memory holds


def test_a_single_tile_needs_no_order_of_tiles() -> None:
    program = linear_case((1,), 1203, 99).program()
    schedule = candidates(program, Machine())[0]
    streamed, blocked = (
        tvm_module.kernel_text("k", program, replace(schedule, blocked=blocked))  # type: ignore[arg-type]
        for blocked in (False, True)
    )
    assert streamed == blocked


def test_only_tiles_that_rows_need_are_written() -> None:
    assert tile_heights(8, M) == (8, 4, 1)
    assert tile_heights(8, 16) == (8, 4, 1)
    assert [tile_heights(8, rows) for rows in (1, 2, 4, 5, 7)] == [(1,), (4,), (4,), (8,), (8,)]
