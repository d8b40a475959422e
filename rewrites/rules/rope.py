"""Rotary position embeddings."""

from __future__ import annotations

from typing import Any

from ...ir.node import Node
from ...ir.ops import add, concat, mul, neg, rope, slice_
from ..rule import ROUNDING, Rule
from ..sample import shapes


def _rotated(x: Any, h: Any, n: Any) -> Node:
    """The pattern of x with its halves exchanged, the second one negated: (-x[h:], x[:h])."""
    return concat(neg(slice_(x, dim=-1, start=h, stop=n)), slice_(x, dim=-1, start=0, stop=h), dim=-1)


def _turned_back(x: Any, h: Any, n: Any) -> Node:
    return concat(slice_(x, dim=-1, start=h, stop=n), neg(slice_(x, dim=-1, start=0, stop=h)), dim=-1)


def _is_whole(x: Node, h: Any, n: Any) -> bool:
    return bool(n == x.shape[-1] and n == 2 * h)


RULES = (
    # x cos + (-x[h:], x[:h]) sin -> rope(x, cos, sin)
    Rule(
        name="rope-of-halves",
        before=lambda x, cos, sin, h, n: add(mul(x, cos), mul(_rotated(x, h, n), sin)),
        when=lambda root, x, cos, sin, h, n: _is_whole(x, h, n) and root.type == x.type and cos.type == sin.type,
        after=lambda x, cos, sin: rope(x, cos, sin),
        samples=[
            shapes("b H s 2*D", "1 1 s 2*D", "1 1 s 2*D", h=lambda D: D, n=lambda D: 2 * D),
            shapes("b H s 2*D", "s 2*D", "s 2*D", h=lambda D: D, n=lambda D: 2 * D),
        ],
        near_misses=[
            shapes("H s 2*D", "3 1 s 2*D", "3 1 s 2*D", h=lambda D: D, n=lambda D: 2 * D),
            shapes("b H 3 2*D", "3 2*D", "1 2*D", h=lambda D: D, n=lambda D: 2 * D),
            lambda x, cos, sin, h, n: add(mul(x, cos), mul(_turned_back(x, h, n), sin)),
        ],
        tolerance=ROUNDING,
    ),
)
