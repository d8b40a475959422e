"""Formulas that have a function of their own: found in a program before its kernel is written.

A program says GELU as the arithmetic that it is made of, which is what the oracle and other backends compute. Here the
whole formula is one operator, so that its parts need not be accurate where the whole is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from ..program import Apply, Const, Expr, Program
from ..rewrite import map_expressions, with_operands

Formula = Callable[[Expr], Expr]


def with_idioms(program: Program) -> Program:
    """The program with each formula of float32 that has a function replaced by it."""

    def change(expr: Expr, args: tuple[Expr, ...]) -> Expr:
        rebuilt = with_operands(expr, args)
        return _as_function(rebuilt) or rebuilt

    return map_expressions(program, change)


def _as_function(expr: Expr) -> Expr | None:
    """The application of a function that an expression is the formula of, if there is one."""
    x = _gated(expr)
    if x is None or x.dtype != torch.float32:
        return None
    # equal expressions are one object
    name = next((name for name, formula in _FORMULAS.items() if formula(x) is expr), None)
    return None if name is None else Apply(name, (x,), x.dtype)


def _gated(expr: Expr) -> Expr | None:
    """x, for an expression (0.5 x) y."""
    match expr:
        case Apply("mul", (Apply("mul", (Const(0.5), x)), _)):
            return x
    return None


def _mul(a: Expr, b: Expr) -> Expr:
    return Apply("mul", (a, b), a.dtype)


def _add(a: Expr, b: Expr) -> Expr:
    return Apply("add", (a, b), a.dtype)


def _gate(x: Expr, function: str, argument: Expr) -> Expr:
    """0.5 x (1 + function(argument)), as ``ops.gelu`` is defined."""
    half, one = Const(0.5, x.dtype), Const(1.0, x.dtype)
    return _mul(_mul(half, x), _add(one, Apply(function, (argument,), x.dtype)))


def _gelu(x: Expr) -> Expr:
    return _gate(x, "erf", _mul(x, Const(math.sqrt(0.5), x.dtype)))


def _gelu_tanh(x: Expr) -> Expr:
    cubed = _mul(Const(0.044715, x.dtype), _mul(_mul(x, x), x))
    return _gate(x, "tanh", _mul(Const(math.sqrt(2 / math.pi), x.dtype), _add(x, cubed)))


_FORMULAS: dict[str, Formula] = {"gelu": _gelu, "gelu_tanh": _gelu_tanh}
