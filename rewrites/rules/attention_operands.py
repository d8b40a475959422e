"""What the operator of attention takes in by itself: scales, repeated heads, masks.

A query that sees no key at all gets 0 from the operator, as it does before these rules.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ...ir.node import Node
from ...ir.ops import (
    arange,
    attention,
    bit_and,
    bit_not,
    expand,
    full,
    le,
    mul,
    reshape,
    scalar,
    scalar_like,
    where,
)
from ...ir.types import Shape
from ..pattern import constant
from ..rule import ROUNDING, Domain, Rule
from ..sample import shapes
from .attention import MINUS_INFINITY, mask_of_keys
from .common import is_number


def _is_repeat(x: Node, wide: Shape, flat: Shape) -> bool:
    """Whether an expand and a reshape repeat each head of [B, G, 1, S, D]: [B, G, R, S, D], then [B, G R, S, D]."""
    return (
        len(wide) == 5
        and x.tensor_type.rank == 5
        and x.shape == (*wide[:2], 1, *wide[3:])
        and len(flat) == 4
        and flat[0] == wide[0]
        and flat[2:] == wide[3:]
        and all(isinstance(dim, int) for dim in (wide[1], wide[2]))
    )


def _each_once(x: Node) -> Node:
    return reshape(x, shape=(*x.shape[:2], *x.shape[3:]))


def _lifted_to(mask: Node, rank: int) -> Node:
    missing = rank - mask.tensor_type.rank
    return reshape(mask, shape=(*[1] * missing, *mask.shape)) if missing else mask


def _later(q: Node, k: Node) -> Node:
    """A triangle one key wider than the causal one."""
    keys, queries = arange(size=k.shape[2]), arange(size=q.shape[2], start=1)
    return le(reshape(keys, shape=(1, k.shape[2])), reshape(queries, shape=(q.shape[2], 1)))


QKV = ("b H s D", "b H t D", "b H t E")
FLOAT_QKV = tuple(f"f32: {x}" for x in QKV)

OPERANDS = (
    # attention(c q, k, v, scale) -> attention(q, k, v, c scale)
    Rule(
        name="attention-of-scaled-queries",
        before=lambda q, c, k, v, causal, s, z, *m: attention(
            mul(q, constant(c)), k, v, *m, causal=causal, scale=s, softcap=z
        ),
        when=lambda c: is_number(c) and math.isfinite(c),
        after=lambda q, c, k, v, causal, s, z, *m: attention(q, k, v, *m, causal=causal, scale=s * c, softcap=z),
        samples=[
            shapes(*QKV, c=0.5, causal=True, s=0.25, z=0.0),
            shapes(*QKV, "s t", c=0.5, causal=False, s=1.0, z=2.0),
        ],
        near_misses=[
            shapes(*QKV, c=MINUS_INFINITY, causal=False, s=0.25, z=0.0),
            lambda q, k, v: attention(q, k, v, scale=1.0),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, c k, v, scale) -> attention(q, k, v, c scale)
    Rule(
        name="attention-of-scaled-keys",
        before=lambda q, k, c, v, causal, s, z, *m: attention(
            q, mul(k, constant(c)), v, *m, causal=causal, scale=s, softcap=z
        ),
        when=lambda c: is_number(c) and math.isfinite(c),
        after=lambda q, k, c, v, causal, s, z, *m: attention(q, k, v, *m, causal=causal, scale=s * c, softcap=z),
        samples=[
            shapes(*QKV, c=0.5, causal=True, s=0.25, z=0.0),
            shapes(*QKV, "s t", c=0.5, causal=False, s=1.0, z=2.0),
        ],
        near_misses=[
            shapes(*QKV, c=MINUS_INFINITY, causal=False, s=0.25, z=0.0),
            lambda q, k, v: attention(q, k, v, scale=1.0),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, repeated k, repeated v) -> attention(q, k, v): heads are grouped by the operator
    Rule(
        name="attention-of-repeated-heads",
        before=lambda q, k, v, a, b, c, d, causal, s, z, *m: attention(
            q,
            reshape(expand(k, shape=a), shape=b),
            reshape(expand(v, shape=c), shape=d),
            *m,
            causal=causal,
            scale=s,
            softcap=z,
        ),
        when=lambda k, v, a, b, c, d: _is_repeat(k, a, b) and _is_repeat(v, c, d) and a[:3] == c[:3],
        after=lambda q, k, v, causal, s, z, *m: attention(
            q, _each_once(k), _each_once(v), *m, causal=causal, scale=s, softcap=z
        ),
        samples=[
            shapes(
                "b G*R s D",
                "b G 1 t D",
                "b G 1 t E",
                a=lambda b, G, R, t, D: (b, G, R, t, D),
                b=lambda b, G, R, t, D: (b, G * R, t, D),
                c=lambda b, G, R, t, E: (b, G, R, t, E),
                d=lambda b, G, R, t, E: (b, G * R, t, E),
                causal=False,
                s=0.5,
                z=0.0,
            )
        ],
        near_misses=[
            # heads repeated as blocks: 0 1 0 1 in place of 0 0 1 1
            shapes(
                "b 4 s D",
                "b 1 2 t D",
                "b 1 2 t E",
                a=lambda b, t, D: (b, 2, 2, t, D),
                b=lambda b, t, D: (b, 4, t, D),
                c=lambda b, t, E: (b, 2, 2, t, E),
                d=lambda b, t, E: (b, 4, t, E),
                causal=False,
                s=0.5,
                z=0.0,
            )
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
)


def _is_triangle(q: Node, k: Node, t: Any, keys: Shape, s: Any, queries: Shape) -> bool:
    """Whether ranges of t keys and s queries are those of the attention, along the last axis and the one before."""
    return (
        (s, t) == (q.shape[2], k.shape[2])
        and keys == (*[1] * (len(keys) - 1), t)
        and len(queries) >= 2
        and queries == (*[1] * (len(queries) - 2), s, 1)
    )


def _triangle(t: Any, keys: Any, s: Any, queries: Any) -> Node:
    """The pattern of: key j is not after query i."""
    return le(reshape(arange(size=t), shape=keys), reshape(arange(size=s), shape=queries))


TRIANGLE: dict[str, Any] = {
    "t": lambda t: t,
    "x": lambda t: (1, t),
    "s": lambda s: s,
    "y": lambda s: (1, 1, s, 1),
    "causal": False,
    "scale": 0.5,
    "z": 0.0,
}
# keys stand where queries should
FLIPPED = TRIANGLE | {"t": 3, "x": (3, 1), "s": 3, "y": (1, 3)}
SQUARE = ("b H 3 D", "b H 3 D", "b H 3 E")


MASK = (
    # attention(q, k, v, expand(m)) -> attention(q, k, v, m)
    Rule(
        name="attention-of-expanded-mask",
        before=lambda q, k, v, m, to, c, s, z: attention(q, k, v, expand(m, shape=to), causal=c, scale=s, softcap=z),
        after=lambda q, k, v, m, to, c, s, z: attention(q, k, v, _lifted_to(m, len(to)), causal=c, scale=s, softcap=z),
        samples=[
            shapes(*QKV, "b 1 1 t", to=lambda b, s, t: (b, 1, s, t), c=False, s=0.5, z=0.0),
            shapes(*QKV, "bool: 1 t", to=lambda b, s, t: (b, 1, s, t), c=True, s=0.5, z=3.0),
        ],
        near_misses=[lambda q, k, v: attention(q, k, v, scale=0.5)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, all true) -> attention(q, k, v)
    Rule(
        name="attention-of-true-mask",
        before=lambda q, k, v, to, c, s, z: attention(
            q, k, v, full(shape=to, value=True, dtype=torch.bool), causal=c, scale=s, softcap=z
        ),
        after=lambda q, k, v, c, s, z: attention(q, k, v, causal=c, scale=s, softcap=z),
        samples=[
            shapes(*QKV, to=lambda s, t: (s, t), c=True, s=0.5, z=0.0),
            shapes(*QKV, to=(1, 1), c=False, s=0.5, z=2.0),
        ],
        near_misses=[lambda q, k, v: attention(q, k, v, full(shape=(1, 1), value=False, dtype=torch.bool), scale=0.5)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, 0) -> attention(q, k, v)
    Rule(
        name="attention-of-zero-mask",
        before=lambda q, k, v, to, c, s, f, z: attention(
            q, k, v, full(shape=to, value=0, dtype=f), causal=c, scale=s, softcap=z
        ),
        when=lambda f: f.is_floating_point,
        after=lambda q, k, v, c, s, z: attention(q, k, v, causal=c, scale=s, softcap=z),
        samples=[shapes(*FLOAT_QKV, to=lambda s, t: (s, t), c=True, s=0.5, z=0.0, f=torch.float32)],
        near_misses=[shapes(*FLOAT_QKV, to=(1, 1), c=True, s=0.5, z=0.0, f=torch.bool)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, where(m, 0, -inf)) -> attention(q, k, v, m)
    Rule(
        name="attention-of-added-infinity",
        before=lambda q, k, v, m, c, s, f, z: attention(
            q, k, v, where(m, scalar(0.0, f), scalar(MINUS_INFINITY, f)), causal=c, scale=s, softcap=z
        ),
        after=lambda q, k, v, m, c, s, z: attention(q, k, v, m, causal=c, scale=s, softcap=z),
        samples=[shapes(*FLOAT_QKV, mask_of_keys, c=False, s=0.5, z=0.0, f=torch.float32)],
        near_misses=[
            lambda q, k, v, m: attention(q, k, v, where(m, scalar_like(0.0, q), scalar_like(-1e4, q)), scale=0.5),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, where(m, -inf, 0)) -> attention(q, k, v, not m)
    Rule(
        name="attention-of-added-infinity-elsewhere",
        before=lambda q, k, v, m, c, s, f, z: attention(
            q, k, v, where(m, scalar(MINUS_INFINITY, f), scalar(0.0, f)), causal=c, scale=s, softcap=z
        ),
        after=lambda q, k, v, m, c, s, z: attention(q, k, v, bit_not(m), causal=c, scale=s, softcap=z),
        samples=[shapes(*FLOAT_QKV, lambda s, t: bit_not(mask_of_keys(s, t)), c=False, s=0.5, z=0.0, f=torch.float32)],
        near_misses=[
            lambda q, k, v, m: attention(q, k, v, where(m, scalar_like(-1e4, q), scalar_like(0.0, q)), scale=0.5),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, j <= i) -> attention(q, k, v, causal)
    Rule(
        name="attention-of-triangle",
        before=lambda q, k, v, t, x, s, y, causal, scale, z: attention(
            q, k, v, _triangle(t, x, s, y), causal=causal, scale=scale, softcap=z
        ),
        when=lambda q, k, t, x, s, y: _is_triangle(q, k, t, x, s, y),
        after=lambda q, k, v, scale, z: attention(q, k, v, causal=True, scale=scale, softcap=z),
        samples=[shapes(*QKV, **TRIANGLE)],
        near_misses=[shapes(*SQUARE, **FLIPPED), lambda q, k, v: attention(q, k, v, _later(q, k), scale=0.5)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, j <= i and m) -> attention(q, k, v, m, causal)
    Rule(
        name="attention-of-triangle-and-mask",
        before=lambda q, k, v, m, t, x, s, y, causal, scale, z: attention(
            q, k, v, bit_and(_triangle(t, x, s, y), m), causal=causal, scale=scale, softcap=z
        ),
        when=lambda q, k, t, x, s, y: _is_triangle(q, k, t, x, s, y),
        after=lambda q, k, v, m, scale, z: attention(q, k, v, m, causal=True, scale=scale, softcap=z),
        samples=[shapes(*QKV, "bool: b 1 1 t", **TRIANGLE), shapes(*QKV, "bool: s t", **TRIANGLE)],
        near_misses=[shapes(*SQUARE, "bool: 3 3", **FLIPPED)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, (j <= i and m) and n) -> attention(q, k, v, m and n, causal)
    Rule(
        name="attention-of-triangle-and-two-masks",
        before=lambda q, k, v, m, n, t, x, s, y, causal, scale, z: attention(
            q, k, v, bit_and(bit_and(_triangle(t, x, s, y), m), n), causal=causal, scale=scale, softcap=z
        ),
        when=lambda q, k, t, x, s, y: _is_triangle(q, k, t, x, s, y),
        after=lambda q, k, v, m, n, scale, z: attention(q, k, v, bit_and(m, n), causal=True, scale=scale, softcap=z),
        samples=[shapes(*QKV, "bool: b 1 1 t", "bool: s 1", **TRIANGLE)],
        near_misses=[shapes(*SQUARE, "bool: 3 3", "bool: 3 3", **FLIPPED)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
)

RULES = (*OPERANDS, *MASK)
