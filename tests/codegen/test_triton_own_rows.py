"""Products of few rows whose programs compute the statistics of the rows themselves: one launch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from smelt.codegen.gpu import GPU_MACHINES, GpuMachine, GpuMatmulSchedule
from smelt.codegen.gpu_schedule import default_gpu_schedule
from smelt.codegen.triton.module import emit
from smelt.ir import ops
from smelt.ir.ops.quantize import groups_of, stored_dtype, stored_shape
from smelt.ir.types import symbol

from .cases import Case, operand
from .prologue_cases import doubled, norm_case
from .quantized_cases import tensors_of
from .regions import I64
from .triton_harness import build

pytest.importorskip("triton")

from smelt.codegen.triton.cubin import compile_file

SUM = GpuMatmulSchedule(4, 8, 16, dot=False, stages=1)
ONE = [{}]
N = symbol("n")
F64, BF16, F16 = torch.float64, torch.bfloat16, torch.float16


def few(rows: int = 1, **rest: object) -> Case:
    return norm_case(rows=(rows,), sizes=ONE, **rest)  # type: ignore[arg-type]


def embedded() -> Case:
    table, ids, g, w = operand(0, (11, 40)), operand(1, (2,), I64), operand(2, (40,)), operand(3, (24, 40))
    rows = ops.embedding(table, ids)
    outputs = [ops.linear(ops.rms_norm(rows, g), w), rows]
    return Case([table, ids, g, w], outputs, weights=frozenset([3]), high=11, low=0, rtol=1e-4)


def softmax() -> Case:
    x, w = operand(0, (3, 40)), operand(1, (30, 40))
    return Case([x, w], [ops.linear(ops.softmax(x, dim=1), w)], weights=frozenset([1]))


CASES_HERE = {
    "one row": few(),
    "no row axis": norm_case(rows=(), sizes=ONE),
    "three rows": few(3),
    "four rows": few(4, terms=64, columns=64),
    "two row axes": norm_case(rows=(2, 2), sizes=ONE),
    "bfloat16": few(2, dtype=BF16, before=doubled, stored=lambda x, n: [x]),
    "float16": few(dtype=F16),
    "rows are stored": few(3, stored=lambda x, n: [n]),
    "statistics are stored": few(3, stored=lambda x, n: [ops.mean(x, dims=(1,))]),
    "sums are stored": few(2, before=doubled, stored=lambda x, n: [x], after=ops.relu),
    "much is stored": few(3, columns=48, before=doubled, stored=lambda x, n: [ops.tanh(n), ops.add(x, n)]),
    "long rows": few(2, terms=5000, columns=3, stored=lambda x, n: [n]),
    "embedding": embedded(),
    "softmax": softmax(),
}


@pytest.mark.parametrize("name", CASES_HERE)
def test_one_launch(name: str) -> None:
    case = CASES_HERE[name]
    chosen = default_gpu_schedule(case.program(), GpuMachine())
    assert isinstance(chosen, GpuMatmulSchedule)
    kernel = build(case, replace(chosen, splits=1))
    assert len(kernel.file.launches) == 1
    assert not kernel.file.scratch
    kernel.check({})


DOT = GpuMatmulSchedule(16, 16, 16, statistics=True)
DOTS = {
    "five rows": few(5),
    "nine rows": few(9, terms=64, columns=64),
    "sixteen rows": few(16, terms=600, columns=40),
    "row axes": norm_case(rows=(2, 4), sizes=ONE),
    "half types": few(7, dtype=BF16, before=doubled, stored=lambda x, n: [x]),
    "float16": few(16, columns=33, dtype=F16, stored=lambda x, n: [n]),
    "long rows": few(16, terms=1500, columns=33, stored=lambda x, n: [n]),
    "statistics are stored": few(11, stored=lambda x, n: [ops.mean(x, dims=(1,))]),
    "much is stored": few(13, columns=48, before=doubled, stored=lambda x, n: [ops.tanh(n), ops.add(x, n)]),
}


@pytest.mark.parametrize("name", DOTS)
def test_one_launch_by_dot(name: str) -> None:
    kernel = build(DOTS[name], DOT)
    assert len(kernel.file.launches) == 1
    assert not kernel.file.scratch
    assert "dot(" in kernel.file.text
    kernel.check({})
    turns = build(DOTS[name], replace(DOT, block_n=32, persistent=2))
    assert [x.programs for x in turns.file.launches] == [2]
    turns.check({})


@pytest.mark.parametrize("quantize", [{"bits": 4, "group": 32}, {"bits": 8, "group": 96, "float8": True}])
def test_one_launch_on_weights_in_few_bits(quantize: dict[str, int]) -> None:
    bits, group, float8 = quantize["bits"], quantize["group"], bool(quantize.get("float8"))
    x = operand(0, (6, 96), BF16)
    q = operand(1, stored_shape(40, 96, bits), stored_dtype(bits, False, float8))
    scale = operand(2, (40, groups_of(96, group)))
    left = ops.cast(ops.rms_norm(x), dtype=torch.float32)
    y = ops.cast(ops.quantized_linear(left, q, scale, **quantize), dtype=BF16)
    case = Case([x, q, scale], [y], low=0 if float8 else -(2**31), high=127 if float8 else 2**31, rtol=4e-2)
    kernel = build(case, DOT)
    assert len(kernel.file.launches) == 1
    assert "lib.dot(" in kernel.file.text
    kernel.check({}, tensors_of(case, {}))


def test_rows_of_others_stay_as_they_are_by_dot() -> None:
    case = few(9, before=doubled, stored=lambda x, n: [x])
    tensors = case.tensors({})
    tensors[0][4] = float("nan")
    found = build(case, DOT).run(tensors, {})[0].isnan().any(1)
    assert found.tolist() == [row == 4 for row in range(9)]


@pytest.mark.parametrize(
    ("rows", "terms", "columns", "one"),
    [(8, 1024, 4096, True), (16, 1024, 4096, True), (16, 4096, 4096, False), (8, 1024, 512, False)],
)
def test_rows_that_are_read_in_a_few_steps(rows: int, terms: int, columns: int, one: bool) -> None:
    found = default_gpu_schedule(few(rows, terms=terms, columns=columns, dtype=BF16).program(), GpuMachine())
    assert isinstance(found, GpuMatmulSchedule)
    assert found.statistics == one
    assert found.splits == 1 or not one


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_no_spills(dtype: torch.dtype, target: str) -> None:
    case = few(16, terms=1024, columns=4096, dtype=dtype, before=doubled, stored=lambda x, n: [x])
    program, machine = case.program(), GPU_MACHINES[target]
    schedule = default_gpu_schedule(program, machine)
    assert isinstance(schedule, GpuMatmulSchedule)
    assert schedule.statistics
    (found,) = compile_file(emit("kernel", program, schedule, ()), machine)
    assert found.spills == 0


@pytest.mark.parametrize("persistent", [1, 3, 50])
def test_tiles_in_turns(persistent: int) -> None:
    case = few(3, before=doubled, stored=lambda x, n: [x, n])
    kernel = build(case, replace(SUM, persistent=persistent))
    assert [x.programs for x in kernel.file.launches] == [persistent]
    kernel.check({})


def test_any_dtype() -> None:
    kernel = build(few(5, dtype=F64, stored=lambda x, n: [n]))
    assert len(kernel.file.launches) == 1
    kernel.check({})


def test_offsets_of_64_bits() -> None:
    """A size without a bound, which is not that of the rows, makes offsets wide."""
    x, g, w = operand(0, (2, 40)), operand(1, (40,)), operand(2, (N, 40))
    kernel = build(Case([x, g, w], [ops.linear(ops.rms_norm(x, g), w)], weights=frozenset([2]), rtol=1e-4))
    assert (len(kernel.file.launches), kernel.file.bits) == (1, 64)
    for size in (0, 1, 12, 33):
        kernel.check({"n": size})


def test_rows_are_stored_where_there_are_no_columns() -> None:
    x, g, w = operand(0, (2, 40)), operand(1, (40,)), operand(2, (N, 40))
    norm = ops.rms_norm(x, g)
    kernel = build(Case([x, g, w], [ops.linear(norm, w), norm], weights=frozenset([2]), rtol=1e-4))
    for size in (0, 5):
        kernel.check({"n": size})
    build(few(2, columns=0, stored=lambda x, n: [n]), SUM).check({})


def test_every_row_is_its_own() -> None:
    """NaN in one row does not reach others, and what lies beyond the last row is not read."""
    case = few(3, before=doubled, stored=lambda x, n: [x])
    tensors = case.tensors({})
    tensors[0][1] = float("nan")
    kernel = build(case, SUM)
    kernel.check({}, tensors)
    assert kernel.run(tensors, {})[0].isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "schedule",
    [GpuMatmulSchedule(16, 16, 16), replace(SUM, block_m=2), replace(SUM, splits=2), replace(SUM, streams=3)],
)
def test_otherwise_rows_are_computed_first(schedule: GpuMatmulSchedule) -> None:
    kernel = build(few(3, stored=lambda x, n: [x]), schedule)
    assert kernel.file.launches[0].function == "kernel_rows"
    assert len(kernel.file.launches) > 1
    kernel.check({})


def schedule(columns: int, rows: int = 1) -> GpuMatmulSchedule:
    found = default_gpu_schedule(few(rows, terms=4096, columns=columns, dtype=BF16).program(), GpuMachine())
    assert isinstance(found, GpuMatmulSchedule)
    return found


def test_many_tiles_are_taken_in_turns() -> None:
    narrow, wide = schedule(4096), schedule(28672)
    assert narrow.persistent == 0
    assert 0 < wide.persistent < 28672 // wide.block_n
    each = -(-28672 // wide.block_n // wide.persistent)
    assert wide.persistent * each - 28672 // wide.block_n < each


def test_tiles_have_as_many_columns_as_rows_where_there_are_enough() -> None:
    found = schedule(28672, 4)
    assert (found.block_m, found.block_n, found.block_k) == (4, 4, 256)
    assert schedule(264, 4).block_n == 1
