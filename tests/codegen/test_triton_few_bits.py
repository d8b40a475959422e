"""Products with weights of few bits as Triton kernels, interpreted: in registers, in half types, in groups of terms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from smelt.codegen.gpu import GPU_MACHINES, GpuMatmulSchedule
from smelt.codegen.triton.cubin import compile_file
from smelt.codegen.triton.module import emit
from smelt.ir import ops
from smelt.ir.ops.quantize import groups_of, stored_dtype, stored_shape
from smelt.ir.types import symbol

from . import quantized_cases as cpu
from .cases import Case, operand
from .triton_harness import TritonKernel, build

M = symbol("m")
F32, BF16, F16, U8 = torch.float32, torch.bfloat16, torch.float16, torch.uint8
CASES = cpu.cases()
DOT = GpuMatmulSchedule(16, 16, 16, dot=True)
WIDE = GpuMatmulSchedule(16, 16, 32, dot=True)  # int8 needs 32 terms; groups of 16 are less than a block
SUM = GpuMatmulSchedule(1, 16, 32, dot=False)
FEW = ({"m": 0}, {"m": 17})


def half(
    terms: int,
    columns: int,
    bits: int,
    group: int,
    dtype: torch.dtype,
    *,
    zeros: bool,
    norm: bool,
    float8: bool = False,
) -> Case:
    """Rows of a half type, widened for a product with a weight of few bits, rounded afterwards."""
    count = groups_of(terms, group)
    x = operand(0, (M, terms), dtype)
    q = operand(1, stored_shape(columns, terms, bits), stored_dtype(bits, zeros, float8))
    inputs = [x, q, operand(2, (columns, count)), *([operand(3, (columns, count), U8)] if zeros else [])]
    left = ops.cast(ops.rms_norm(x) if norm else x, dtype=F32)
    y = ops.cast(
        ops.quantized_linear(left, *inputs[1:], bits=bits, group=group, zeros=zeros, float8=float8), dtype=dtype
    )
    low, high = (-(2**31), 2**31) if bits == 4 else (0, 256) if zeros or float8 else (-127, 128)
    # the norm is rounded to the half type, which float64 is not
    return Case(inputs, [y], FEW, low=low, high=high, rtol=4e-2 if norm else None)


def check(kernel: TritonKernel, sizes: dict[str, int]) -> None:
    kernel.check(sizes, cpu.tensors_of(kernel.case, sizes))


@pytest.mark.parametrize("name", CASES)
def test_every_kind(name: str) -> None:
    kernel = build(CASES[name])
    for sizes in CASES[name].sizes[:1] if "m" not in CASES[name].sizes[0] else FEW:
        check(kernel, {**CASES[name].sizes[0], **sizes} if sizes else {})


@pytest.mark.parametrize("schedule", [DOT, WIDE, SUM], ids=["dot", "wide", "sum"])
@pytest.mark.parametrize(
    "name", ["4 bits zeros 100x50 by 32", "8 bits zeros 100x50 by 32", "4 bits 65x50", "norm", "float8 65x50"]
)
def test_every_way(name: str, schedule: GpuMatmulSchedule) -> None:
    kernel = build(CASES[name], schedule)
    check(kernel, {"m": 17})


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize(("bits", "group", "zeros"), [(8, 104, False), (4, 32, True), (8, 16, True), (4, 104, False)])
def test_half_types_multiply_whole_numbers(bits: int, group: int, zeros: bool, dtype: torch.dtype, norm: bool) -> None:
    kernel = build(half(100, 33, bits, group, dtype, zeros=zeros, norm=norm), DOT)
    assert "lib.dot(" in kernel.file.text
    assert "input_precision" not in kernel.file.text
    for m in (1, 17):
        check(kernel, {"m": m})


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norm"])
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("group", [104, 32])
def test_half_types_multiply_float8(group: int, dtype: torch.dtype, norm: bool) -> None:
    kernel = build(half(100, 33, 8, group, dtype, zeros=False, norm=norm, float8=True), DOT)
    assert "lib.dot(" in kernel.file.text
    assert "input_precision" not in kernel.file.text
    for m in (1, 17):
        check(kernel, {"m": m})


def test_float8_of_nan_is_nan() -> None:
    kernel = build(CASES["float8 65x50"], SUM)
    x, q, *rest = cpu.tensors_of(kernel.case, {"m": 3})
    q[7, 3], q[9, 64] = 0x7F, 0xFF
    (y,) = kernel.run([x, q, *rest], {"m": 3})
    assert y.isnan().any(0).nonzero().flatten().tolist() == [7, 9]


def test_rows_are_held_in_their_half_type() -> None:
    kernel = build(half(64, 33, 4, 32, BF16, zeros=False, norm=True))
    (held,) = kernel.file.scratch
    assert held.type.dtype == BF16


def test_a_word_is_read_once() -> None:
    kernel = build(half(64, 32, 4, 32, BF16, zeros=False, norm=False), DOT)
    assert "word = start // 8 + tl.arange(0, WORDS)" in kernel.file.text
    assert "% 8" not in kernel.file.text


def test_a_factor_of_a_block_is_read_once() -> None:
    text = build(half(128, 32, 4, 32, BF16, zeros=True, norm=False), SUM).file.text
    assert text.count("start // 32") == 2  # the scale and the zero
    assert "k_1 // 32" not in text


def test_int8_is_multiplied_as_it_is() -> None:
    kernel = build(cpu.int8(65, 50, packed=False), replace(DOT, block_k=32))
    assert "out_dtype=tl.int32" in kernel.file.text
    for m in (1, 17):
        check(kernel, {"m": m})


def test_source_of_few_bits(golden: object) -> None:
    case = half(256, 64, 4, 32, BF16, zeros=False, norm=False)
    file = emit("kernel", case.program(), GpuMatmulSchedule(64, 64, 32), case.region.symbols)
    golden("triton/few-bits.txt", file.text)  # type: ignore[operator]


def test_source_of_float8(golden: object) -> None:
    case = half(256, 64, 8, 256, BF16, zeros=False, norm=False, float8=True)
    file = emit("kernel", case.program(), GpuMatmulSchedule(64, 64, 32), case.region.symbols)
    golden("triton/float8.txt", file.text)  # type: ignore[operator]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_float8_on_every_gpu(target: str) -> None:
    case = half(4096, 4096, 8, 4096, BF16, zeros=False, norm=False, float8=True)
    program = case.program()
    for schedule in (GpuMatmulSchedule(64, 64, 32), GpuMatmulSchedule(4, 8, 128, dot=False)):
        file = emit("kernel", program, schedule, case.region.symbols)
        for found in compile_file(file, GPU_MACHINES[target]):
            assert found.spills == 0
