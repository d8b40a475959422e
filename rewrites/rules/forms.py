"""More ways in which models write activations, norms and softmaxes: through other functions of the same family."""

from __future__ import annotations

import math
from typing import Any

from ...ir.node import Node
from ...ir.ops import abs as abs_
from ...ir.ops import (
    add,
    amax,
    clamp,
    cos,
    div,
    eq,
    exp,
    layer_norm,
    leaky_relu,
    log,
    log1p,
    log_softmax,
    lt,
    maximum,
    mean,
    minimum,
    mul,
    neg,
    reciprocal,
    relu,
    rms_norm,
    rsqrt,
    scalar_like,
    sigmoid,
    silu,
    softmax,
    softplus,
    sqrt,
    sub,
    tanh,
    var,
    where,
)
from ...ir.ops import sum as sum_
from ..pattern import constant
from ..rule import ROUNDING, Domain, Rule
from ..sample import shapes
from .common import is_number, like

# softplus(x) is x above 20, where log(1 + exp(x)) is larger by 2e-9
SOFTPLUS = 1e-8

ACTIVATIONS = (
    # log(1 + exp(x)) -> softplus(x), which does not overflow
    Rule(
        name="softplus-of-log",
        before=lambda x: log(add(exp(x), constant(1))),
        after=lambda root, x: softplus(like(x, root)),
        samples=[shapes("m n")],
        near_misses=[lambda x: log(add(exp(x), scalar_like(2.0, x)))],
        tolerance=SOFTPLUS,
        domain=Domain.FINITE,
        through_casts=True,
    ),
    # log1p(exp(x)) -> softplus(x), which does not overflow; of a negative number it cannot
    Rule(
        name="softplus-of-log1p",
        before=lambda x: log1p(exp(x)),
        when=lambda x: x.op is not neg,
        after=lambda root, x: softplus(like(x, root)),
        samples=[shapes("m n")],
        near_misses=[lambda x: log1p(exp(neg(abs_(x)))), lambda x: log1p(cos(x))],
        tolerance=SOFTPLUS,
        domain=Domain.FINITE,
        through_casts=True,
    ),
    # (1 + tanh(x / 2)) / 2 -> sigmoid(x)
    Rule(
        name="sigmoid-of-tanh",
        before=lambda x: mul(add(tanh(mul(x, constant(0.5))), constant(1)), constant(0.5)),
        after=lambda root, x: sigmoid(like(x, root)),
        samples=[shapes("m n")],
        near_misses=[lambda x: mul(add(tanh(x), scalar_like(1.0, x)), scalar_like(0.5, x))],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
    # (x / 2) (1 + tanh(x / 2)) -> silu(x)
    Rule(
        name="silu-of-tanh",
        before=lambda x: mul(mul(x, constant(0.5)), add(tanh(mul(x, constant(0.5))), constant(1))),
        after=lambda root, x: silu(like(x, root)),
        samples=[shapes("m n")],
        near_misses=[lambda x: mul(mul(x, scalar_like(0.5, x)), add(tanh(x), scalar_like(1.0, x)))],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
    # exp(x) / (1 + exp(x)) -> sigmoid(x), which does not overflow
    Rule(
        name="sigmoid-of-quotient",
        before=lambda x: div(exp(x), add(exp(x), constant(1))),
        after=lambda root, x: sigmoid(like(x, root)),
        samples=[shapes("m n")],
        near_misses=[lambda x: div(exp(x), add(exp(neg(x)), scalar_like(1.0, x)))],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
    # where(x < 0, 0, x) -> relu(x)
    Rule(
        name="relu-of-filled-negatives",
        before=lambda x: where(lt(x, constant(0)), constant(0), x),
        after=lambda x: relu(x),
        samples=[shapes("m n"), shapes("int: m")],
        near_misses=[
            lambda x: where(lt(x, scalar_like(1, x)), scalar_like(0, x), x),
            lambda x: where(lt(scalar_like(0, x), x), scalar_like(0, x), x),
        ],
        tolerance=ROUNDING,
    ),
    # max(x, c x) -> leaky_relu(x, c) for 0 < c < 1
    Rule(
        name="leaky-relu-of-maximum",
        before=lambda x, c: maximum(x, mul(x, constant(c))),
        when=lambda x, c: x.dtype.is_floating_point and is_number(c) and 0 < c < 1,
        after=lambda x, c: leaky_relu(x, slope=c),
        samples=[shapes("m n", c=0.25)],
        near_misses=[shapes("m n", c=1.5), shapes("m n", c=-0.5)],
        tolerance=ROUNDING,
    ),
)


def _are_bounds(a: Any, b: Any) -> bool:
    return is_number(a) and is_number(b) and a <= b


CLAMPS = (
    # clamp(clamp(x, a, none), none, b) -> clamp(x, a, b) for a <= b
    Rule(
        name="clamp-below-clamp",
        before=lambda x, a, b: clamp(clamp(x, low=a), high=b),
        when=lambda a, b: _are_bounds(a, b),
        after=lambda x, a, b: clamp(x, low=a, high=b),
        samples=[shapes("m n", a=-1.0, b=1.0), shapes("int: m", a=1, b=3)],
        near_misses=[shapes("m n", a=1.0, b=-1.0), lambda x: clamp(clamp(x, high=1), high=2)],
        tolerance=ROUNDING,
    ),
    # clamp(clamp(x, none, b), a, none) -> clamp(x, a, b) for a <= b
    Rule(
        name="clamp-above-clamp",
        before=lambda x, a, b: clamp(clamp(x, high=b), low=a),
        when=lambda a, b: _are_bounds(a, b),
        after=lambda x, a, b: clamp(x, low=a, high=b),
        samples=[shapes("m n", a=-1.0, b=1.0), shapes("int: m", a=1, b=3)],
        near_misses=[shapes("m n", a=1.0, b=-1.0), lambda x: clamp(clamp(x, low=1), low=2)],
        tolerance=ROUNDING,
    ),
    # min(max(x, a), b) -> clamp(x, a, b)
    Rule(
        name="clamp-of-minimum",
        before=lambda x, a, b: minimum(maximum(x, constant(a)), constant(b)),
        when=lambda a, b: _are_bounds(a, b),
        after=lambda x, a, b: clamp(x, low=a, high=b),
        samples=[shapes("m n", a=-1.0, b=1.0), shapes("int: m", a=0, b=3)],
        near_misses=[shapes("m n", a=1.0, b=-1.0), lambda x: minimum(x, scalar_like(1, x))],
        tolerance=ROUNDING,
    ),
    # max(min(x, b), a) -> clamp(x, a, b) for a <= b
    Rule(
        name="clamp-of-maximum",
        before=lambda x, a, b: maximum(minimum(x, constant(b)), constant(a)),
        when=lambda a, b: _are_bounds(a, b),
        after=lambda x, a, b: clamp(x, low=a, high=b),
        samples=[shapes("m n", a=-1.0, b=1.0), shapes("int: m", a=0, b=3)],
        near_misses=[shapes("m n", a=1.0, b=-1.0), lambda x: maximum(x, scalar_like(1, x))],
        tolerance=ROUNDING,
    ),
)


def _length(x: Any, d: Any, k: Any) -> Node:
    return sqrt(sum_(mul(x, x), dims=d, keepdim=k))


SQUARES = (
    # |x| |x| -> x x
    Rule(
        name="square-of-abs",
        before=lambda x: mul(abs_(x), abs_(x)),
        after=lambda x: mul(x, x),
        samples=[shapes("m n"), shapes("int: m")],
        near_misses=[lambda x: mul(abs_(x), x)],
    ),
    # sqrt(sum(x x)) sqrt(sum(x x)) -> sum(x x)
    Rule(
        name="square-of-length",
        before=lambda x, d, k: mul(_length(x, d, k), _length(x, d, k)),
        after=lambda x, d, k: sum_(mul(x, x), dims=d, keepdim=k),
        samples=[shapes("m n", d=(1,), k=True), shapes("b m n", d=(0, 2), k=False)],
        near_misses=[lambda x: mul(_length(x, (1,), True), sqrt(x))],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
)


def _scaled_rsqrt(square: Node, eps: Any, w: Any) -> Node:
    return mul(rsqrt(add(square, constant(eps))), w)


def _variance(x: Any) -> Node:
    return var(x, dims=(-1,), keepdim=True, correction=0)


def _mean_square(x: Any) -> Node:
    return mean(mul(x, x), dims=(-1,), keepdim=True)


def _known_eps(root: Node, x: Node, eps: Any) -> bool:
    return is_number(eps) and root.shape == x.shape


NORMS = (
    # (x - mean(x)) (rsqrt(var(x) + eps) w) -> layer_norm(x) w
    Rule(
        name="layer-norm-of-scaled-rsqrt",
        before=lambda x, w, eps: mul(sub(x, mean(x, dims=(-1,), keepdim=True)), _scaled_rsqrt(_variance(x), eps, w)),
        when=lambda root, x, eps: _known_eps(root, x, eps),
        after=lambda root, x, w, eps: mul(layer_norm(like(x, root), eps=eps), like(w, root)),
        samples=[shapes("b m N", "N", eps=1e-5)],
        near_misses=[
            shapes("1 N", "3 N", eps=1e-5),
            lambda x, w: mul(x, mul(rsqrt(add(mul(x, x), scalar_like(1e-5, x))), w)),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
    # x (rsqrt(mean(x x) + eps) w) -> rms_norm(x) w
    Rule(
        name="rms-norm-of-scaled-rsqrt",
        before=lambda x, w, eps: mul(x, _scaled_rsqrt(_mean_square(x), eps, w)),
        when=lambda root, x, eps: _known_eps(root, x, eps),
        after=lambda root, x, w, eps: mul(rms_norm(like(x, root), eps=eps), like(w, root)),
        samples=[shapes("b m N", "N", eps=1e-5)],
        near_misses=[
            shapes("1 N", "3 N", eps=1e-5),
            lambda x, w: mul(x, mul(rsqrt(add(mul(x, x), scalar_like(1e-5, x))), w)),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
)


def _shifted_exp(x: Any, d: Any) -> Node:
    return exp(sub(x, amax(x, dims=(d,), keepdim=True)))


def _finite_maximum(x: Any, d: Any) -> Node:
    """The largest of a row, 0 where that is infinite: what logsumexp takes away and adds again."""
    top = amax(x, dims=(d,), keepdim=True)
    return where(eq(abs_(top), constant(math.inf)), constant(0), top)


def _logsumexp(x: Any, d: Any) -> Node:
    top = _finite_maximum(x, d)
    return add(log(sum_(exp(sub(x, top)), dims=(d,), keepdim=True)), top)


SOFTMAX = (
    # exp(x - max(x)) (1 / sum(exp(x - max(x)))) -> softmax(x)
    Rule(
        name="softmax-of-reciprocal",
        before=lambda x, d: mul(_shifted_exp(x, d), reciprocal(sum_(_shifted_exp(x, d), dims=(d,), keepdim=True))),
        after=lambda root, x, d: softmax(like(x, root), dim=d),
        samples=[shapes("b m n", d=-1)],
        near_misses=[lambda x: mul(_shifted_exp(x, 0), reciprocal(sum_(_shifted_exp(x, 1), dims=(1,), keepdim=True)))],
        tolerance=ROUNDING,
        through_casts=True,
    ),
    # exp(x) (1 / sum(exp(x))) -> softmax(x), which does not overflow
    Rule(
        name="softmax-of-plain-reciprocal",
        before=lambda x, d: mul(exp(x), reciprocal(sum_(exp(x), dims=(d,), keepdim=True))),
        when=lambda x: x.op is not sub,
        after=lambda root, x, d: softmax(like(x, root), dim=d),
        samples=[shapes("b m n", d=-1)],
        near_misses=[
            lambda x: mul(_shifted_exp(x, 0), reciprocal(sum_(_shifted_exp(x, 0), dims=(0,), keepdim=True))),
            lambda x: mul(exp(x), reciprocal(sum_(exp(neg(x)), dims=(0,), keepdim=True))),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
    # x - logsumexp(x) -> log_softmax(x)
    Rule(
        name="log-softmax-of-logsumexp",
        before=lambda x, d: sub(x, _logsumexp(x, d)),
        after=lambda root, x, d: log_softmax(like(x, root), dim=d),
        samples=[shapes("b m n", d=-1)],
        near_misses=[lambda x: sub(neg(x), _logsumexp(x, 0))],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
    # exp(log_softmax(x)) -> softmax(x)
    Rule(
        name="exp-of-log-softmax",
        before=lambda x, d: exp(log_softmax(x, dim=d)),
        after=lambda root, x, d: softmax(like(x, root), dim=d),
        samples=[shapes("b m n", d=1)],
        near_misses=[lambda x: exp(log(x))],
        tolerance=ROUNDING,
        through_casts=True,
    ),
)

RULES = (*ACTIVATIONS, *CLAMPS, *SQUARES, *NORMS, *SOFTMAX)
