"""Rotary position embeddings."""

from __future__ import annotations

from typing import Any

from ...ir.node import Node
from ...ir.ops import add, concat, exp, mul, neg, reshape, rope, slice_
from ...ir.types import Dim, Shape, canonical_dim
from ..rule import ROUNDING, Rule
from ..sample import shapes


def _rotated(x: Any, h: Any, n: Any) -> Node:
    """The pattern of x with its halves exchanged, the second one negated: (-x[h:], x[:h])."""
    return concat(neg(slice_(x, dim=-1, start=h, stop=n)), slice_(x, dim=-1, start=0, stop=h), dim=-1)


def _turned_back(x: Any, h: Any, n: Any) -> Node:
    return concat(slice_(x, dim=-1, start=h, stop=n), neg(slice_(x, dim=-1, start=0, stop=h)), dim=-1)


def _turned(x: Any, a: Any, o: Any, b: Any, c: Any, s: Any, t: Any) -> Node:
    """The pattern of the neighbours of x[a:] exchanged, the second one negated: (-x[a+1], x[a], -x[a+3], ...)."""
    odd, even = slice_(x, dim=-1, start=o, stop=b, step=2), slice_(x, dim=-1, start=a, stop=c, step=2)
    return reshape(concat(reshape(neg(odd), shape=s), reshape(even, shape=s), dim=-1), shape=t)


def _turned_wrongly(x: Any, a: Any, o: Any, b: Any, c: Any, s: Any, t: Any) -> Node:
    odd, even = slice_(x, dim=-1, start=o, stop=b, step=2), slice_(x, dim=-1, start=a, stop=c, step=2)
    return reshape(concat(reshape(odd, shape=s), reshape(neg(even), shape=s), dim=-1), shape=t)


def _is_whole(x: Node, h: Any, n: Any) -> bool:
    return bool(n == x.shape[-1] and n == 2 * h)


def _pairs_turned(x: Any, odd: tuple[Any, Any], even: tuple[Any, Any], t: Any, s: Any) -> Node:
    """The pattern of x with neighbours exchanged, the first of the result negated: (-x[1], x[0], -x[3], x[2], …)."""
    second = neg(slice_(x, dim=-1, start=odd[0], stop=odd[1], step=2))
    first = slice_(x, dim=-1, start=even[0], stop=even[1], step=2)
    return reshape(concat(reshape(second, shape=t), reshape(first, shape=t), dim=-1), shape=s)


