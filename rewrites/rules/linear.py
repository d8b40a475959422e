"""Linear layers: products with a weight matrix, in whatever layout they are written."""

from __future__ import annotations


from ...ir.node import Node
from ...ir.ops import add, linear, matmul, mul, neg, permute, reshape
from ...ir.types import Shape
from ..rule import ROUNDING, Rule
from ..sample import shapes
from .common import as_vector, from_weights, is_row


def _is_matrix_of_weights(w: Node) -> bool:
    return w.tensor_type.rank == 2 and from_weights(w)


def _keeps_rows(x: Node, shape: Shape) -> bool:
    """Whether a reshape of ``x`` leaves the last axis whole."""
    return bool(shape) and x.tensor_type.rank > 0 and shape[-1] == x.shape[-1] and shape != x.shape


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
            shapes("m K 2", "weight: N 2*K", s=lambda m, K: (m, 2 * K)),
            lambda x, *ws: linear(neg(x), *ws),
        ],
        tolerance=ROUNDING,
    ),
)
