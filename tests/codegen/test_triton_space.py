"""Schedules that a tuner may choose on a GPU: all of them right, none too large, the likely ones first."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from smelt.codegen.gpu import GPU_MACHINES, GpuAttentionSchedule, GpuMachine, GpuMatmulSchedule, GpuSchedule
from smelt.codegen.gpu_schedule import default_gpu_schedule
from smelt.codegen.schedule_data import schedule_from_dict, schedule_to_dict
from smelt.codegen.triton.estimate import GpuProduct, fits, product_seconds, shared_bytes
from smelt.codegen.triton.space import gpu_product, gpu_space
from smelt.ir import ops
from smelt.ir.types import symbol

from . import quantized_cases as quantized
from .cases import Case, operand
from .test_triton_few_bits import half
from .test_triton_text import CASES
from .triton_harness import build

M = symbol("m")
H200 = GPU_MACHINES["sm_90"]
SIZES = {"b": 40, "s": 33, "k": 70, "m": 20}


def linear(rows: object, columns: int, terms: int, dtype: torch.dtype = torch.bfloat16) -> Case:
    x, w = operand(0, (rows, terms), dtype), operand(1, (columns, terms), dtype)  # type: ignore[arg-type]
    return Case([x, w], [ops.linear(x, w)])


def space_of(case: Case, machine: GpuMachine = H200) -> tuple[GpuSchedule, ...]:
    program = case.program()
    return gpu_space(program, machine, {s: SIZES[str(s)] for s in program.symbols})


@pytest.mark.parametrize("name", CASES)
def test_a_space_begins_with_the_default_and_has_no_schedule_twice(name: str) -> None:
    case = CASES[name]()
    found = space_of(case)
    assert found[0] == default_gpu_schedule(case.program(), H200)
    assert len(found) > 1
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("name", CASES)
def test_schedules_are_data(name: str) -> None:
    for schedule in space_of(CASES[name]())[:50]:
        assert schedule_from_dict(schedule_to_dict(schedule)) == schedule


@pytest.mark.parametrize("target", GPU_MACHINES)
def test_products_fit_the_machine(target: str) -> None:
    machine = GPU_MACHINES[target]
    for case in (linear(4096, 4096, 4096), linear(1, 4096, 4096), linear(300, 70, 900, torch.float32)):
        shape = gpu_product(case.program(), {})
        found = space_of(case, machine)
        for schedule in found:
            assert isinstance(schedule, GpuMatmulSchedule)
            assert fits(shape, schedule, machine)
            assert shared_bytes(shape, schedule) <= machine.block_shared_bytes
        assert any(s.tma for s in found if isinstance(s, GpuMatmulSchedule)) == (
            target != "sm_80" and case.inputs[0].dtype != torch.float32 and case.inputs[0].shape[0] != 1
        )


def test_order() -> None:
    """What is known of GPUs without measuring: wide tiles for many rows, all processors busy for few."""
    (_, first, *_) = space_of(linear(4096, 4096, 4096))
    assert isinstance(first, GpuMatmulSchedule)
    assert first.block_m * first.block_n >= 128 * 128
    shape, few = gpu_product(linear(1, 1024, 8192).program(), {}), GpuMatmulSchedule(1, 32, 256, dot=False, stages=1)
    alone, shared = (product_seconds(shape, s, H200) for s in (few, replace(few, splits=8)))
    assert shared < alone
    floor = shape.nbytes / H200.memory
    assert shared > floor


@pytest.mark.parametrize("case", [linear(1, 8, 8), linear(0, 8, 8), linear(7, 1, 1), linear(M, 40, 70)])
def test_awkward_sizes(case: Case) -> None:
    assert len(space_of(case)) > 1


def test_what_is_multiplied() -> None:
    four = gpu_product(half(128, 64, 4, 32, torch.bfloat16, zeros=True, norm=False).program(), {M: 5})
    assert (four.kind, four.left, four.right, four.rows) == ("half", 2.0, 0.5, 5)
    eight = gpu_product(quantized.int8(64, 32, packed=False).program(), {M: 5})
    assert (eight.kind, eight.left, eight.right) == ("int8", 1.0, 1.0)
    assert gpu_product(linear(2, 3, 4, torch.float32).program(), {}) == GpuProduct(1, 2, 3, 4, 4.0, 4.0, 4, "single")


SAMPLED = [linear(20, 48, 72, torch.float16), linear(3, 48, 72), linear(20, 40, 72, torch.float32)]


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("case", SAMPLED, ids=["half", "few", "single"])
def test_schedules_of_the_space_compute_the_product(case: Case, number: int) -> None:
    found = [s for s in space_of(case) if isinstance(s, GpuMatmulSchedule)]
    schedule = found[number * len(found) // 8]
    build(case, schedule).check({})


def test_attention_of_few_queries_may_take_more_parts() -> None:
    splits = {s.splits for s in space_of(CASES["decode"]()) if isinstance(s, GpuAttentionSchedule)}
    assert splits == {1, 2, 4, 8, 16, 32}