def _are_pairs(part: Node, start: Dim, odd: tuple[Dim, Dim], even: tuple[Dim, Dim], t: Shape) -> bool:
    """Whether slices in steps of two take each pair of a part that begins at ``start`` apart."""
    size = part.shape[-1]
    starts = odd[0] == canonical_dim(start + 1) and even[0] == start
    half = canonical_dim(size // 2)
    whole = all(canonical_dim((stop - low + 1) // 2) == half for low, stop in (odd, even))
    return bool(starts and whole and size == 2 * half and t == (*part.shape[:-1], half, 1))


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
    # x[a:b] cos + (-x[m:b], x[a:m]) sin -> rope(x[a:b], cos, sin)
    Rule(
        name="rope-of-part",
        before=lambda x, cos, sin, a, m, b: add(
            mul(slice_(x, dim=-1, start=a, stop=b), cos),
            mul(concat(neg(slice_(x, dim=-1, start=m, stop=b)), slice_(x, dim=-1, start=a, stop=m), dim=-1), sin),
        ),
        when=lambda root, x, cos, sin, a, m, b: (
            canonical_dim(m - a) == canonical_dim(b - m)
            and root.shape == (*x.shape[:-1], canonical_dim(b - a))
            and cos.type == sin.type
        ),
        after=lambda x, cos, sin, a, b: rope(slice_(x, dim=-1, start=a, stop=b), cos, sin),
        samples=[
            shapes("b H s 4*D", "1 1 s 2*D", "1 1 s 2*D", a=0, m=lambda D: D, b=lambda D: 2 * D),
            shapes("b s 3*D", "2*D", "2*D", a=lambda D: D, m=lambda D: 2 * D, b=lambda D: 3 * D),
        ],
        near_misses=[
            shapes("b 8", "3", "3", a=0, m=1, b=3),
            shapes("1 8", "3 4", "3 4", a=0, m=2, b=4),
            shapes("3 8", "3 4", "1 4", a=0, m=2, b=4),
            lambda x, cos: mul(slice_(x, dim=-1, start=0, stop=1), exp(cos)),
        ],
        tolerance=ROUNDING,
    ),
    # x cos + (-x[1], x[0], -x[3], x[2], …) sin -> rope(x, cos, sin, interleaved)
    Rule(
        name="rope-of-pairs",
        before=lambda x, cos, sin, a, u, b, v, t, s: add(mul(x, cos), mul(_pairs_turned(x, (a, u), (b, v), t, s), sin)),
        when=lambda root, x, cos, sin, a, u, b, v, t, s: (
            _are_pairs(x, 0, (a, u), (b, v), t) and s == x.shape and root.type == x.type and cos.type == sin.type
        ),
        after=lambda x, cos, sin: rope(x, cos, sin, interleaved=True),
        samples=[
            shapes(
                *("b H s 2*D", "1 1 s 2*D", "1 1 s 2*D"),
                a=1,
                u=lambda D: 2 * D,
                b=0,
                v=lambda D: 2 * D - 1,
                t=lambda b, H, s, D: (b, H, s, D, 1),
                s=lambda b, H, s, D: (b, H, s, 2 * D),
            )
        ],
        near_misses=[
            shapes("3 4", "4", "4", a=0, u=4, b=1, v=4, t=(3, 2, 1), s=(3, 4)),
            shapes("3 4", "4", "4", a=1, u=4, b=0, v=4, t=(2, 3, 1), s=(3, 4)),
            shapes("1 4", "3 4", "3 4", a=1, u=4, b=0, v=4, t=(1, 2, 1), s=(1, 4)),
            shapes("3 4", "3 4", "1 4", a=1, u=4, b=0, v=4, t=(3, 2, 1), s=(3, 4)),
            lambda x, cos: mul(x, exp(cos)),
        ],
        tolerance=ROUNDING,
    ),
    # the same of a part: x[f:g] cos + (-x[f+1], x[f], …) sin -> rope(x[f:g], cos, sin, interleaved)
    Rule(
        name="rope-of-pairs-of-part",
        before=lambda x, cos, sin, f, g, a, u, b, v, t, s: add(
            mul(slice_(x, dim=-1, start=f, stop=g), cos), mul(_pairs_turned(x, (a, u), (b, v), t, s), sin)
        ),
        when=lambda root, x, cos, sin, f, g, a, u, b, v, t, s: (
            _are_pairs(slice_(x, dim=-1, start=f, stop=g), f, (a, u), (b, v), t)
            and root.shape == s == (*x.shape[:-1], canonical_dim(g - f))
            and cos.type == sin.type
        ),
        after=lambda x, cos, sin, f, g: rope(slice_(x, dim=-1, start=f, stop=g), cos, sin, interleaved=True),
        samples=[
            shapes(
                *("b s H 4*D", "1 s 1 2*D", "1 s 1 2*D"),
                f=0,
                g=lambda D: 2 * D,
                a=1,
                u=lambda D: 2 * D,
                b=0,
                v=lambda D: 2 * D - 1,
                t=lambda b, s, H, D: (b, s, H, D, 1),
                s=lambda b, s, H, D: (b, s, H, 2 * D),
            ),
            shapes("m 6", "4", "4", f=2, g=6, a=3, u=6, b=2, v=5, t=lambda m: (m, 2, 1), s=lambda m: (m, 4)),
        ],
        near_misses=[
            shapes("3 6", "4", "4", f=1, g=5, a=3, u=6, b=2, v=5, t=(3, 2, 1), s=(3, 4)),
            shapes("1 6", "3 4", "3 4", f=2, g=6, a=3, u=6, b=2, v=5, t=(1, 2, 1), s=(1, 4)),
            lambda x, cos: mul(slice_(x, dim=-1, start=0, stop=1), exp(cos)),
        ],
        tolerance=ROUNDING,
    ),
)
