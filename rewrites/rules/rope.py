"""Rotary position embeddings."""

from __future__ import annotations

from typing import Any

from ...ir.node import Node
from ...ir.ops import add, concat, mul, neg, reshape, rope, slice_
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


def _is_part(root: Node, x: Node, a: Any, n: Any) -> bool:
    """Whether the root has the type of x[a:n]."""
    return bool(root.shape == (*x.shape[:-1], n - a) and root.dtype == x.dtype)


def _are_pairs(root: Node, a: Any, n: Any, o: Any, b: Any, c: Any, s: Any) -> bool:
    """Whether slices of step 2 from a + 1 and a take all of [a, n), and are then put side by side."""
    size = n - a
    return size % 2 == 0 and (o, b) == (a + 1, n) and c in (n - 1, n) and s == (*root.shape[:-1], size // 2, 1)


def _pair(**other: Any) -> dict[str, Any]:
    """The attributes of a sample of pairs of neighbours."""
    reshapes = {"s": lambda b, H, s: (b, H, s, 3, 1), "t": lambda b, H, s: (b, H, s, 6)}
    return {"a": 0, "o": 1, "b": 6, "c": 5} | reshapes | other


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
    # x[a:n] cos + (-x[h:n], x[a:h]) sin -> rope(x[a:n], cos, sin)
    Rule(
        name="rope-of-some-elements",
        before=lambda x, cos, sin, a, h, n: add(
            mul(slice_(x, dim=-1, start=a, stop=n), cos),
            mul(concat(neg(slice_(x, dim=-1, start=h, stop=n)), slice_(x, dim=-1, start=a, stop=h), dim=-1), sin),
        ),
        when=lambda root, x, cos, sin, a, h, n: n - h == h - a and _is_part(root, x, a, n) and cos.type == sin.type,
        after=lambda x, cos, sin, a, n: rope(slice_(x, dim=-1, start=a, stop=n), cos, sin),
        samples=[
            shapes("b H s 9", "1 1 s 4", "1 1 s 4", a=0, h=2, n=4),
            shapes("b H s 8", "s 6", "s 6", a=2, h=5, n=8),
        ],
        near_misses=[
            shapes("b H s 9", "s 4", "s 4", a=0, h=1, n=4),
            shapes("b 2 9", "3 1 2 4", "3 1 2 4", a=0, h=2, n=4),
            shapes("b 3 9", "3 4", "1 4", a=2, h=4, n=6),
        ],
        tolerance=ROUNDING,
    ),
    # x cos + (-x[1], x[0], -x[3], x[2], ...) sin -> rope(x, cos, sin, interleaved)
    Rule(
        name="rope-of-neighbours",
        before=lambda x, cos, sin, a, o, b, c, s, t: add(mul(x, cos), mul(_turned(x, a, o, b, c, s, t), sin)),
        when=lambda root, x, cos, sin, a, o, b, c, s: (
            a == 0 and _are_pairs(root, 0, x.shape[-1], o, b, c, s) and root.type == x.type and cos.type == sin.type
        ),
        after=lambda x, cos, sin: rope(x, cos, sin, interleaved=True),
        samples=[shapes("b H s 6", "1 1 s 6", "1 1 s 6", **_pair()), shapes("b H s 6", "s 6", "s 6", **_pair(c=6))],
        near_misses=[
            shapes("b H 2 6", "2 6", "2 6", **_pair(s=lambda b, H: (b, H, 3, 2, 1), t=lambda b, H: (b, H, 2, 6))),
            lambda x, cos, sin, a, o, b, c, s, t: add(mul(x, cos), mul(_turned_wrongly(x, a, o, b, c, s, t), sin)),
            shapes("b H 3 6", "3 6", "1 6", **_pair(s=lambda b, H: (b, H, 3, 3, 1), t=lambda b, H: (b, H, 3, 6))),
        ],
        tolerance=ROUNDING,
    ),
    # x[a:n] cos + (-x[a+1], x[a], ...) sin -> rope(x[a:n], cos, sin, interleaved)
    Rule(
        name="rope-of-some-neighbours",
        before=lambda x, cos, sin, n, a, o, b, c, s, t: add(
            mul(slice_(x, dim=-1, start=a, stop=n), cos), mul(_turned(x, a, o, b, c, s, t), sin)
        ),
        when=lambda root, x, cos, sin, n, a, o, b, c, s: (
            _are_pairs(root, a, n, o, b, c, s) and _is_part(root, x, a, n) and cos.type == sin.type
        ),
        after=lambda x, cos, sin, a, n: rope(slice_(x, dim=-1, start=a, stop=n), cos, sin, interleaved=True),
        samples=[
            shapes("b H s 9", "1 1 s 6", "1 1 s 6", n=6, **_pair()),
            shapes("b H s 9", "s 6", "s 6", n=8, **_pair(a=2, o=3, b=8, c=7)),
        ],
        near_misses=[
            shapes("b H 3 9", "3 6", "1 6", n=6, **_pair(s=lambda b, H: (b, H, 3, 3, 1), t=lambda b, H: (b, H, 3, 6))),
            shapes("b H 2 9", "2 6", "2 6", n=6, **_pair(s=lambda b, H: (b, H, 3, 2, 1), t=lambda b, H: (b, H, 2, 6))),
            shapes("b H s 9", "s 6", "s 6", n=6, **_pair(o=2, b=7)),
        ],
        tolerance=ROUNDING,
    ),
)
