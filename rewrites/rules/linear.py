"""Linear layers: products with a weight matrix, in whatever layout they are written."""

from __future__ import annotations

from ...ir.node import Node
from ...ir.ops import add, linear, matmul, mul, neg, permute, reshape
from ...ir.types import Dim, Shape
from ..rule import ROUNDING, Rule
from ..sample import shapes
from .common import as_vector, from_weights, is_row


def _is_matrix_of_weights(w: Node) -> bool:
    return w.tensor_type.rank == 2 and from_weights(w)


def _is_one_matrix_of_weights(w: Node) -> bool:
    return w.tensor_type.rank > 2 and all(d == 1 for d in w.shape[:-2]) and from_weights(w)


def _keeps_rows(x: Node, shape: Shape) -> bool:
    """Whether a reshape of ``x`` leaves the last axis whole."""
    return bool(shape) and x.tensor_type.rank > 0 and shape[-1] == x.shape[-1] and shape != x.shape


def _ends_with(shape: Shape, size: Dim) -> bool:
    return bool(shape) and shape[-1] == size


RULES = (
    # x w -> linear(x, w^T) for weights w
    Rule(
        name="linear-of-matmul",
        before=lambda x, w: matmul(x, w),
        when=lambda w: _is_matrix_of_weights(w),
        after=lambda x, w: linear(x, permute(w, dims=(1, 0))),
        samples=[shapes("b m K", "weight: K N"), shapes("m K", "weight: K N")],
        near_misses=[shapes("m K", "K N"), shapes("b m K", "weight: 1 K N")],
        tolerance=ROUNDING,
    ),
    # x w -> linear(x, w^T) for one matrix of weights that has axes of 1 before it, as einsum makes them
    Rule(
        name="linear-of-matmul-with-one-matrix",
        before=lambda x, w: matmul(x, w),
        when=lambda x, w: _is_one_matrix_of_weights(w) and w.tensor_type.rank <= x.tensor_type.rank,
        after=lambda x, w: linear(x, permute(reshape(w, shape=w.shape[-2:]), dims=(1, 0))),
        samples=[shapes("b m K", "weight: 1 K N"), shapes("1 m K", "weight: 1 K N")],
        near_misses=[
            shapes("m K", "weight: 1 K N"),
            shapes("b m K", "weight: b K N"),
            shapes("b m K", "1 K N"),
            shapes("b m K", "weight: K N"),
        ],
        tolerance=ROUNDING,
    ),
    # linear(x, w) + b -> linear(x, w, b)
    Rule(
        name="linear-bias",
        before=lambda x, w, b: add(linear(x, w), b),
        when=lambda root, x, w, b: is_row(b, w.shape[0]) and root.shape[:-1] == x.shape[:-1] and from_weights(b),
        after=lambda x, w, b: linear(x, w, as_vector(b)),
        samples=[shapes("b m K", "weight: N K", "weight: N"), shapes("b m K", "weight: N K", "weight: 1 1 N")],
        near_misses=[
            shapes("b 2 K", "weight: N K", "weight: 2 N"),
            shapes("b m K", "weight: N K", "N"),
            shapes("m K", "weight: N K", "weight: 1 1 N"),
            lambda x, w, b: mul(linear(x, w), b),
        ],
        tolerance=ROUNDING,
    ),
    # linear(reshape(x), w) -> reshape(linear(x, w)) where rows stay whole
    Rule(
        name="linear-of-reshaped",
        before=lambda x, s, *ws: linear(reshape(x, shape=s), *ws),
        when=lambda x, s: _keeps_rows(x, s),
        after=lambda root, x, *ws: reshape(linear(x, *ws), shape=root.shape),
        samples=[
            shapes("b m K", "weight: N K", s=lambda b, m, K: (b * m, K)),
            shapes("m K", "weight: N K", "weight: N", s=lambda m, K: (m, 1, K)),
        ],
        near_misses=[
            shapes("m 3 2", "weight: N 6", s=lambda m: (m, 6)),
            lambda x, *ws: linear(neg(x), *ws),
        ],
        tolerance=ROUNDING,
    ),
    # reshape(linear(x, w)) + b -> reshape(linear(x, w, b)) where rows stay whole
    Rule(
        name="linear-bias-after-reshape",
        before=lambda x, w, b, s: add(reshape(linear(x, w), shape=s), b),
        when=lambda root, w, b, s: (
            is_row(b, w.shape[0]) and _ends_with(s, w.shape[0]) and root.shape == s and from_weights(b)
        ),
        after=lambda x, w, b, s: reshape(linear(x, w, as_vector(b)), shape=s),
        samples=[shapes("b m K", "weight: N K", "weight: N", s=lambda b, m, N: (b * m, N))],
        near_misses=[
            shapes("b m K", "weight: N K", "weight: 1 1 1 N", s=lambda b, m, N: (b * m, N)),
            shapes("b m K", "weight: N K", "N", s=lambda b, m, N: (b * m, N)),
            shapes("b 2 K", "weight: 3 K", "weight: 2", s=lambda b: (b, 3, 2)),
        ],
        tolerance=ROUNDING,
    ),
    # reshape(linear(reshape(x), w)) -> linear(reshape(x), w) where rows stay whole
    Rule(
        name="linear-between-reshapes",
        before=lambda x, s, t, *ws: reshape(linear(reshape(x, shape=s), *ws), shape=t),
        when=lambda t, *ws: _ends_with(t, ws[0].shape[0]),
        after=lambda s, t, x, *ws: linear(reshape(x, shape=(*t[:-1], s[-1])), *ws),
        samples=[
            shapes("b m K 3", "weight: N 3*K", s=lambda b, m, K: (b * m, 3 * K), t=lambda b, m, N: (b, m, N)),
        ],
        near_misses=[
            shapes("b m K 3", "weight: 4 3*K", s=lambda b, m, K: (b * m, 3 * K), t=lambda b, m: (b, m, 2, 2)),
        ],
        tolerance=ROUNDING,
    ),
)
