"""Attention from products and softmax, and what its operator takes in by itself: scales, repeated heads, masks.

A query that sees no key at all gets 0 from the operator, and NaN from a softmax over a row of -inf.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...ir.node import Node
from ...ir.ops import (
    add,
    arange,
    attention,
    bit_and,
    bit_not,
    bit_or,
    div,
    expand,
    full,
    input,
    le,
    lt,
    matmul,
    mul,
    permute,
    reshape,
    scalar,
    scalar_like,
    softmax,
    where,
)
from ...ir.types import Shape, broadcast_shapes
from ..pattern import constant
from ..rule import ROUNDING, Domain, Rule
from ..sample import Sample, shapes
from .common import is_number

MINUS_INFINITY = -math.inf

# --- from primitives --------------------------------------------------------------------------------------------------

# How scores are scaled, and the factor that this is.
SCALES: dict[str, tuple[Callable[..., Node], Callable[[Any], float]]] = {
    "": (lambda scores, c: scores, lambda c: 1.0),
    "scaled-": (lambda scores, c: mul(scores, constant(c)), lambda c: float(c)),
    "divided-": (lambda scores, c: div(scores, constant(c)), lambda c: 1.0 / c),
}
# How scores are masked, and the mask that attention takes instead.
MASKS: dict[str, tuple[Callable[..., Node], Callable[..., tuple[Node, ...]]]] = {
    "": (lambda scores, m, low: scores, lambda m, low, dtype: ()),
    "added-": (lambda scores, m, low: add(scores, m), lambda m, low, dtype: (m,)),
    "masked-": (lambda scores, m, low: where(m, scores, constant(MINUS_INFINITY)), lambda m, low, dtype: (m,)),
    "filled-": (
        lambda scores, m, low: where(m, scores, constant(low)),
        lambda m, low, dtype: (where(m, scalar(0.0, dtype), scalar(low, dtype)),),
    ),
}


def _fit(rank: int, q: Node, kt: Node, v: Node, masks: tuple[Node, ...]) -> bool:
    """Whether the operands are those of attention: one batch, as many heads for all, masks that widen nothing."""
    if not q.tensor_type.rank == kt.tensor_type.rank == v.tensor_type.rank == rank:
        return False
    if not q.shape[: rank - 2] == kt.shape[: rank - 2] == v.shape[: rank - 2]:
        return False
    scores = (*q.shape[:-1], kt.shape[-1])
    return all(broadcast_shapes(scores, m.shape) == scores for m in masks)


def _with_heads(x: Node) -> Node:
    """[B, S, D] as [B, 1, S, D]; a mask that broadcasts over the batch stays as it is."""
    shape: Shape = x.shape
    return reshape(x, shape=(shape[0], 1, *shape[1:])) if len(shape) == 3 else x


def _built(root: Node, rank: int, q: Node, kt: Node, v: Node, masks: tuple[Node, ...], scale: float) -> Node:
    k = permute(kt, dims=(*range(rank - 2), rank - 1, rank - 2))
    wide = [_with_heads(x) if rank == 3 else x for x in (q, k, v, *masks)]
    return reshape(attention(*wide, scale=scale), shape=root.shape)


def _before(picture: Callable[..., Node], scale: str, mask: str) -> Callable[..., Node]:
    """The picture as a function of the variables that it has."""
    names = ["c"] * bool(scale) + ["m"] * bool(mask) + ["low"] * (mask == "filled-")
    pictures: dict[str, Callable[..., Node]] = {
        "": lambda q, kt, v: picture(q, kt, v),
        "c": lambda q, kt, v, c: picture(q, kt, v, c=c),
        "m": lambda q, kt, v, m: picture(q, kt, v, m=m),
        "c m": lambda q, kt, v, c, m: picture(q, kt, v, c=c, m=m),
        "m low": lambda q, kt, v, m, low: picture(q, kt, v, m=m, low=low),
        "c m low": lambda q, kt, v, c, m, low: picture(q, kt, v, c=c, m=m, low=low),
    }
    return pictures[" ".join(names)]


def _of_products(rank: int, scale: str, mask: str) -> Rule:
    # softmax(scale q k^T + mask) v -> attention(q, k, v, mask, scale)
    scaled, factor = SCALES[scale]
    masked, as_mask = MASKS[mask]

    def picture(q: Any, kt: Any, v: Any, c: Any = None, m: Any = None, low: Any = None) -> Node:
        return matmul(softmax(masked(scaled(matmul(q, kt), c), m, low), dim=-1), v)

    def agrees(q: Node, kt: Node, v: Node, c: Any = 1.0, m: Node | None = None, low: Any = None) -> bool:
        masks = () if m is None else (m,)
        known = is_number(c) and c != 0 and (low is None or low == torch.finfo(q.dtype).min)
        return known and _fit(rank, q, kt, v, masks)

    def build(root: Node, q: Node, kt: Node, v: Node, c: Any = 1.0, m: Any = None, low: Any = None) -> Node:
        return _built(root, rank, q, kt, v, as_mask(m, low, q.dtype), factor(c))

    return Rule(
        name=f"{scale}{mask}attention" + ("-without-heads" if rank == 3 else ""),
        before=_before(picture, scale, mask),
        when=lambda **bound: agrees(**bound),
        after=lambda root, **bound: build(root, **bound),
        samples=list(_samples(rank, scale, mask)),
        near_misses=[
            _sample(("2 s D", "2 D t", "2 t E") if rank == 4 else ("1 2 s D", "1 2 D t", "1 2 t E"), "s t", scale, mask),
            lambda q, kt, v: matmul(softmax(matmul(q, kt), dim=-2), v),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    )


def _sample(operands: tuple[str, ...], m: str, scale: str, mask: str) -> Sample:
    extra: list[Any] = []
    if mask == "added-":
        extra = ["f32: " + m]
    elif mask:
        extra = [_mask_of_keys]
    attrs = ({"c": 0.25} if scale else {}) | ({"low": torch.finfo(torch.float32).min} if mask == "filled-" else {})
    return shapes(*("f32: " + x for x in operands), *extra, **attrs)


def _samples(rank: int, scale: str, mask: str) -> Iterator[Sample]:
    operands = ("b H s D", "b H D t", "b H t E") if rank == 4 else ("b s D", "b D t", "b t E")
    yield _sample(operands, "s t", scale, mask)
    if mask == "added-":
        yield _sample(operands, "b 1 1 t" if rank == 4 else "b s t", scale, mask)


def _mask_of_keys(s: Any, t: Any) -> Node:
    """A random mask that lets every query see the first key."""
    first = reshape(lt(arange(size=t), scalar(1, torch.int64)), shape=(1, t))
    return bit_or(input(name="m", shape=(s, t), dtype=torch.bool), first)


FROM_PRIMITIVES = tuple(_of_products(rank, scale, mask) for rank in (4, 3) for scale in SCALES for mask in MASKS)

# --- what the operator takes in ---------------------------------------------------------------------------------------


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
        before=lambda q, c, k, v, causal, s, *m: attention(mul(q, constant(c)), k, v, *m, causal=causal, scale=s),
        when=lambda c: is_number(c) and math.isfinite(c),
        after=lambda q, c, k, v, causal, s, *m: attention(q, k, v, *m, causal=causal, scale=s * c),
        samples=[shapes(*QKV, c=0.5, causal=True, s=0.25), shapes(*QKV, "s t", c=0.5, causal=False, s=1.0)],
        near_misses=[shapes(*QKV, c=MINUS_INFINITY, causal=False, s=0.25), lambda q, k, v: attention(q, k, v, scale=1.0)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, c k, v, scale) -> attention(q, k, v, c scale)
    Rule(
        name="attention-of-scaled-keys",
        before=lambda q, k, c, v, causal, s, *m: attention(q, mul(k, constant(c)), v, *m, causal=causal, scale=s),
        when=lambda c: is_number(c) and math.isfinite(c),
        after=lambda q, k, c, v, causal, s, *m: attention(q, k, v, *m, causal=causal, scale=s * c),
        samples=[shapes(*QKV, c=0.5, causal=True, s=0.25), shapes(*QKV, "s t", c=0.5, causal=False, s=1.0)],
        near_misses=[shapes(*QKV, c=MINUS_INFINITY, causal=False, s=0.25), lambda q, k, v: attention(q, k, v, scale=1.0)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, repeated k, repeated v) -> attention(q, k, v): heads are grouped by the operator
    Rule(
        name="attention-of-repeated-heads",
        before=lambda q, k, v, a, b, c, d, causal, s, *m: attention(
            q, reshape(expand(k, shape=a), shape=b), reshape(expand(v, shape=c), shape=d), *m, causal=causal, scale=s
        ),
        when=lambda k, v, a, b, c, d: _is_repeat(k, a, b) and _is_repeat(v, c, d) and a[:3] == c[:3],
        after=lambda q, k, v, causal, s, *m: attention(q, _each_once(k), _each_once(v), *m, causal=causal, scale=s),
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
}
# keys stand where queries should
FLIPPED = TRIANGLE | {"t": 3, "x": (3, 1), "s": 3, "y": (1, 3)}
SQUARE = ("b H 3 D", "b H 3 D", "b H 3 E")


MASK = (
    # attention(q, k, v, expand(m)) -> attention(q, k, v, m)
    Rule(
        name="attention-of-expanded-mask",
        before=lambda q, k, v, m, to, c, s: attention(q, k, v, expand(m, shape=to), causal=c, scale=s),
        after=lambda q, k, v, m, to, c, s: attention(q, k, v, _lifted_to(m, len(to)), causal=c, scale=s),
        samples=[
            shapes(*QKV, "b 1 1 t", to=lambda b, s, t: (b, 1, s, t), c=False, s=0.5),
            shapes(*QKV, "bool: 1 t", to=lambda b, s, t: (b, 1, s, t), c=True, s=0.5),
        ],
        near_misses=[lambda q, k, v: attention(q, k, v, scale=0.5)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, all true) -> attention(q, k, v)
    Rule(
        name="attention-of-true-mask",
        before=lambda q, k, v, to, c, s: attention(
            q, k, v, full(shape=to, value=True, dtype=torch.bool), causal=c, scale=s
        ),
        after=lambda q, k, v, c, s: attention(q, k, v, causal=c, scale=s),
        samples=[shapes(*QKV, to=lambda s, t: (s, t), c=True, s=0.5), shapes(*QKV, to=(1, 1), c=False, s=0.5)],
        near_misses=[lambda q, k, v: attention(q, k, v, full(shape=(1, 1), value=False, dtype=torch.bool), scale=0.5)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, 0) -> attention(q, k, v)
    Rule(
        name="attention-of-zero-mask",
        before=lambda q, k, v, to, c, s, f: attention(q, k, v, full(shape=to, value=0, dtype=f), causal=c, scale=s),
        when=lambda f: f != torch.bool,
        after=lambda q, k, v, c, s: attention(q, k, v, causal=c, scale=s),
        samples=[shapes(*FLOAT_QKV, to=lambda s, t: (s, t), c=True, s=0.5, f=torch.float32)],
        near_misses=[shapes(*FLOAT_QKV, to=(1, 1), c=True, s=0.5, f=torch.bool)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, where(m, 0, -inf)) -> attention(q, k, v, m)
    Rule(
        name="attention-of-added-infinity",
        before=lambda q, k, v, m, c, s, f: attention(
            q, k, v, where(m, scalar(0.0, f), scalar(MINUS_INFINITY, f)), causal=c, scale=s
        ),
        after=lambda q, k, v, m, c, s: attention(q, k, v, m, causal=c, scale=s),
        samples=[shapes(*FLOAT_QKV, _mask_of_keys, c=False, s=0.5, f=torch.float32)],
        near_misses=[
            lambda q, k, v, m: attention(q, k, v, where(m, scalar_like(0.0, q), scalar_like(-1e4, q)), scale=0.5),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, where(m, -inf, 0)) -> attention(q, k, v, not m)
    Rule(
        name="attention-of-added-infinity-elsewhere",
        before=lambda q, k, v, m, c, s, f: attention(
            q, k, v, where(m, scalar(MINUS_INFINITY, f), scalar(0.0, f)), causal=c, scale=s
        ),
        after=lambda q, k, v, m, c, s: attention(q, k, v, bit_not(m), causal=c, scale=s),
        samples=[shapes(*FLOAT_QKV, lambda s, t: bit_not(_mask_of_keys(s, t)), c=False, s=0.5, f=torch.float32)],
        near_misses=[
            lambda q, k, v, m: attention(q, k, v, where(m, scalar_like(-1e4, q), scalar_like(0.0, q)), scale=0.5),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, j <= i) -> attention(q, k, v, causal)
    Rule(
        name="attention-of-triangle",
        before=lambda q, k, v, t, x, s, y, causal, scale: attention(
            q, k, v, _triangle(t, x, s, y), causal=causal, scale=scale
        ),
        when=lambda q, k, t, x, s, y: _is_triangle(q, k, t, x, s, y),
        after=lambda q, k, v, scale: attention(q, k, v, causal=True, scale=scale),
        samples=[shapes(*QKV, **TRIANGLE)],
        near_misses=[shapes(*SQUARE, **FLIPPED), lambda q, k, v: attention(q, k, v, _later(q, k), scale=0.5)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, j <= i and m) -> attention(q, k, v, m, causal)
    Rule(
        name="attention-of-triangle-and-mask",
        before=lambda q, k, v, m, t, x, s, y, causal, scale: attention(
            q, k, v, bit_and(_triangle(t, x, s, y), m), causal=causal, scale=scale
        ),
        when=lambda q, k, t, x, s, y: _is_triangle(q, k, t, x, s, y),
        after=lambda q, k, v, m, scale: attention(q, k, v, m, causal=True, scale=scale),
        samples=[shapes(*QKV, "bool: b 1 1 t", **TRIANGLE), shapes(*QKV, "bool: s t", **TRIANGLE)],
        near_misses=[shapes(*SQUARE, "bool: 3 3", **FLIPPED)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, (j <= i and m) and n) -> attention(q, k, v, m and n, causal)
    Rule(
        name="attention-of-triangle-and-two-masks",
        before=lambda q, k, v, m, n, t, x, s, y, causal, scale: attention(
            q, k, v, bit_and(bit_and(_triangle(t, x, s, y), m), n), causal=causal, scale=scale
        ),
        when=lambda q, k, t, x, s, y: _is_triangle(q, k, t, x, s, y),
        after=lambda q, k, v, m, n, scale: attention(q, k, v, bit_and(m, n), causal=True, scale=scale),
        samples=[shapes(*QKV, "bool: b 1 1 t", "bool: s 1", **TRIANGLE)],
        near_misses=[shapes(*SQUARE, "bool: 3 3", "bool: 3 3", **FLIPPED)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
)
