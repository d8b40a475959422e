"""Algebra on elements. What is not marked otherwise is exact: -0.0, NaN and integer overflow included."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...ir.node import OpDef
from ...ir.ops import (
    add,
    bit_and,
    bit_not,
    bit_or,
    div,
    eq,
    full,
    ge,
    gt,
    le,
    lt,
    maximum,
    minimum,
    mul,
    ne,
    neg,
    pow,
    reciprocal,
    rsqrt,
    scalar,
    scalar_like,
    sqrt,
    sub,
    where,
)
from ..pattern import COMMUTATIVE, constant
from ..rule import ROUNDING, Domain, Rule
from ..sample import shapes
from .common import broadcast_to, full_like, is_integer

TRUE = scalar(True, torch.bool)
FALSE = scalar(False, torch.bool)


def _constant_right(op: OpDef) -> Rule:
    # c op x -> x op c
    return Rule(
        name=f"{op.name}-constant-right".replace("_", "-"),
        before=lambda c, x, s, t: op(full(shape=s, value=c, dtype=t), x),
        when=lambda root, x: root.inputs[1] is x and x.op is not full,
        after=lambda root, x: op(x, root.inputs[0]),
        samples=[shapes("i64: n", c=3, s=(), t=torch.int64), shapes("i32: n", c=3, s=(2, 1), t=torch.int32)],
        near_misses=[lambda x: op(x, scalar_like(3, x)), lambda x: op(scalar_like(1, x), scalar_like(3, x))],
    )


ORDER = (
    *(_constant_right(op) for op in sorted(COMMUTATIVE, key=lambda op: op.name)),
    # x > y -> y < x
    Rule(
        name="gt-to-lt",
        before=lambda x, y: gt(x, y),
        after=lambda x, y: lt(y, x),
        samples=[shapes("m n", "n"), shapes("int: m 1", "int: n")],
        near_misses=[lambda x, y: ge(x, y)],
    ),
    # x >= y -> y <= x
    Rule(
        name="ge-to-le",
        before=lambda x, y: ge(x, y),
        after=lambda x, y: le(y, x),
        samples=[shapes("m n", "n"), shapes("int: m 1", "int: n")],
        near_misses=[lambda x, y: gt(x, y)],
    ),
)


def _wide(x: Any, value: Any) -> Any:
    """A constant with one more axis than ``x``, of size 2: it widens what it is combined with."""
    return full(shape=(2, *x.shape), value=value, dtype=x.dtype)


IDENTITIES = (
    # x * 1 -> x
    Rule(
        name="mul-one",
        before=lambda x: mul(x, constant(1)),
        after=lambda x: x,
        samples=[shapes("m n"), shapes("any: m n")],
        near_misses=[lambda x: mul(x, _wide(x, 1)), lambda x: mul(x, scalar_like(2, x)), lambda x: mul(x, x)],
    ),
    # x / 1 -> x
    Rule(
        name="div-one",
        before=lambda x: div(x, constant(1)),
        after=lambda x: x,
        samples=[shapes("m n")],
        near_misses=[lambda x: div(scalar_like(1.0, x), x), lambda x: div(x, _wide(x, 1.0))],
    ),
    # x + (-0.0) -> x, where x + 0.0 would turn -0.0 into 0.0
    Rule(
        name="add-minus-zero",
        before=lambda x: add(x, constant(-0.0)),
        after=lambda x: x,
        samples=[shapes("m n")],
        near_misses=[lambda x: add(x, scalar_like(0.0, x)), lambda x: add(x, _wide(x, -0.0))],
    ),
    # x + 0 -> x for integers
    Rule(
        name="add-zero",
        before=lambda x: add(x, constant(0)),
        when=lambda x: is_integer(x.dtype),
        after=lambda x: x,
        samples=[shapes("int: m n")],
        near_misses=[shapes("m n"), lambda x: add(x, scalar_like(1, x))],
    ),
    # x - 0 -> x
    Rule(
        name="sub-zero",
        before=lambda x: sub(x, constant(0)),
        after=lambda x: x,
        samples=[shapes("m n"), shapes("int: m")],
        near_misses=[lambda x: sub(x, scalar_like(-0.0, x)), lambda x: sub(scalar_like(0, x), x)],
    ),
    # x * (-1) -> -x
    Rule(
        name="mul-minus-one",
        before=lambda x: mul(x, constant(-1)),
        after=lambda x: neg(x),
        samples=[shapes("m n"), shapes("int: m")],
        near_misses=[lambda x: mul(x, scalar_like(1, x))],
    ),
    # x * 0 -> 0 for integers
    Rule(
        name="mul-zero",
        before=lambda x: mul(x, constant(0)),
        when=lambda x: is_integer(x.dtype),
        after=lambda root: full_like(root, 0),
        samples=[shapes("int: m n")],
        near_misses=[shapes("m n")],
    ),
    # -(-x) -> x
    Rule(
        name="neg-neg",
        before=lambda x: neg(neg(x)),
        after=lambda x: x,
        samples=[shapes("m n"), shapes("int: m")],
        near_misses=[lambda x: neg(x)],
    ),
    # x + (-y) -> x - y
    Rule(
        name="add-neg",
        before=lambda x, y: add(x, neg(y)),
        after=lambda x, y: sub(x, y),
        samples=[shapes("m n", "n"), shapes("int: m", "int: n m")],
        near_misses=[lambda x, y: neg(add(x, y))],
    ),
    # x - (-y) -> x + y
    Rule(
        name="sub-neg",
        before=lambda x, y: sub(x, neg(y)),
        after=lambda x, y: add(x, y),
        samples=[shapes("m n", "n"), shapes("int: m", "int: n m")],
        near_misses=[lambda x, y: sub(neg(x), y)],
    ),
    # (-x) (-y) -> x y
    Rule(
        name="mul-neg-neg",
        before=lambda x, y: mul(neg(x), neg(y)),
        after=lambda x, y: mul(x, y),
        samples=[shapes("m n", "n"), shapes("int: m", "int: n m")],
        near_misses=[lambda x, y: mul(neg(x), y)],
    ),
    # max(x, x) -> x
    Rule(
        name="maximum-same",
        before=lambda x: maximum(x, x),
        after=lambda x: x,
        samples=[shapes("m n"), shapes("int: m")],
        near_misses=[lambda x: maximum(x, neg(x))],
    ),
    # min(x, x) -> x
    Rule(
        name="minimum-same",
        before=lambda x: minimum(x, x),
        after=lambda x: x,
        samples=[shapes("m n"), shapes("int: m")],
        near_misses=[lambda x: minimum(x, neg(x))],
    ),
)

LOGIC = (
    # not not p -> p, and the same for the bits of integers
    Rule(
        name="not-not",
        before=lambda p: bit_not(bit_not(p)),
        after=lambda p: p,
        samples=[shapes("bool: m n"), shapes("int: m")],
        near_misses=[lambda p: bit_not(p)],
    ),
    # p and true -> p
    Rule(
        name="and-true",
        before=lambda p: bit_and(p, TRUE),
        after=lambda p: p,
        samples=[shapes("bool: m n")],
        near_misses=[lambda p: bit_and(p, _wide(p, True)), lambda p: bit_and(p, FALSE)],
    ),
    # p and false -> false
    Rule(
        name="and-false",
        before=lambda p: bit_and(p, FALSE),
        after=lambda root: full_like(root, False),
        samples=[shapes("bool: m n")],
        near_misses=[lambda p: bit_and(p, TRUE)],
    ),
    # p or false -> p
    Rule(
        name="or-false",
        before=lambda p: bit_or(p, FALSE),
        after=lambda p: p,
        samples=[shapes("bool: m n")],
        near_misses=[lambda p: bit_or(p, _wide(p, False)), lambda p: bit_or(p, TRUE)],
    ),
    # p or true -> true
    Rule(
        name="or-true",
        before=lambda p: bit_or(p, TRUE),
        after=lambda root: full_like(root, True),
        samples=[shapes("bool: m n")],
        near_misses=[lambda p: bit_or(p, FALSE)],
    ),
    # p and p -> p
    Rule(
        name="and-same",
        before=lambda p: bit_and(p, p),
        after=lambda p: p,
        samples=[shapes("bool: m n"), shapes("int: m")],
        near_misses=[lambda p: bit_and(p, bit_not(p))],
    ),
    # p or p -> p
    Rule(
        name="or-same",
        before=lambda p: bit_or(p, p),
        after=lambda p: p,
        samples=[shapes("bool: m n"), shapes("int: m")],
        near_misses=[lambda p: bit_or(p, bit_not(p))],
    ),
    # p == true -> p
    Rule(
        name="eq-true",
        before=lambda p: eq(p, TRUE),
        after=lambda p: p,
        samples=[shapes("bool: m n")],
        near_misses=[lambda p: eq(p, FALSE)],
    ),
    # p != false -> p
    Rule(
        name="ne-false",
        before=lambda p: ne(p, FALSE),
        after=lambda p: p,
        samples=[shapes("bool: m n")],
        near_misses=[lambda p: ne(p, TRUE)],
    ),
    # p == false -> not p
    Rule(
        name="eq-false",
        before=lambda p: eq(p, FALSE),
        after=lambda p: bit_not(p),
        samples=[shapes("bool: m n")],
        near_misses=[lambda p: eq(p, TRUE)],
    ),
    # p != true -> not p
    Rule(
        name="ne-true",
        before=lambda p: ne(p, TRUE),
        after=lambda p: bit_not(p),
        samples=[shapes("bool: m n")],
        near_misses=[lambda p: ne(p, FALSE)],
    ),
    # not (x == y) -> x != y
    Rule(
        name="not-eq",
        before=lambda x, y: bit_not(eq(x, y)),
        after=lambda x, y: ne(x, y),
        samples=[shapes("m n", "n"), shapes("int: m", "int: m")],
        near_misses=[lambda x, y: bit_not(lt(x, y))],
    ),
    # not (x != y) -> x == y
    Rule(
        name="not-ne",
        before=lambda x, y: bit_not(ne(x, y)),
        after=lambda x, y: eq(x, y),
        samples=[shapes("m n", "n"), shapes("int: m", "int: m")],
        near_misses=[lambda x, y: bit_not(le(x, y))],
    ),
    # where(true, x, y) -> x
    Rule(
        name="where-true",
        before=lambda x, y, s: where(full(shape=s, value=True, dtype=torch.bool), x, y),
        after=lambda root, x: broadcast_to(x, root.shape),
        samples=[shapes("m n", "n", s=()), shapes("int: n", "int: m n", s=(1,))],
        near_misses=[lambda x, y: where(FALSE, x, y)],
    ),
    # where(false, x, y) -> y
    Rule(
        name="where-false",
        before=lambda x, y, s: where(full(shape=s, value=False, dtype=torch.bool), x, y),
        after=lambda root, y: broadcast_to(y, root.shape),
        samples=[shapes("m n", "n", s=()), shapes("int: n", "int: m n", s=(1,))],
        near_misses=[lambda x, y: where(TRUE, x, y)],
    ),
    # where(p, x, x) -> x
    Rule(
        name="where-same",
        before=lambda p, x: where(p, x, x),
        after=lambda root, x: broadcast_to(x, root.shape),
        samples=[shapes("bool: m n", "n"), shapes("bool: n", "int: n")],
        near_misses=[lambda p, x: where(p, x, neg(x))],
    ),
    # where(p, q, false) -> p and q
    Rule(
        name="where-else-false",
        before=lambda p, q: where(p, q, FALSE),
        after=lambda p, q: bit_and(p, q),
        samples=[shapes("bool: m n", "bool: n")],
        near_misses=[lambda p, q: where(p, q, TRUE)],
    ),
    # where(p, false, q) -> not p and q
    Rule(
        name="where-then-false",
        before=lambda p, q: where(p, FALSE, q),
        after=lambda p, q: bit_and(bit_not(p), q),
        samples=[shapes("bool: m n", "bool: n")],
        near_misses=[lambda p, q: where(p, TRUE, q)],
    ),
    # where(p, true, q) -> p or q
    Rule(
        name="where-then-true",
        before=lambda p, q: where(p, TRUE, q),
        after=lambda p, q: bit_or(p, q),
        samples=[shapes("bool: m n", "bool: n")],
        near_misses=[lambda p, q: where(p, FALSE, q)],
    ),
    # where(p, q, true) -> not p or q
    Rule(
        name="where-else-true",
        before=lambda p, q: where(p, q, TRUE),
        after=lambda p, q: bit_or(bit_not(p), q),
        samples=[shapes("bool: m n", "bool: n")],
        near_misses=[lambda p, q: where(p, q, FALSE)],
    ),
    # where(not p, x, y) -> where(p, y, x)
    Rule(
        name="where-not",
        before=lambda p, x, y: where(bit_not(p), x, y),
        after=lambda p, x, y: where(p, y, x),
        samples=[shapes("bool: m n", "n", "m n")],
        near_misses=[lambda p, x, y: where(p, x, y)],
    ),
)


def _inverse_is_exact(c: Any) -> bool:
    """Whether a number is a power of two, up to sign, whose inverse every float dtype holds exactly."""
    if not isinstance(c, int | float) or c == 0 or not math.isfinite(c):
        return False
    mantissa, exponent = math.frexp(abs(c))  # c = mantissa * 2 ** exponent with mantissa in [0.5, 1)
    return mantissa == 0.5 and 1 <= abs(exponent - 1) <= 14


POWERS = (
    # x^1 -> x
    Rule(
        name="pow-one",
        before=lambda x: pow(x, constant(1)),
        after=lambda x: x,
        samples=[shapes("m n")],
        near_misses=[lambda x: pow(x, scalar_like(2.0, x)), lambda x: pow(scalar_like(1.0, x), x)],
    ),
    # x^2 -> x x
    Rule(
        name="pow-two",
        before=lambda x: pow(x, constant(2)),
        after=lambda x: mul(x, x),
        samples=[shapes("m n")],
        near_misses=[lambda x: pow(x, scalar_like(2.5, x))],
        tolerance=ROUNDING,
    ),
    # x^3 -> x x x
    Rule(
        name="pow-three",
        before=lambda x: pow(x, constant(3)),
        after=lambda x: mul(mul(x, x), x),
        samples=[shapes("m n")],
        near_misses=[lambda x: pow(x, scalar_like(4.0, x))],
        tolerance=ROUNDING,
    ),
    # x^(1/2) -> sqrt(x), which differs at -0.0 and -inf
    Rule(
        name="pow-half",
        before=lambda x: pow(x, constant(0.5)),
        after=lambda x: sqrt(x),
        samples=[shapes("m n")],
        near_misses=[lambda x: pow(x, scalar_like(0.25, x))],
        tolerance=ROUNDING,
        domain=Domain.POSITIVE,
    ),
    # x^(-1/2) -> 1 / sqrt(x), which differs at -0.0 and -inf
    Rule(
        name="pow-minus-half",
        before=lambda x: pow(x, constant(-0.5)),
        after=lambda x: rsqrt(x),
        samples=[shapes("m n")],
        near_misses=[lambda x: pow(x, scalar_like(0.5, x))],
        tolerance=ROUNDING,
        domain=Domain.POSITIVE,
    ),
    # x^(-1) -> 1 / x
    Rule(
        name="pow-minus-one",
        before=lambda x: pow(x, constant(-1)),
        when=lambda x: x.dtype.is_floating_point,
        after=lambda x: reciprocal(x),
        samples=[shapes("m n")],
        near_misses=[shapes("int: m"), lambda x: pow(x, scalar_like(1.0, x))],
        tolerance=ROUNDING,
    ),
    # 1 / x -> reciprocal(x)
    Rule(
        name="one-over",
        before=lambda x: div(constant(1), x),
        after=lambda x: reciprocal(x),
        samples=[shapes("m n")],
        near_misses=[lambda x: div(x, scalar_like(1.0, x)), lambda x: div(_wide(x, 1.0), x)],
    ),
    # 1 / sqrt(x) -> rsqrt(x)
    Rule(
        name="reciprocal-sqrt",
        before=lambda x: reciprocal(sqrt(x)),
        after=lambda x: rsqrt(x),
        samples=[shapes("m n")],
        near_misses=[lambda x: sqrt(x)],
        tolerance=ROUNDING,
    ),
    # x / 2^k -> x 2^-k: both are the real quotient, rounded once
    Rule(
        name="div-power-of-two",
        before=lambda x, c: div(x, constant(c)),
        when=lambda c: _inverse_is_exact(c),
        after=lambda x, c: mul(x, scalar_like(1.0 / c, x)),
        samples=[shapes("m n", c=8.0), shapes("m n", c=-0.5)],
        near_misses=[shapes("m n", c=3.0), shapes("m n", c=2.0**60), shapes("m n", c=0.0)],
    ),
)

RULES = (*ORDER, *IDENTITIES, *LOGIC, *POWERS)
