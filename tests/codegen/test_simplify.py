"""Simplification: the same meaning with fewer dims and loops, and where axes must stay as they are."""

from __future__ import annotations

import pytest
import sympy

from smelt.codegen.bounds import Bounds
from smelt.codegen.program import Axis, Expr, Program, axis_symbol, program_axes
from smelt.codegen.rewrite import indices_of
from smelt.ir import ops
from smelt.ir.types import SymbolRange, symbol

from .cases import Case
from .regions import I64, B, S, all_regions, doubled, one, x, y

REGIONS = all_regions()


@pytest.mark.parametrize("name", REGIONS)
def test_meaning_is_kept(name: str) -> None:
    case = REGIONS[name]
    for sizes in case.sizes:
        case.check_program(sizes, case.program(plain=True))
        case.check_program(sizes, case.program())


def shape(program: Program) -> tuple[list[int], list[int]]:
    """How many axes each store has, and how many dims each parameter."""
    return [len(s.axes) for s in program.stores], [len(p.type.shape) for p in program.params]


@pytest.mark.parametrize(
    ("case", "axes", "dims"),
    [
        (one(doubled, (B, S, 768)), [1], [1, 1]),
        (Case([x(B, S, 6), y(6)], [ops.add(x(B, S, 6), y(6))]), [2], [2, 1, 2]),
        (Case([x(B, S, 6), y(S, 6)], [ops.add(x(B, S, 6), y(S, 6))]), [2], [2, 1, 2]),
        (Case([x(B, 1, 6), y(1, S, 6)], [ops.add(x(B, 1, 6), y(1, S, 6))]), [3], [2, 2, 3]),
        (one(lambda n: ops.softmax(n, dim=2), (B, S, 5)), [2], [2, 2]),
        (one(lambda n: ops.softmax(n, dim=1), (B, S, 5)), [3], [3, 3]),
        (one(lambda n: ops.mean(n, dims=(1, 2)), (B, S, 5)), [1], [2, 1]),
        (one(lambda n: ops.argmax(n, dim=2), (B, S, 5)), [1], [2, 1]),
        (one(lambda n: ops.cumsum(n, dim=1), (B, S, 5)), [3], [3, 3]),
        (one(lambda n: doubled(ops.reshape(n, shape=(B, S, 3, 4))), (B, S, 12)), [1], [1, 1]),
        (one(lambda n: doubled(ops.permute(n, dims=(1, 0))), (B, S)), [2], [2, 2]),
        (one(lambda n: doubled(ops.permute(n, dims=(1, 0))), (B, S), layouts=[(1, 0)]), [2], [2, 2]),
        (one(doubled, (B, S, 4), layouts=[(1, 0, 2)], operands={0: (1, 0, 2)}), [3], [3, 3]),
        (one(lambda n: doubled(ops.slice_(n, dim=1, start=2, stop=5)), (B, 8, S)), [2], [2, 2]),
    ],
    ids=[
        *("pointwise", "bias", "broadcast batch", "outer", "rows", "columns", "reduced together", "argmax", "scan"),
        *("split heads", "transpose", "transpose in place", "both permuted", "slice"),
    ],
)
def test_axes_and_dims_that_are_left(case: Case, axes: list[int], dims: list[int]) -> None:
    assert shape(case.program()) == (axes, dims)


def test_dims_stand_in_the_order_of_memory() -> None:
    program = one(doubled, (B, 3, S, 4), operands={0: (2, 0, 1, 3)}, layouts=[(0, 2, 1, 3)]).program()
    for param in program.params:
        strides = [
            int(s.subs({symbol("b"): 7, symbol("s"): 11})) if isinstance(s, sympy.Expr) else s for s in param.strides
        ]
        assert strides == sorted(strides, reverse=True)


def test_a_dim_of_size_one_stays_where_data_chooses_along_it() -> None:
    table = REGIONS["embedding of one row"].program().param("in0")
    assert table.type.shape[0] == 1


def test_an_axis_whose_number_is_read_stays() -> None:
    positions = ops.reshape(ops.arange(size=S), shape=(S, 1))
    program = Case([x(B, S, 4, dtype=I64)], [ops.add(x(B, S, 4, dtype=I64), positions)]).program()
    assert shape(program) == ([3], [3, 3])


def test_an_axis_under_a_guard_stays() -> None:
    below = ops.permute(ops.concat(x(B, S, 4), ops.exp(x(B, S, 4)), dim=1), dims=(2, 0, 1))
    program = Case([x(B, S, 4)], [doubled(below)]).program()
    assert len(program.stores[0].axes) == 3


def test_uses_of_one_parameter_at_other_places_do_not_stop_a_collapse() -> None:
    case = REGIONS["corner plus whole"]
    assert shape(case.program()) == ([1], [1, 1])
    case = REGIONS["transpose plus itself"]
    assert shape(case.program()) == ([2], [2, 2])


@pytest.mark.parametrize("name", ["merge heads", "split heads", "flip split", "regroup"])
def test_divisions_become_axes(name: str) -> None:
    program = REGIONS[name].program()
    indices = [i for p in program.params for use in indices_of(program, p.name) for i in use]
    assert not any(
        isinstance(i, sympy.Expr) and i.has(sympy.floor, sympy.Mod) for i in indices if not isinstance(i, Expr)
    )


def test_axes_are_named_once() -> None:
    for case in REGIONS.values():
        axes = program_axes(case.program())
        assert len({a.name for a in axes}) == len(axes)


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_bounds() -> None:
    s, n, m = symbol("s"), symbol("n"), symbol("m")
    i, j, k = axis_symbol("i"), axis_symbol("j"), axis_symbol("k")
    bounds = Bounds([SymbolRange(m, 4)])
    for axis in (Axis("i", 12), Axis("j", s), Axis("k", n * 3)):
        bounds.add(axis)
    assert bounds.inside(i, 12)
    assert bounds.inside(64 * 2 + i, 140)
    assert bounds.inside(11 - i, 12)
    assert bounds.inside(i * s + j, 12 * s)
    assert bounds.inside(sympy.Mod(i * s + j, 5), 5)
    assert bounds.inside(sympy.floor(i / 4), 3)
    assert bounds.inside(j + n, n + s)
    assert bounds.inside(k, 3 * n)
    assert bounds.inside(i, 8 + m)
    assert bounds.outside(j + n, n)
    assert bounds.outside(j - s, 5)
    assert not bounds.inside(i, 11)
    assert not bounds.inside(i, m)
    assert not bounds.inside(sympy.Mod(i, 4), 3)  # 11 is 3 modulo 4, and so are 3 and 7
    assert not bounds.inside(sympy.Mod(i, 7), 5)
    assert not bounds.inside(i - j, 12)
    assert not bounds.inside(j * k, s * n)
    assert not bounds.outside(j, n)
    assert not bounds.never_negative(s - n)


def test_an_axis_with_points_has_a_size_of_one_at_least() -> None:
    bounds, s = Bounds(), symbol("s")
    bounds.add(Axis("i", s))
    assert bounds.never_negative(axis_symbol("i") + s - 1)
    assert not bounds.never_negative(s - 1)
