"""Index arithmetic as kernel text: equal to Python's, with floors and remainders of any sign."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import sympy
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smelt.codegen.grid import Grid, Points
from smelt.codegen.program import Axis, IndexValue, Param, Program, Role, Skeleton, Store, as_fraction, axis_symbol
from smelt.codegen.schedule import MapSchedule
from smelt.ir.dims import value_of
from smelt.ir.errors import UnsupportedError
from smelt.ir.types import TensorType, symbol

from .cases import Buffer

pytest.importorskip("tvm")

from smelt.codegen.tvm import module as tvm_module
from smelt.codegen.tvm.expression import Scope, index_text, offset_text
from smelt.codegen.tvm.source import Source, size_name

ROW, COL, S, N = axis_symbol("i"), axis_symbol("j"), symbol("s"), symbol("n")
NAMES = {"_i": "i", "_j": "j"}
PROGRAM = Program(Skeleton.MAP, (), (), (), (S, N))
SCOPE = Scope(PROGRAM, Source(), {ROW: "i", COL: "j"})
# what the text may call, on Python's integers
T = SimpleNamespace(
    int64=int,
    floordiv=lambda a, b: a // b,
    floormod=lambda a, b: a % b,
    max=lambda a, b: max(a, b),
    min=lambda a, b: min(a, b),
)


def evaluated(text: str, values: dict[sympy.Symbol, int]) -> int:
    names = {NAMES.get(s.name, size_name(s)): value for s, value in values.items()}
    result = eval(text, {"T": T, **names})
    assert isinstance(result, int)
    return result


def leaves() -> st.SearchStrategy[sympy.Expr]:
    return st.sampled_from([ROW, COL, S, N]) | st.integers(-5, 9).map(sympy.Integer)


def extend(inner: st.SearchStrategy[sympy.Expr]) -> st.SearchStrategy[sympy.Expr]:
    sizes = st.sampled_from([sympy.Integer(2), sympy.Integer(3), sympy.Integer(8), S + 1, 4 * N + 2])
    return st.one_of(
        st.tuples(inner, inner).map(lambda p: p[0] + p[1]),
        st.tuples(inner, inner).map(lambda p: p[0] - p[1]),
        st.tuples(inner, inner).map(lambda p: p[0] * p[1]),
        st.tuples(inner, sizes).map(lambda p: sympy.floor(p[0] / p[1])),
        st.tuples(inner, sizes).map(lambda p: sympy.ceiling(p[0] / p[1])),
        st.tuples(inner, sizes).map(lambda p: sympy.Mod(p[0], p[1])),
        st.tuples(inner, inner).map(lambda p: sympy.Max(*p)),
        st.tuples(inner, inner).map(lambda p: sympy.Min(*p)),
    )


EXPRESSIONS = st.recursive(leaves(), extend, max_leaves=6)
POINTS = st.fixed_dictionaries(
    {ROW: st.integers(0, 40), COL: st.integers(0, 40), S: st.integers(0, 20), N: st.integers(0, 20)}
)


def exact(index: sympy.Expr, values: dict[sympy.Symbol, int]) -> int:
    """The value by sympy's own meaning, in fractions."""
    return index if isinstance(index, int) else value_of(sympy.sympify(index), values)


@settings(max_examples=300, deadline=None)
@given(EXPRESSIONS, POINTS)
def test_text_has_the_value_of_the_expression(index: sympy.Expr, values: dict[sympy.Symbol, int]) -> None:
    assume(not index.has(sympy.I, sympy.zoo, sympy.nan))
    assert evaluated(index_text(index, SCOPE), values) == exact(index, values)
    assert evaluated(index_text(sympy.expand(index), SCOPE), values) == exact(index, values)


@settings(max_examples=100, deadline=None)
@given(EXPRESSIONS, POINTS)
def test_interpreter_has_the_value_of_the_expression(index: sympy.Expr, values: dict[sympy.Symbol, int]) -> None:
    grid = Grid((Axis("i", 41), Axis("j", 41)), {S: values[S], N: values[N]})
    found = Points(grid, {}, {}, None).index(index).expand(41, 41)[values[ROW], values[COL]]
    assert int(found) == exact(index, values)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(EXPRESSIONS, st.sampled_from([1, 3, S, N * S, 4 * S + N])), max_size=4), POINTS)
def test_offset(dims: list[tuple[sympy.Expr, Any]], values: dict[sympy.Symbol, int]) -> None:
    index, strides = [i for i, _ in dims], tuple(s for _, s in dims)
    param = Param("in0", TensorType((8,) * len(dims), torch.float32), strides, Role.IN)
    expected = sum(exact(i, values) * exact(s, values) for i, s in zip(index, strides, strict=True))
    assert evaluated(offset_text(param, index, SCOPE), values) == expected


@pytest.mark.parametrize("s", range(9))
def test_halves_are_added_before_they_are_rounded(s: int) -> None:
    triangle = S * (S + 1) / 2
    assert as_fraction(sympy.expand(triangle))[1] == 2
    assert evaluated(index_text(sympy.expand(triangle), SCOPE), {S: s}) == math.comb(s + 1, 2)


def test_what_sizes_do_not_have_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="sin"):
        index_text(sympy.sin(S), SCOPE)


def random_expressions(count: int) -> list[sympy.Expr]:
    generator = torch.Generator().manual_seed(0)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    def make(depth: int) -> sympy.Expr:
        if depth == 0:
            return [ROW, COL, S, N, sympy.Integer(pick(-5, 9))][pick(0, 5)]
        a, b, size = make(depth - 1), make(depth - 1), [2, 3, 8, S + 1, 4 * N + 2][pick(0, 5)]
        kinds = [
            a + b,
            a - b,
            a * b,
            sympy.floor(a / size),
            sympy.ceiling(a / size),
            sympy.Mod(a, size),
            sympy.Max(a, b),
        ]
        return kinds[pick(0, len(kinds))]

    return [make(1 + n % 3) for n in range(count)]


def test_compiled_text() -> None:
    """TVM's own arithmetic on negative numbers agrees."""
    expressions = random_expressions(48)
    axes = (Axis("i", S + 3), Axis("j", 20))
    params = tuple(
        Param(f"out{n}", TensorType((S + 3, 20), torch.int64), (20, 1), Role.OUT) for n in range(len(expressions))
    )
    stores = tuple(
        Store(p.name, axes, (ROW, COL), IndexValue(e, torch.int64)) for p, e in zip(params, expressions, strict=True)
    )
    program = Program(Skeleton.MAP, params, (), stores, (S, N))
    text = tvm_module.kernel_text("k", program, MapSchedule(16))
    host = tvm_module.Host("main", (tvm_module.Call("k", tuple(range(49))),), 49, (S, N))
    main = tvm_module.build([text], [host], tvm_module.host_cpu())["main"]
    for s, n in ((0, 0), (5, 3), (17, 1)):
        buffers = [Buffer((s + 3, 20), (20, 1), torch.int64) for _ in params]
        error = torch.zeros(1, dtype=torch.int64)
        main(torch.tensor([*(b.address for b in buffers), error.data_ptr()]), torch.tensor([s, n]))
        for buffer, index in zip(buffers, expressions, strict=True):
            expected = [[exact(index, {ROW: i, COL: j, S: s, N: n}) for j in range(20)] for i in range(s + 3)]
            assert buffer.tensor.tolist() == expected, index
