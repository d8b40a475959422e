"""Norms and softmax from means, variances and exponentials, and the affine parts around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir.node import Node
from ...ir.ops import (
    add,
    amax,
    cast,
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
from ...ir.types import canonical_dim, product
from ..pattern import constant
from ..rule import ROUNDING, Domain, Rule
from ..sample import shapes
from .common import as_vector, is_number, is_row


def _is_count(x: Node, dims: Sequence[int], value: Any) -> bool:
    """Whether a constant is the number of elements along the axes."""
    count = product(x.shape[d] for d in dims)
    return bool(value == count if is_number(value) else canonical_dim(value) == count)


STATISTICS = (
    # sum(x) / n -> mean(x)
    Rule(
        name="mean-of-sum",
        before=lambda x, d, k, n: div(sum_(x, dims=d, keepdim=k), constant(n)),
        when=lambda x, d, n: x.dtype.is_floating_point and _is_count(x, d, n),
        after=lambda x, d, k: mean(x, dims=d, keepdim=k),
        samples=[shapes("m 8", d=(-1,), k=True, n=8.0), shapes("m n 3", d=(0, 2), k=False, n=lambda m: 3 * m)],
        near_misses=[shapes("m 8", d=(1,), k=True, n=7.0)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # sum(x) (1 / n) -> mean(x)
    Rule(
        name="mean-of-scaled-sum",
        before=lambda x, d, k, c: mul(sum_(x, dims=d, keepdim=k), constant(c)),
        when=lambda x, d, c: x.dtype.is_floating_point and is_number(c) and _is_inverse_count(x, d, c),
        after=lambda x, d, k: mean(x, dims=d, keepdim=k),
        samples=[shapes("m 8", d=(-1,), k=True, c=0.125), shapes("m 7", d=(1,), k=False, c=1 / 7)],
        near_misses=[shapes("m 8", d=(1,), k=True, c=0.25), shapes("m n", d=(1,), k=True, c=0.0)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # mean((x - mean(x))^2) -> var(x)
    Rule(
        name="variance-of-squares",
        before=lambda x, d, k: mean(_squared(sub(x, mean(x, dims=d, keepdim=True))), dims=d, keepdim=k),
        after=lambda x, d, k: var(x, dims=d, keepdim=k, correction=0),
        samples=[shapes("m n", d=(-1,), k=True), shapes("m n k", d=(0, 1), k=False)],
        near_misses=[lambda x: mean(mul(x, x), dims=(1,))],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
)


def _is_inverse_count(x: Node, dims: Sequence[int], factor: float) -> bool:
    count = product(x.shape[d] for d in dims)
    return isinstance(count, int) and count > 0 and factor == 1.0 / count


def _squared(x: Node) -> Node:
    return mul(x, x)


def _centred(x: Node) -> Node:
    return sub(x, mean(x, dims=(-1,), keepdim=True))


def _shifted_variance(x: Node, eps: Any) -> Node:
    return add(var(x, dims=(-1,), keepdim=True, correction=0), constant(eps))


def _mean_square(x: Node, eps: Any) -> Node:
    return add(mean(mul(x, x), dims=(-1,), keepdim=True), constant(eps))


NORMS = (
    # (x - mean(x)) rsqrt(var(x) + eps) -> layer_norm(x)
    Rule(
        name="layer-norm-of-rsqrt",
        before=lambda x, eps: mul(_centred(x), rsqrt(_shifted_variance(x, eps))),
        when=lambda eps: is_number(eps),
        after=lambda x, eps: layer_norm(x, eps=float(eps)),
        samples=[shapes("b m n", eps=1e-5)],
        near_misses=[_with_size, lambda x, eps: mul(_centred(x), rsqrt(_mean_square_of(x, eps)))],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # (x - mean(x)) / sqrt(var(x) + eps) -> layer_norm(x)
    Rule(
        name="layer-norm-of-sqrt",
        before=lambda x, eps: div(_centred(x), sqrt(_shifted_variance(x, eps))),
        when=lambda eps: is_number(eps),
        after=lambda x, eps: layer_norm(x, eps=float(eps)),
        samples=[shapes("b m n", eps=1e-5)],
        near_misses=[_with_size],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # x rsqrt(mean(x^2) + eps) -> rms_norm(x)
    Rule(
        name="rms-norm-of-rsqrt",
        before=lambda x, eps: mul(x, rsqrt(_mean_square(x, eps))),
        when=lambda eps: is_number(eps),
        after=lambda x, eps: rms_norm(x, eps=float(eps)),
        samples=[shapes("b m n", eps=1e-6)],
        near_misses=[_with_size],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # x / sqrt(mean(x^2) + eps) -> rms_norm(x)
    Rule(
        name="rms-norm-of-sqrt",
        before=lambda x, eps: div(x, sqrt(_mean_square(x, eps))),
        when=lambda eps: is_number(eps),
        after=lambda x, eps: rms_norm(x, eps=float(eps)),
        samples=[shapes("b m n", eps=1e-6)],
        near_misses=[_with_size],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
)
