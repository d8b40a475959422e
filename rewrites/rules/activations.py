"""Activations, recognised in the ways in which models write them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ...ir.node import Node
from ...ir.ops import (
    add,
    clamp,
    div,
    erf,
    exp,
    full,
    gelu,
    leaky_relu,
    lt,
    maximum,
    minimum,
    mul,
    neg,
    reciprocal,
    relu,
    scalar,
    scalar_like,
    sigmoid,
    silu,
    swiglu,
    tanh,
    where,
)
from ...ir.ops import sum as sum_
from ..pattern import constant, near
from ..rule import ROUNDING, Domain, Rule
from ..sample import shapes
from .common import like

DIGITS = 1e-6  # constants are written with seven digits or more

SIGMOID = (
    # 1 / (1 + exp(-x)) -> sigmoid(x)
    Rule(
        name="sigmoid-of-exp",
        before=lambda x: reciprocal(add(exp(neg(x)), constant(1))),
        after=lambda root, x: sigmoid(like(x, root)),
        samples=[shapes("m n")],
        near_misses=[lambda x: reciprocal(add(exp(x), scalar_like(1.0, x)))],
        tolerance=ROUNDING,
        through_casts=True,
    ),
    # x sigmoid(x) -> silu(x)
    Rule(
        name="silu-of-sigmoid",
        before=lambda x: mul(x, sigmoid(x)),
        after=lambda root, x: silu(like(x, root)),
        samples=[shapes("m n")],
        near_misses=[lambda x: mul(x, sigmoid(neg(x)))],
        tolerance=ROUNDING,
        through_casts=True,
    ),
    # x / (1 + exp(-x)) -> silu(x)
    Rule(
        name="silu-of-exp",
        before=lambda x: div(x, add(exp(neg(x)), constant(1))),
        after=lambda root, x: silu(like(x, root)),
        samples=[shapes("m n")],
        near_misses=[lambda x: div(x, add(exp(x), scalar_like(1.0, x)))],
        tolerance=ROUNDING,
        through_casts=True,
    ),
)

GATED = (
    # silu(g) u -> swiglu(g, u)
    Rule(
        name="mul-silu-to-swiglu",
        before=lambda gate, up: mul(silu(gate), up),
        when=lambda up: up.op is not full,
        after=lambda gate, up: swiglu(gate, up),
        samples=[shapes("m n", "m n"), shapes("m n", "n")],
        near_misses=[
            shapes("f32: m n", lambda: scalar(2.0, torch.float32)),
            lambda gate, up: mul(sigmoid(gate), up),
            lambda gate, up: sum_(mul(gate, silu(up))),
        ],
        tolerance=ROUNDING,
    ),
)

RELU = (
    # max(x, 0) -> relu(x)
    Rule(
        name="relu-of-maximum",
        before=lambda x: maximum(x, constant(0)),
        after=lambda x: relu(x),
        samples=[shapes("m n"), shapes("int: m")],
        near_misses=[lambda x: maximum(x, scalar_like(1, x)), lambda x: minimum(x, scalar_like(0, x))],
        tolerance=ROUNDING,
    ),
    # clamp(x, 0) -> relu(x)
    Rule(
        name="relu-of-clamp",
        before=lambda x, low: clamp(x, low=low),
        when=lambda low: low == 0,
        after=lambda x: relu(x),
        samples=[shapes("m n", low=0.0), shapes("int: m", low=0)],
        near_misses=[shapes("m n", low=0.5), lambda x: clamp(x, low=0, high=1)],
        tolerance=ROUNDING,
    ),
    # relu(relu(x)) -> relu(x)
    Rule(
        name="relu-relu",
        before=lambda x: relu(relu(x)),
        after=lambda x: relu(x),
        samples=[shapes("m n")],
        near_misses=[lambda x: relu(neg(x))],
    ),
    # where(x > 0, x, c x) -> leaky_relu(x, c)
    Rule(
        name="leaky-relu-of-where",
        before=lambda x, c: where(lt(constant(0), x), x, mul(x, constant(c))),
        when=lambda x, c: x.dtype.is_floating_point and isinstance(c, float),
        after=lambda x, c: leaky_relu(x, slope=c),
        samples=[shapes("m n", c=0.2)],
        near_misses=[
            lambda x: where(lt(scalar_like(1.0, x), x), x, mul(x, scalar_like(0.2, x))),
            shapes("int: m", c=2),
        ],
        tolerance=ROUNDING,
    ),
)


def _erf_part(x: Node) -> Node:
    # 1 + erf(x / sqrt 2)
    return add(erf(mul(x, constant(near(math.sqrt(0.5), DIGITS)))), constant(1))


def _divided_erf_part(x: Node) -> Node:
    # 1 + erf(x / sqrt 2), as a quotient
    return add(erf(div(x, constant(near(math.sqrt(2), DIGITS)))), constant(1))


def _tanh_part(x: Node) -> Node:
    # 1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))
    return _tanh_of(x, mul(mul(mul(x, x), x), constant(near(0.044715, DIGITS))))


def _product_tanh_part(x: Node) -> Node:
    # the same with 0.044715 x x x from the left
    return _tanh_of(x, mul(mul(mul(x, constant(near(0.044715, DIGITS))), x), x))


def _tanh_of(x: Node, cubic: Node) -> Node:
    return add(tanh(mul(add(x, cubic), constant(near(math.sqrt(2 / math.pi), DIGITS)))), constant(1))


def _factored_tanh_part(x: Node) -> Node:
    # 1 + tanh(x sqrt(2 / pi) (1 + 0.044715 x x))
    square = mul(mul(x, constant(near(0.044715, DIGITS))), x)
    scaled = mul(x, constant(near(math.sqrt(2 / math.pi), DIGITS)))
    return add(tanh(mul(scaled, add(square, constant(1)))), constant(1))


PARTS = {
    "erf": (_erf_part, "none"),
    "erf-of-quotient": (_divided_erf_part, "none"),
    "tanh": (_tanh_part, "tanh"),
    "tanh-of-product": (_product_tanh_part, "tanh"),
    "tanh-factored": (_factored_tanh_part, "tanh"),
}
# where the half stands
HALVES: dict[str, Callable[[Any, Node], Node]] = {
    "first": lambda x, part: mul(mul(x, constant(0.5)), part),
    "inside": lambda x, part: mul(x, mul(part, constant(0.5))),
    "last": lambda x, part: mul(mul(x, part), constant(0.5)),
}


def _gelu(part: str, half: str) -> Rule:
    # 0.5 x (1 + erf(x / sqrt 2)) -> gelu(x), and with tanh -> gelu(x, tanh)
    draw, approximate = PARTS[part]
    return Rule(
        name=f"gelu-of-{part}-half-{half}",
        before=lambda x: HALVES[half](x, draw(x)),
        after=lambda root, x: gelu(like(x, root), approximate=approximate),
        samples=[shapes("m n")],
        near_misses=[
            lambda x: mul(x, mul(add(erf(x), scalar_like(1.0, x)), scalar_like(0.5, x))),
            lambda x: mul(mul(x, scalar_like(0.5, x)), add(tanh(x), scalar_like(1.0, x))),
        ],
        tolerance=DIGITS,
        domain=Domain.FINITE,
        through_casts=True,
    )


GELU = tuple(_gelu(part, half) for part in PARTS for half in HALVES)

RULES = (*SIGMOID, *RELU, *GELU)
