"""Norms and softmax from means, variances and exponentials, and the affine parts around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir.node import Node
from ...ir.ops import (
    add,
    amax,
    div,
    exp,
    layer_norm,
    log,
    log_softmax,
    mean,
    mul,
    neg,
    rms_norm,
    rsqrt,
    scalar_like,
    softmax,
    sqrt,
    sub,
    var,
)
from ...ir.ops import sum as sum_
from ...ir.types import canonical_dim, product, symbol
from ..pattern import constant
from ..rule import ROUNDING, Domain, Rule
from ..sample import shapes
from .common import as_vector, from_weights, is_number, is_row, like


def _is_count(x: Node, dims: Sequence[int], value: Any) -> bool:
    """Whether a constant is the number of elements along the axes."""
    count = product(x.shape[d] for d in dims)
    return bool(value == count if is_number(value) else canonical_dim(value) == count)


def _is_inverse_count(x: Node, dims: Sequence[int], factor: float) -> bool:
    count = product(x.shape[d] for d in dims)
    return isinstance(count, int) and count > 0 and factor == 1.0 / count


def _squared(x: Node) -> Node:
    return mul(x, x)


def _centred(x: Node) -> Node:
    return sub(x, mean(x, dims=(-1,), keepdim=True))


def _shifted(x: Node) -> Node:
    return add(x, scalar_like(1e-5, x))


def _shifted_by_max(x: Node, d: Any) -> Node:
    return sub(x, amax(x, dims=(d,), keepdim=True))


def _shifted_exp(x: Node, d: Any) -> Node:
    return exp(_shifted_by_max(x, d))


def _shifted_variance(x: Node, eps: Any) -> Node:
    return add(var(x, dims=(-1,), keepdim=True, correction=0), constant(eps))


def _mean_square(x: Node, eps: Any) -> Node:
    return add(mean(mul(x, x), dims=(-1,), keepdim=True), constant(eps))


UNKNOWN_EPS = shapes("b m n", eps=symbol("n"))

STATISTICS = (
    # sum(x) / n -> mean(x)
    Rule(
        name="mean-of-sum",
        before=lambda x, d, k, n: div(sum_(x, dims=d, keepdim=k), constant(n)),
        when=lambda x, d, n: x.dtype.is_floating_point and _is_count(x, d, n),
        after=lambda root, x, d, k: mean(like(x, root), dims=d, keepdim=k),
        samples=[shapes("m 8", d=(-1,), k=True, n=8.0), shapes("m n 3", d=(0, 2), k=False, n=lambda m: 3 * m)],
        near_misses=[shapes("m 8", d=(1,), k=True, n=7.0)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
    # sum(x) (1 / n) -> mean(x)
    Rule(
        name="mean-of-scaled-sum",
        before=lambda x, d, k, c: mul(sum_(x, dims=d, keepdim=k), constant(c)),
        when=lambda x, d, c: x.dtype.is_floating_point and is_number(c) and _is_inverse_count(x, d, c),
        after=lambda root, x, d, k: mean(like(x, root), dims=d, keepdim=k),
        samples=[shapes("m 8", d=(-1,), k=True, c=0.125), shapes("m 7", d=(1,), k=False, c=1 / 7)],
        near_misses=[shapes("m 8", d=(1,), k=True, c=0.25), shapes("m n", d=(1,), k=True, c=0.0)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
    # mean((x - mean(x))^2) -> var(x)
    Rule(
        name="variance-of-squares",
        before=lambda x, d, k: mean(_squared(sub(x, mean(x, dims=d, keepdim=True))), dims=d, keepdim=k),
        after=lambda root, x, d, k: var(like(x, root), dims=d, keepdim=k, correction=0),
        samples=[shapes("m n", d=(-1,), k=True), shapes("m n k", d=(0, 1), k=False)],
        near_misses=[lambda x: mean(mul(x, x), dims=(1,))],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
)


NORMS = (
    # (x - mean(x)) rsqrt(var(x) + eps) -> layer_norm(x)
    Rule(
        name="layer-norm-of-rsqrt",
        before=lambda x, eps: mul(_centred(x), rsqrt(_shifted_variance(x, eps))),
        when=lambda eps: is_number(eps),
        after=lambda root, x, eps: layer_norm(like(x, root), eps=eps),
        samples=[shapes("b m n", eps=1e-5)],
        near_misses=[
            UNKNOWN_EPS,
            lambda x: mul(_centred(x), rsqrt(_shifted(mean(mul(x, x), dims=(-1,), keepdim=True)))),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
    # (x - mean(x)) / sqrt(var(x) + eps) -> layer_norm(x)
    Rule(
        name="layer-norm-of-sqrt",
        before=lambda x, eps: div(_centred(x), sqrt(_shifted_variance(x, eps))),
        when=lambda eps: is_number(eps),
        after=lambda root, x, eps: layer_norm(like(x, root), eps=eps),
        samples=[shapes("b m n", eps=1e-5)],
        near_misses=[UNKNOWN_EPS, lambda x: div(_centred(x), sqrt(_shifted(var(x, dims=(-1,), keepdim=True))))],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
    # x rsqrt(mean(x^2) + eps) -> rms_norm(x)
    Rule(
        name="rms-norm-of-rsqrt",
        before=lambda x, eps: mul(x, rsqrt(_mean_square(x, eps))),
        when=lambda eps: is_number(eps),
        after=lambda root, x, eps: rms_norm(like(x, root), eps=eps),
        samples=[shapes("b m n", eps=1e-6)],
        near_misses=[UNKNOWN_EPS, lambda x: mul(x, rsqrt(_shifted(mean(mul(x, x), dims=(0,), keepdim=True))))],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
    # x / sqrt(mean(x^2) + eps) -> rms_norm(x)
    Rule(
        name="rms-norm-of-sqrt",
        before=lambda x, eps: div(x, sqrt(_mean_square(x, eps))),
        when=lambda eps: is_number(eps),
        after=lambda root, x, eps: rms_norm(like(x, root), eps=eps),
        samples=[shapes("b m n", eps=1e-6)],
        near_misses=[UNKNOWN_EPS, lambda x: div(x, sqrt(_shifted(mean(x, dims=(-1,), keepdim=True))))],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
)


def _is_affine(root: Node, x: Node, a: Node) -> bool:
    """Whether ``a`` has one element for each position of the last axis of ``x``, and the root no other shape than x."""
    return root.shape == x.shape and is_row(a, x.shape[-1])


AFFINE = (
    # layer_norm(x) w -> layer_norm(x, w)
    Rule(
        name="layer-norm-scale",
        before=lambda x, w, eps: mul(layer_norm(x, eps=eps), w),
        when=lambda root, x, w: _is_affine(root, x, w),
        after=lambda x, w, eps: layer_norm(x, as_vector(w), eps=eps),
        samples=[shapes("b m N", "N", eps=1e-5), shapes("b m N", "1 1 N", eps=1e-5)],
        near_misses=[shapes("b 2 N", "2 N", eps=1e-5), shapes("1 N", "b 1 N", eps=1e-5), lambda x, w: mul(x, w)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # layer_norm(x, w) + b -> layer_norm(x, w, b)
    Rule(
        name="layer-norm-shift",
        before=lambda x, w, b, eps: add(layer_norm(x, w, eps=eps), b),
        when=lambda root, x, w, b: _is_affine(root, x, b) and b.dtype == w.dtype,
        after=lambda x, w, b, eps: layer_norm(x, w, as_vector(b), eps=eps),
        samples=[shapes("b m N", "N", "N", eps=1e-5), shapes("b m N", "N", "1 1 N", eps=1e-5)],
        near_misses=[
            shapes("b 2 N", "N", "2 N", eps=1e-5),
            shapes("bf16: m N", "f32: N", "bf16: N", eps=1e-5),
            lambda x, w, b: add(layer_norm(x, eps=1e-5), b),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # rms_norm(x) w -> rms_norm(x, w)
    Rule(
        name="rms-norm-scale",
        before=lambda x, w, eps: mul(rms_norm(x, eps=eps), w),
        when=lambda root, x, w: _is_affine(root, x, w),
        after=lambda x, w, eps: rms_norm(x, as_vector(w), eps=eps),
        samples=[shapes("b m N", "N", eps=1e-5), shapes("b m N", "1 1 N", eps=1e-5)],
        near_misses=[shapes("b 2 N", "2 N", eps=1e-5), shapes("1 N", "b 1 N", eps=1e-5), lambda x, w: mul(x, w)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # rms_norm(x, w) c -> rms_norm(x, w c)
    Rule(
        name="rms-norm-times-constant",
        before=lambda x, w, c, eps: mul(rms_norm(x, w, eps=eps), constant(c)),
        when=lambda c, w: is_number(c) and from_weights(w),
        after=lambda x, w, c, eps: rms_norm(x, mul(w, scalar_like(c, w)), eps=eps),
        samples=[shapes("b m N", "weight: N", c=0.5, eps=1e-5)],
        near_misses=[shapes("b m N", "N", c=0.5, eps=1e-5), lambda x, w: mul(rms_norm(x, eps=1e-5), w)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
)

SOFTMAX = (
    # exp(x - max(x)) / sum(exp(x - max(x))) -> softmax(x)
    Rule(
        name="softmax-of-exp",
        before=lambda x, d: div(_shifted_exp(x, d), sum_(_shifted_exp(x, d), dims=(d,), keepdim=True)),
        after=lambda root, x, d: softmax(like(x, root), dim=d),
        samples=[shapes("b m n", d=-1), shapes("b m n", d=0)],
        near_misses=[lambda x: div(_shifted_exp(x, 0), sum_(_shifted_exp(x, 1), dims=(1,), keepdim=True))],
        tolerance=ROUNDING,
        through_casts=True,
    ),
    # exp(x) / sum(exp(x)) -> softmax(x), which does not overflow
    Rule(
        name="softmax-of-plain-exp",
        before=lambda x, d: div(exp(x), sum_(exp(x), dims=(d,), keepdim=True)),
        when=lambda x: x.op is not sub,
        after=lambda root, x, d: softmax(like(x, root), dim=d),
        samples=[shapes("b m n", d=-1)],
        near_misses=[
            lambda x: div(_shifted_exp(x, 0), sum_(_shifted_exp(x, 0), dims=(0,), keepdim=True)),
            lambda x: div(exp(x), sum_(exp(neg(x)), dims=(0,), keepdim=True)),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
    # x - max(x) - log(sum(exp(x - max(x)))) -> log_softmax(x)
    Rule(
        name="log-softmax-of-exp",
        before=lambda x, d: sub(_shifted_by_max(x, d), log(sum_(_shifted_exp(x, d), dims=(d,), keepdim=True))),
        after=lambda root, x, d: log_softmax(like(x, root), dim=d),
        samples=[shapes("b m n", d=-1)],
        near_misses=[lambda x: sub(x, log(sum_(_shifted_exp(x, 1), dims=(1,), keepdim=True)))],
        tolerance=ROUNDING,
        through_casts=True,
    ),
    # log(softmax(x)) -> log_softmax(x), which keeps what softmax rounds to 0
    Rule(
        name="log-of-softmax",
        before=lambda x, d: log(softmax(x, dim=d)),
        after=lambda root, x, d: log_softmax(like(x, root), dim=d),
        samples=[shapes("b m n", d=1)],
        near_misses=[lambda x: log(exp(x))],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
)

RULES = (*STATISTICS, *NORMS, *AFFINE, *SOFTMAX)
