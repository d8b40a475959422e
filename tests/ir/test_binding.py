"""Sizes told by shapes, and the errors for those that do not fit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import sympy
import torch

from smelt.ir import ops
from smelt.ir.binding import bind_symbols
from smelt.ir.errors import InputError
from smelt.ir.graph import Graph
from smelt.ir.types import Dim, SymbolRange, symbol

S, T = symbol("s"), symbol("t")
RANGES = (SymbolRange(S, 2, 8), SymbolRange(T))


def graph(*shapes: Sequence[Dim]) -> Graph:
    inputs = [ops.input(name=f"in{i}", shape=tuple(s), dtype=torch.float32) for i, s in enumerate(shapes)]
    return Graph(inputs, inputs, (), RANGES)


@pytest.mark.parametrize(
    ("declared", "given", "sizes"),
    [
        ([], [], {}),
        ([(3,), ()], [(3,), ()], {}),
        ([(S, T), (T, 4)], [(5, 7), (7, 4)], {S: 5, T: 7}),
        # expressions are checked wherever their symbols come from
        ([(2 * S + 1,), (S,)], [(11,), (5,)], {S: 5}),
        ([(S // 2, sympy.Max(S, 3)), (S,)], [(2, 5), (5,)], {S: 5}),
        # or solved for the symbol that nothing else tells
        ([(2 * S,)], [(10,)], {S: 5}),
        ([(2 * S + T,), (T,)], [(11,), (1,)], {S: 5, T: 1}),
        ([(S * T,), (S + 1,)], [(10,), (6,)], {S: 5, T: 2}),
        # or not, where they do not tell one
        ([(S // 2,)], [(2,)], {}),
        ([(S + T,)], [(10,)], {}),
    ],
)
def test_sizes(declared: Any, given: Any, sizes: dict[sympy.Symbol, int]) -> None:
    assert bind_symbols(graph(*declared), given) == sizes


@pytest.mark.parametrize(
    ("declared", "given", "message"),
    [
        ([(3,)], [], "the graph takes 1 inputs, got 0"),
        ([(3,)], [(3, 1)], "input 'in0' has 2 dims, the graph takes f32[3]"),
        ([(3,)], [(4,)], "input 'in0': dim 0 is 4, the graph takes 3"),
        ([(1, S), (S,)], [(1, 4), (5,)], "input 'in1': dim 0 is 5, but s is 4 elsewhere"),
        ([(1, S)], [(1, 9)], "input 'in0': dim 1 is 9, out of range: s in [2, 8]"),
        ([(1, S)], [(1, 1)], "input 'in0': dim 1 is 1, out of range: s in [2, 8]"),
        ([(S,), (2 * S,)], [(4,), (9,)], "input 'in1': dim 0 is 9, the graph takes 2*s = 8"),
        ([(2 * S,)], [(9,)], "input 'in0': dim 0 is 9, the graph takes 2*s = 8"),
        ([(2 * S,)], [(18,)], "input 'in0': dim 0 is 18, out of range: s in [2, 8]"),
        ([(T + 3,)], [(2,)], "input 'in0': dim 0 is 2, the graph takes t + 3 = 3"),
    ],
)
def test_sizes_that_do_not_fit(declared: Any, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        bind_symbols(graph(*declared), given)


def test_sizes_may_be_given() -> None:
    assert bind_symbols(graph((3,)), [(3,)], {S: 4}) == {S: 4}
    with pytest.raises(InputError, match="dim 0 is 5, but s is 4 elsewhere"):
        bind_symbols(graph((S,)), [(5,)], {S: 4})
    with pytest.raises(InputError, match=re.escape("s = 1 is out of range: s in [2, 8]")):
        bind_symbols(graph(), [], {S: 1})


def test_plain_symbols_cost_no_sympy(monkeypatch: pytest.MonkeyPatch) -> None:
    one = graph((S, 4), (S, T))

    def fail(*_: object) -> None:
        raise AssertionError

    for name in ("__eq__", "__add__", "__mul__", "__sub__", "subs", "xreplace"):
        monkeypatch.setattr(sympy.Expr, name, fail)
    assert bind_symbols(one, [(3, 4), (3, 5)]) == {S: 3, T: 5}
