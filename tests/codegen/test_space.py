"""Schedule spaces: what they hold, in which order, and what the cost model says of it."""

from dataclasses import replace

import pytest
import torch

from smelt.codegen.estimate import ProductShape, product_cycles
from smelt.codegen.machine import Machine
from smelt.codegen.program import Program
from smelt.codegen.schedule import AttentionSchedule, MatmulSchedule, candidates, default_schedule
from smelt.codegen.space import BLOCKS, differences, ranked, space, tiles
from smelt.ir import ops
from smelt.ir.types import symbol

from .harness import Case, operand

M = symbol("m")
MACHINES = [Machine(), Machine(vector_bits=256, registers=16), Machine(vector_bits=128, registers=32, threads=64)]


def linear(terms: int = 768, columns: int = 768, dtype: torch.dtype = torch.float32) -> Program:
    x, w = operand(0, (M, terms), dtype), operand(1, (columns, terms), dtype)
    return Case([x, w], [ops.linear(x, w)], weights=frozenset([1])).program()


def pointwise() -> Program:
    x = operand(0, (M, 40))
    return Case([x], [ops.exp(x)]).program()


def attention() -> Program:
    q, k, v = (operand(i, (1, 2, M, 64)) for i in range(3))
    return Case([q, k, v], [ops.attention(q, k, v, scale=0.125)]).program()


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("program", [linear(), linear(dtype=torch.bfloat16), pointwise()], ids=["f32", "bf16", "map"])
def test_a_space_starts_with_the_default_and_holds_each_once(machine: Machine, program: Program) -> None:
    found = space(program, machine)
    assert found[0] == default_schedule(program, machine)
    assert len(set(found)) == len(found) > 1
    assert set(candidates(program, machine)) <= set(found)


@pytest.mark.parametrize("machine", MACHINES)
def test_tiles_fit_the_registers_and_keep_both_units_busy(machine: Machine) -> None:
    lanes = machine.lanes(torch.float32)
    found = list(tiles(machine, lanes))
    assert found
    for rows, width in found:
        assert 8 <= rows * (width // lanes) <= machine.registers - width // lanes - 1


def test_what_bounds_the_rounding_error_stays() -> None:
    schedules = space(linear(terms=4096), Machine())
    assert {s.block_k for s in schedules if isinstance(s, MatmulSchedule)} == set(BLOCKS)
    assert max(BLOCKS) <= 512
    assert all(s.pack_left for s in space(linear(dtype=torch.bfloat16), Machine()) if isinstance(s, MatmulSchedule))


def test_blocks_of_keys_and_queries_are_whole_tiles() -> None:
    for schedule in space(attention(), Machine()):
        assert isinstance(schedule, AttentionSchedule)
        assert schedule.queries % schedule.tile == schedule.keys % schedule.tile == 0


def test_an_order_is_the_whole_space_and_always_the_same() -> None:
    program = linear()
    found = ranked(program, Machine(), {M: 128})
    assert found[: len(candidates(program, Machine()))] == candidates(program, Machine())
    assert set(found) == set(space(program, Machine()))
    assert found == ranked(program, Machine(), {M: 128})
    assert ranked(program, Machine(), {}) == space(program, Machine())
    assert ranked(attention(), Machine(), {M: 8}) == space(attention(), Machine())


def test_what_a_schedule_chooses_otherwise() -> None:
    default = MatmulSchedule(8, 48)
    assert differences(replace(default, tile_m=4, blocked=True), default) == {"tile_m": 4, "blocked": True}


# --- the cost model ---------------------------------------------------------------------------------------------------


def cycles(rows: int, columns: int, terms: int, **changes: object) -> float:
    schedule = replace(MatmulSchedule(8, 48, block_m=24, tasks=8), **changes)  # type: ignore[arg-type]
    return product_cycles(ProductShape(rows, columns, terms), schedule, Machine())


def test_no_schedule_is_faster_than_two_units_allow() -> None:
    shape = ProductShape(128, 768, 768)
    least = shape.rows * shape.columns * shape.terms / 16 / 2 / Machine().threads
    assert all(
        product_cycles(shape, s, Machine()) >= least
        for s in space(linear(), Machine())
        if isinstance(s, MatmulSchedule)
    )


def test_padding_costs() -> None:
    assert cycles(128, 48, 768) < cycles(128, 49, 768)
    assert cycles(16, 768, 768) < cycles(17, 768, 768)


def test_uneven_tasks_cost() -> None:
    # three panels on two threads take as long as four
    assert cycles(64, 144, 768, tasks=1) == cycles(64, 192, 768, tasks=1) == 2 * cycles(64, 96, 768, tasks=1)


def test_narrow_tiles_of_one_row_wait_for_their_sums() -> None:
    assert cycles(64, 768, 768, tile_m=1, tile_n=16) > 4 * cycles(64, 768, 768)


def test_copies_cost() -> None:
    assert cycles(128, 768, 768, pack_left=True, blocked=True) > cycles(128, 768, 768, blocked=True)
