"""Schedules: what is chosen for which program and machine."""

from dataclasses import replace

import pytest
import torch

from smelt.codegen.machine import Machine
from smelt.codegen.program import Program
from smelt.codegen.schedule import (
    AttentionSchedule,
    MapSchedule,
    MatmulSchedule,
    PanelLayout,
    RecurrenceSchedule,
    RowsSchedule,
    candidates,
    default_schedule,
    panel_layout,
    register_tiles,
    schedule_text,
)
from smelt.codegen.shares import PARTS
from smelt.ir import ops
from smelt.ir.types import symbol

from .harness import Case, operand

M = symbol("m")
MACHINES = [Machine(), Machine(vector_bits=256, registers=16), Machine(vector_bits=128, registers=32, threads=64)]


def linear(terms: int, columns: int, dtype: torch.dtype = torch.float32) -> Program:
    x, w = operand(0, (M, terms), dtype), operand(1, (columns, terms), dtype)
    return Case([x, w], [ops.linear(x, w)], weights=frozenset([1])).program()


def chosen(program: Program, machine: Machine = MACHINES[0]) -> MatmulSchedule:
    schedule = default_schedule(program, machine)
    assert isinstance(schedule, MatmulSchedule)
    return schedule


def test_schedules_print_as_short_text() -> None:
    assert schedule_text(RowsSchedule(vector=8)) == "rows(vector=8)"
    assert schedule_text(default_schedule(linear(768, 768), Machine())).startswith("matmul(tile_m=8, tile_n=48, ")


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tiles_fit_the_registers(machine: Machine, dtype: torch.dtype) -> None:
    lanes = machine.lanes(dtype)
    for rows, width in register_tiles(machine, lanes):
        vectors = width // lanes
        assert rows > 0
        assert width % lanes == 0
        assert rows * vectors + vectors + 1 <= machine.registers


@pytest.mark.parametrize(
    ("columns", "width"), [(768, 48), (3072, 48), (64, 32), (1, 1), (9, 16), (16, 16), (32, 32), (30522, 48)]
)
def test_a_tile_that_pads_little_is_chosen(columns: int, width: int) -> None:
    assert chosen(linear(768, columns)).tile_n == width


@pytest.mark.parametrize(
    ("terms", "columns", "width"),
    [
        (512, 512, 32),  # 11 panels of 48, or 8 of 64: each of two threads waits for its first
        (2048, 512, 64),  # in blocks of terms: only the first of them is waited for
        (512, 1024, 64),
        (512, 2048, 64),
        (1024, 1024, 64),
        (512, 1536, 48),
        (512, 32128, 48),
        (768, 1000, 32),
    ],
)
def test_threads_get_equally_many_columns(terms: int, columns: int, width: int) -> None:
    assert chosen(linear(terms, columns)).tile_n == width


def test_tasks_are_dealt_out_to_all_threads() -> None:
    machine = replace(MACHINES[0], threads=3)
    assert chosen(linear(768, 768), machine).shares == 3 * PARTS


def test_long_panels_are_read_in_blocks() -> None:
    assert not chosen(linear(768, 768)).blocked
    assert chosen(linear(16384, 768)).blocked


def test_half_types_are_widened_once_a_block() -> None:
    schedule = chosen(linear(768, 768, torch.bfloat16))
    assert schedule.pack_left
    assert schedule.blocked


def test_candidates_are_distinct_and_start_with_the_default() -> None:
    program = linear(768, 768)
    found = candidates(program, Machine())
    assert len(set(found)) == len(found) > 1
    assert found[0] == default_schedule(program, Machine())


def test_lanes_follow_the_compute_type() -> None:
    machine = Machine(vector_bits=256)
    assert [machine.lanes(d) for d in (torch.float32, torch.bfloat16, torch.float64, torch.int8)] == [8, 8, 4, 8]


def test_only_kernels_with_weights_pack() -> None:
    assert panel_layout(MatmulSchedule(8, 48, group=2)) == PanelLayout(48, 2)
    assert panel_layout(RecurrenceSchedule(tile_n=32)) == PanelLayout(32)
    for schedule in (MapSchedule(), RowsSchedule(), AttentionSchedule()):
        with pytest.raises(ValueError, match="packs nothing"):
            panel_layout(schedule)


def test_other_skeletons() -> None:
    x = operand(0, (M, 40))
    assert isinstance(default_schedule(Case([x], [ops.exp(x)]).program(), Machine()), MapSchedule)
    assert isinstance(default_schedule(Case([x], [ops.softmax(x, dim=1)]).program(), Machine()), RowsSchedule)
