"""The terms of a product in the order in which they lie in memory."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.node import Node
from ...ir.ops import linear, neg, permute, reshape
from ...ir.types import Shape, canonical_dim
from ..rule import ROUNDING, Domain, Rule
from ..sample import shapes
from .common import from_weights


def _terms(x: Node, p: Sequence[int], s: Shape) -> tuple[int, ...] | None:
    """The axes of ``x`` that are the last axis of ``reshape(permute(x, p), s)``; None where it holds no whole axes."""
    count, size = 0, canonical_dim(1)
    while size != s[-1] and count < len(p):
        count += 1
        size = canonical_dim(size * x.shape[p[-count]])
    whole = size == s[-1] and all(isinstance(x.shape[d], int) and x.shape[d] != 1 for d in p[len(p) - count :])
    return tuple(p[len(p) - count :]) if whole else None


def _are_out_of_order(x: Node, p: Sequence[int], s: Shape) -> bool:
    terms = _terms(x, p, s) if s else None
    return terms is not None and list(terms) != sorted(terms)


def _in_order(x: Node, p: Sequence[int], s: Shape, w: Node, *bias: Node) -> Node:
    terms = _terms(x, p, s)
    assert terms is not None
    order = sorted(terms)
    outputs = w.shape[0]
    split = reshape(w, shape=(outputs, *(x.shape[d] for d in terms)))
    matrix = reshape(permute(split, dims=(0, *(1 + terms.index(d) for d in order))), shape=w.shape)
    rows = reshape(permute(x, dims=(*p[: len(p) - len(terms)], *order)), shape=s)
    return linear(rows, matrix, *bias)


RULES = (
    # linear(reshape(permute(x)), w) -> linear(reshape(permute(x)), permute(w)), so that x is read in its own order:
    # patches side by side of what has its channels last
    Rule(
        name="terms-in-order",
        before=lambda x, p, s, *ws: linear(reshape(permute(x, dims=p), shape=s), *ws),
        when=lambda x, p, s, *ws: _are_out_of_order(x, p, s) and from_weights(ws[0]),
        after=lambda x, p, s, *ws: _in_order(x, p, s, *ws),
        samples=[
            shapes("m n 2 5", "weight: N 10", p=(0, 1, 3, 2), s=lambda m, n: (m, n, 10)),
            shapes("m n 2 3 4", "weight: N 24", "weight: N", p=(1, 0, 4, 3, 2), s=lambda m, n: (m * n, 24)),
            shapes("m 2 n 3", "weight: N 6", p=(2, 0, 3, 1), s=lambda m, n: (n, m, 6)),
        ],
        near_misses=[
            shapes("m 2 n 3", "weight: N 6", p=(2, 0, 1, 3), s=lambda m, n: (n, m, 6)),
            shapes("m n 2 5", "N 10", p=(0, 1, 3, 2), s=lambda m, n: (m, n, 10)),
            shapes("4 6 5", "weight: N 10", p=(0, 2, 1), s=(12, 10)),
            lambda x, s, *ws: linear(reshape(neg(x), shape=s), *ws),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,  # what overflows on the way depends on the order of a sum
    ),
)
