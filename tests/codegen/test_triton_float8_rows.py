"""Rows of float8 in Triton, interpreted: rounding, products in float16 and of float8, and their machine code."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from smelt.codegen.gpu import GPU_MACHINES, GpuMatmulSchedule
from smelt.codegen.gpu_schedule import default_gpu_schedule, float8_terms
from smelt.codegen.triton.cubin import compile_file, machine_code
from smelt.codegen.triton.module import emit
from smelt.codegen.triton.space import gpu_product, gpu_space
from smelt.ir import ops

from . import test_float8 as cpu
from .cases import Case, operand
from .quantized_cases import M, float8_rows, tensors_of
from .triton_harness import build

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
DOT = GpuMatmulSchedule(16, 16, 32, dot=True)
FLOAT8 = replace(DOT, float8=128)
SUM = GpuMatmulSchedule(1, 16, 32, dot=False)
SM_90 = GPU_MACHINES["sm_90"]


def test_every_place_where_rounding_changes() -> None:
    torch.manual_seed(0)
    x = cpu._edges()
    value = operand(0, (len(x),))
    (found,) = build(Case([value], [ops.float8_of(value)])).run([x], {})
    assert torch.equal(found, cpu._nearest(x))


@pytest.mark.parametrize("columns", [1, 37, 1030])
def test_rows(columns: int) -> None:
    x = operand(0, (M, columns), BF16)
    scale = ops.row_scale(x, float8=True)
    kernel = build(Case([x], [ops.quantize_rows(x, scale, float8=True), scale]))
    for m in (0, 1, 9):
        given = torch.randn(m, columns).bfloat16()
        if m > 4:
            given[1], given[2, -1], given[3, 0], given[4] = 0, float("nan"), float("-inf"), 3e38
        found = kernel.run([given], {"m": m})
        for mine, expected in zip(found, kernel.case.meaning([given], {"m": m}), strict=True):
            torch.testing.assert_close(mine, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("schedule", [DOT, FLOAT8, SUM], ids=["float16", "float8", "sum"])
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize(("terms", "columns"), [(1, 1), (43, 17), (100, 33)])
def test_products(terms: int, columns: int, dtype: torch.dtype, schedule: GpuMatmulSchedule) -> None:
    kernel = build(float8_rows(terms, columns, dtype=dtype), schedule)
    for m in (0, 17):
        kernel.check({"m": m}, tensors_of(kernel.case, {"m": m}))


def test_parts_of_the_terms() -> None:
    case = float8_rows(300, 33, dtype=BF16)
    for more in ({"splits": 2}, {"streams": 3}, {"persistent": 2}):
        build(case, replace(FLOAT8, **more)).check({"m": 17}, tensors_of(case, {"m": 17}))


def test_a_nan_reaches_its_row() -> None:
    kernel = build(float8_rows(65, 50, dtype=BF16), FLOAT8)
    x, scale, *rest = tensors_of(kernel.case, {"m": 4})
    x[1, 3], x[2, 64], scale[3] = 0x7F, 0xFF, float("nan")
    (y,) = kernel.run([x, scale, *rest], {"m": 4})
    assert y[0].isfinite().all()
    assert y[1:].isnan().all()


# --- which of them ----------------------------------------------------------------------------------------------------


def test_tensor_cores_sum_float8_where_the_result_is_rounded_to_bfloat16() -> None:
    def terms(case: Case, target: str = "sm_90") -> int:
        return float8_terms(case.program(), GPU_MACHINES[target])

    assert terms(float8_rows(4096, 64, dtype=BF16)) == 128
    assert terms(float8_rows(1 << 15, 64, dtype=BF16)) == 64
    assert terms(float8_rows(4096, 64, dtype=BF16), "sm_100") == 128
    assert terms(float8_rows(4096, 64, dtype=BF16), "sm_80") == 0
    assert terms(float8_rows(4096, 64, dtype=F16)) == terms(float8_rows(4096, 64)) == 0
    case = float8_rows(4096, 64, dtype=BF16)
    sums = ops.float8_linear(*case.inputs)
    wide = ops.mul(sums, ops.cast(ops.cast(sums, dtype=BF16), dtype=F32))
    assert terms(Case(case.inputs, [ops.cast(wide, dtype=BF16)])) == 0  # the sums are read as they are, too


def test_a_tuner_keeps_to_it() -> None:
    for dtype, most in ((BF16, 128), (F16, 0)):
        program = float8_rows(512, 256, rows=(256,), dtype=dtype, sizes=[{}]).program()
        found = [s for s in gpu_space(program, SM_90, {}) if isinstance(s, GpuMatmulSchedule) and s.dot]
        assert len(found) > 50
        assert {s.float8 for s in found} == {most}
        assert all(s.block_k >= 32 for s in found) or not most
        assert gpu_product(program, {}).left == 1


# --- machine code -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("rows", [2, 16, 4096])
def test_nothing_spills(rows: object, target: str) -> None:
    case = float8_rows(4096, 4096, rows=(rows,), dtype=BF16, sizes=[{}], packed=False)
    program, machine = case.program(), GPU_MACHINES[target]
    schedule = default_gpu_schedule(program, machine)
    for found in compile_file(emit("kernel", program, schedule, case.region.symbols), machine):
        assert found.spills == 0


@pytest.mark.parametrize("terms", [128, 32])
def test_sums_leave_the_tensor_cores_of_sm_90(terms: int) -> None:
    case = float8_rows(4096, 4096, rows=(512,), dtype=BF16, sizes=[{}], packed=False)
    schedule = GpuMatmulSchedule(64, 64, 128, float8=terms, warps=4)
    file = emit("kernel", case.program(), schedule, case.region.symbols)
    ptx = str(machine_code(file, file.launches[0], SM_90).ptx)
    assert ptx.count("wgmma.mma_async.sync.aligned.m64n64k32.f32.e4m3.e4m3") == 4
    assert ptx.count("add.f32") == 64 * 64 // (32 * 4) * (128 // terms)


def test_source(golden: object) -> None:
    case = float8_rows(256, 64, dtype=BF16)
    file = emit("kernel", case.program(), GpuMatmulSchedule(64, 64, 128, float8=128), case.region.symbols)
    golden("triton/float8-rows.txt", file.text)  # type: ignore[operator]
