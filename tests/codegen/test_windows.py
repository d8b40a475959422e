"""Products of windows: what offsets are along terms in runs, and kernels that read them where they lie."""

from dataclasses import replace

import pytest
import sympy

from smelt.codegen.machine import Machine
from smelt.codegen.one_panel import is_one_panel
from smelt.codegen.program import axis_symbol
from smelt.codegen.prologue import phases
from smelt.codegen.runs import Runs, runs_of
from smelt.codegen.schedule import MatmulSchedule, candidates, default_schedule

from .harness import Kernel, build
from .window_cases import along, cases, grouped, image

K, T = axis_symbol("k"), axis_symbol("t")
N = sympy.Symbol("n", integer=True, positive=True)


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return build(cases())


@pytest.mark.parametrize("name", list(cases()))
def test_windows(kernels: dict[str, Kernel], name: str) -> None:
    for sizes in kernels[name].case.sizes:
        kernels[name].check(sizes)


@pytest.mark.parametrize("name", list(cases()))
def test_programs_of_windows(name: str) -> None:
    case = cases()[name]
    for sizes in case.sizes[:2]:
        case.check_program(sizes)


def test_every_schedule_of_runs_computes_the_same() -> None:
    for base in (along(24, 3, 40, apart=2), grouped(3, 12, 10, 48)):
        found = [s for s in candidates(base.program(), Machine())[:1] if isinstance(s, MatmulSchedule)]
        # blocks that end within a run, and with it
        found += [replace(found[0], block_k=k, blocked=True, block_m=1) for k in (5, 24, 50)]
        found += [replace(found[0], pack_left=True, pack_right=True, block_k=20)]
        for kernel in build({str(i): replace(base, schedule=s) for i, s in enumerate(found)}).values():
            for sizes in base.sizes:
                kernel.check(sizes)


# --- offsets ----------------------------------------------------------------------------------------------------------


def test_taps_of_a_group_of_channels_are_runs() -> None:
    offset = (T + sympy.floor(K / 48)) * 768 + sympy.Mod(K, 48)
    assert runs_of(offset, K) == Runs(768 * T, sympy.Integer(1), sympy.Integer(720), 48)


def test_taps_of_all_channels_are_one_run() -> None:
    offset = (2 * T + sympy.floor(K / 48)) * 48 + sympy.Mod(K, 48)
    assert runs_of(offset, K) == Runs(96 * T, sympy.Integer(1), sympy.Integer(0), 0)


def test_lines_of_an_image_are_runs() -> None:
    tap = sympy.floor(K / 32)
    offset = ((T + sympy.floor(tap / 3)) * N + sympy.Mod(tap, 3)) * 32 + sympy.Mod(K, 32)
    assert runs_of(offset, K) == Runs(32 * N * T, sympy.Integer(1), sympy.expand(32 * N - 96), 96)


@pytest.mark.parametrize(
    "offset",
    [
        2 * sympy.floor(K / 32) + sympy.floor(K / 8) + K,  # two lengths
        sympy.floor((K + T) / 8) + K,  # a run starts elsewhere in each row
        T * sympy.floor(K / 8) + K,
        K * sympy.floor(K / 8),
        sympy.floor(K / 8) ** 2,
        K**2,
        K * T,
        sympy.Mod(K + 3, 8),
    ],
)
def test_other_offsets_are_no_runs(offset: sympy.Expr) -> None:
    assert runs_of(offset, K) is None


# --- what is read in place --------------------------------------------------------------------------------------------


def test_long_runs_are_read_where_they_lie() -> None:
    for case in (along(24, 3, 140, step=2), along(24, 3, 140, apart=2), image(16, 130)):
        assert phases(case.program()) is None
    for case in (along(3, 5, 130, apart=2), image(16, 130, apart=2)):
        assert phases(case.program()) is not None


def test_matrices_as_wide_as_a_tile_are_read_where_they_lie() -> None:
    program = grouped(3, 12, 10, 48).program()
    assert is_one_panel(program, 48)
    assert not is_one_panel(program, 32)
    chosen = default_schedule(program, Machine())
    assert isinstance(chosen, MatmulSchedule)
    assert (chosen.tile_n, chosen.pack_right) == (48, False)
    odd = default_schedule(grouped(4, 5, 20, 9).program(), Machine())
    assert isinstance(odd, MatmulSchedule)
    assert odd.pack_right
