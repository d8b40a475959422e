"""Size expressions: one normal form, the value that sympy gives, text that is read back."""

from __future__ import annotations

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._sympy import functions as torch_sympy

from smelt.ir.dims import normal_form, print_dim
from smelt.ir.errors import TypeRuleError
from smelt.ir.graph import Graph
from smelt.ir.parse_values import ValueParser
from smelt.ir.tokens import Tokens
from smelt.ir.types import (
    Dim,
    SymbolRange,
    TensorType,
    broadcast_shapes,
    canonical_dim,
    concrete,
    contiguous_strides,
    product,
    substitute,
    symbol,
)

S, T = symbol("s"), symbol("t")


def _combine(children: st.SearchStrategy[sympy.Expr]) -> st.SearchStrategy[sympy.Expr]:
    positive = st.integers(1, 7).map(sympy.Integer)
    pairs = st.tuples(children, children)
    return st.one_of(
        pairs.map(lambda p: p[0] + p[1]),
        pairs.map(lambda p: p[0] - p[1]),
        pairs.map(lambda p: p[0] * p[1]),
        pairs.map(lambda p: sympy.Max(*p)),
        pairs.map(lambda p: sympy.Min(*p)),
        st.tuples(children, positive).map(lambda p: p[0] // p[1]),
        st.tuples(children, positive).map(lambda p: sympy.ceiling(p[0] / p[1])),
        st.tuples(children, positive).map(lambda p: sympy.Mod(*p)),
    )


LEAVES = st.one_of(st.sampled_from([S, T]), st.integers(0, 9).map(sympy.Integer))
EXPRESSIONS = st.recursive(LEAVES, _combine, max_leaves=6)


def read_back(text: str) -> Dim:
    parser = ValueParser(Tokens(text), no_region)
    parser.symbols = {"s": S, "t": T}
    return parser.dim()


def no_region() -> Graph:
    raise AssertionError


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS)
def test_text_is_read_back(expression: sympy.Expr) -> None:
    dim = canonical_dim(expression)
    assert read_back(print_dim(dim)) == dim


@settings(max_examples=150, deadline=None)
@given(EXPRESSIONS, st.integers(0, 50), st.integers(0, 50))
def test_value_is_sympys(expression: sympy.Expr, s: int, t: int) -> None:
    assert concrete(canonical_dim(expression), {S: s, T: t}) == int(expression.subs({S: s, T: t}))


@settings(max_examples=100, deadline=None)
@given(EXPRESSIONS)
def test_normal_form_is_final(expression: sympy.Expr) -> None:
    dim = canonical_dim(expression)
    assert canonical_dim(dim) == dim


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (S * 2 + 1, "2*s + 1"),
        (1 - S, "1 - s"),
        (T * (S + 1), "s*t + t"),
        ((S + 1) // 2, "(s + 1)//2"),
        (-(S // 2), "-(s//2)"),
        ((-S) // 2, "(-s)//2"),
        (S // 2 * T, "t*(s//2)"),
        (4 - S // 2, "4 - s//2"),
        (S // T, "s//t"),
        (sympy.ceiling(S / 2), "ceil(s/2)"),
        (sympy.Mod(S + 5, 3), "Mod(s + 2, 3)"),
        (sympy.Max(0, S - 1), "Max(0, s - 1)"),
        (sympy.Min(T, 5, S), "Min(5, s, t)"),
        (S**3 * T, "s**3*t"),
        (sympy.Integer(7), "7"),
    ],
    ids=str,
)
def test_text(expression: sympy.Expr, text: str) -> None:
    assert print_dim(canonical_dim(expression)) == text
    assert read_back(text) == canonical_dim(expression)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (torch_sympy.FloorDiv(S + 1, 2), (S + 1) // 2),
        (torch_sympy.CleanDiv(S * T, 2), S * T / 2),
        (torch_sympy.ModularIndexing(S, 2, 3), sympy.Mod(S // 2, 3)),
        (torch_sympy.Mod(S, 2), sympy.Mod(S, 2)),
        (torch_sympy.PythonMod(S, 2), sympy.Mod(S, 2)),
        (
            torch_sympy.Max(1, torch_sympy.FloorDiv(S, 2)),  # type: ignore[no-untyped-call]
            sympy.Max(1, S // 2),
        ),
        (
            torch_sympy.Min(4, S),  # type: ignore[no-untyped-call]
            sympy.Min(4, S),
        ),
        (torch_sympy.PowByNatural(S, sympy.Integer(2)), S**2),
    ],
    ids=str,
)
def test_pytorchs_functions_are_replaced(theirs: sympy.Expr, ours: sympy.Expr) -> None:
    assert normal_form(theirs) == normal_form(ours)
    assert not any(type(e).__module__.startswith("torch") for e in sympy.preorder_traversal(normal_form(theirs)))


@pytest.mark.parametrize(
    "bad",
    [sympy.Rational(1, 2), sympy.Float(2.5), sympy.oo, sympy.nan, S / 0, sympy.sqrt(S), sympy.exp(S), sympy.pi],
    ids=str,
)
def test_what_is_no_size_is_refused(bad: sympy.Expr) -> None:
    with pytest.raises(TypeRuleError, match="is not a size"):
        canonical_dim(bad)


@pytest.mark.parametrize("bad", ["3", 2.0, None])
def test_only_integers_and_expressions_are_dims(bad: object) -> None:
    with pytest.raises(TypeRuleError, match="neither an integer"):
        TensorType((bad,), torch.float32)


def test_types_hold_dims_in_normal_form() -> None:
    assert TensorType((sympy.Integer(3), True, S * (T + 1)), torch.float32) == TensorType(
        (3, 1, S * T + S), torch.float32
    )
    assert type(TensorType((sympy.Integer(3),), torch.float32).shape[0]) is int
    with pytest.raises(TypeRuleError, match="negative"):
        TensorType((-1,), torch.float32)


def test_value_needs_every_size_and_is_whole() -> None:
    with pytest.raises(TypeRuleError, match="t is not known"):
        concrete(S + T, {S: 1})
    with pytest.raises(TypeRuleError, match="not a whole number"):
        concrete(S * T / 2, {S: 1, T: 1})
    with pytest.raises(TypeRuleError, match="divides by zero"):
        concrete(S // T, {S: 1, T: 0})
    assert concrete(S * T / 2, {S: 2, T: 1}) == 1


def test_substitution_is_simultaneous() -> None:
    assert substitute(S - 2 * T, {S: T, T: S}) == T - 2 * S
    assert substitute(S * T, {S: 2, T: 3}) == 6


def test_shapes() -> None:
    assert broadcast_shapes((S, 1), (4,), ()) == (S, 4)
    assert contiguous_strides((2, S, 3)) == (3 * S, 3, 1)
    assert product(()) == 1
    assert TensorType((S, 4), torch.bfloat16).nbytes == 8 * S


def test_range() -> None:
    bounded, open_ended = SymbolRange(S, 1, 8), SymbolRange(T)
    assert (str(bounded), str(open_ended)) == ("s in [1, 8]", "t in [0, inf]")
    assert [n in bounded for n in (0, 1, 8, 9)] == [False, True, True, False]
    assert 10**9 in open_ended
