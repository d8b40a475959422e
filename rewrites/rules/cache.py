"""Caches of keys and values: masks by position as causal attention with an offset, writes to known places as slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...ir.node import Node
from ...ir.ops import (
    add,
    arange,
    attention,
    bit_and,
    expand,
    full,
    index_put,
    le,
    lt,
    maximum,
    reshape,
    scalar,
    scatter,
    slice_,
    slice_put,
    sub,
)
from ...ir.types import Dim, Shape, canonical_dim
from ..rule import ROUNDING, Domain, Rule
from ..sample import shapes
from .common import at_most, broadcast_to, is_size

# --- masks by position ------------------------------------------------------------------------------------------------


def _is_line(size: Any, shape: Shape, length: Dim) -> bool:
    """Whether a range of ``size`` in a shape runs along the keys, which are the last axis."""
    return bool(size == length and shape == (*[1] * (len(shape) - 1), length))


def _is_one(x: Node) -> bool:
    return x.dtype == torch.int64 and all(dim == 1 for dim in x.shape)


def _one(x: Node) -> Node:
    """One number without axes."""
    return reshape(x, shape=())


def _up_to(t: Any, x: Any, p: Any, y: Any) -> Node:
    """The pattern of: key j is not after position p."""
    return le(reshape(arange(size=t), shape=x), reshape(p, shape=y))


def _spread(t: Any, x: Any, s: Any, p: Any, y: Any) -> Node:
    """The pattern of: key j is not after position i + p of query i."""
    return le(reshape(arange(size=t), shape=x), reshape(add(arange(size=s), p), shape=y))


def _fits_one(q: Node, k: Node, t: Any, x: Shape, p: Node, c: Any) -> bool:
    return not c and q.shape[2] == 1 and _is_line(t, x, k.shape[2]) and _is_one(p)


def _fits_several(q: Node, k: Node, t: Any, x: Shape, s: Any, p: Node, y: Shape, c: Any) -> bool:
    along = s == q.shape[2] and len(y) >= 2 and y == (*[1] * (len(y) - 2), s, 1)
    return bool(not c and along and _is_line(t, x, k.shape[2]) and _is_one(p))


ONE: dict[str, Any] = {"t": lambda t: t, "x": lambda t: (1, 1, 1, t), "y": (1, 1, 1, 1), "c": False, "s": 0.5}
QKV_ONE = ("b H 1 D", "b H t D", "b H t E")
SEVERAL: dict[str, Any] = {
    "t": lambda t: t,
    "x": lambda t: (1, 1, 1, t),
    "s": lambda s: s,
    "y": lambda s: (1, 1, s, 1),
    "c": False,
    "f": 0.5,
}
QKV = ("b H s D", "b H t D", "b H t E")

MASKS = (
    # attention(q, k, v, j <= p) -> attention(q, k, v, offset=p, causal) for one query
    Rule(
        name="attention-up-to-position",
        before=lambda q, k, v, t, x, p, y, c, s: attention(q, k, v, _up_to(t, x, p, y), causal=c, scale=s),
        when=lambda q, k, t, x, p, c: _fits_one(q, k, t, x, p, c),
        after=lambda q, k, v, p, s: attention(q, k, v, _one(p), causal=True, scale=s),
        samples=[shapes(*QKV_ONE, "i64: 1", **ONE), shapes("b 4 1 D", "b 2 t D", "b 2 t E", "i64: 1 1 1", **ONE)],
        near_misses=[
            shapes("b H 2 D", "b H t D", "b H t E", "i64: 1", **ONE),
            shapes(*QKV_ONE, "i64: 1", **ONE | {"c": True}),
            shapes("3 H 1 D", "3 H t D", "3 H t E", "i64: 3", **ONE | {"y": (3, 1, 1, 1)}),
            lambda q, k, v, p: attention(
                q, k, v, lt(arange(size=k.shape[2], start=1), reshape(p, shape=(1,) * 4)), scale=0.5
            ),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, j < n) -> attention(q, k, v, offset=max(n, 0) - 1, causal) for one query
    Rule(
        name="attention-below-length",
        before=lambda q, k, v, t, x, p, y, c, s: attention(
            q, k, v, lt(reshape(arange(size=t), shape=x), reshape(p, shape=y)), causal=c, scale=s
        ),
        when=lambda q, k, t, x, p, c: _fits_one(q, k, t, x, p, c),
        after=lambda q, k, v, p, s: attention(
            q,
            k,
            v,
            sub(maximum(_one(p), scalar(0, torch.int64)), scalar(1, torch.int64)),  # the least number has none before
            causal=True,
            scale=s,
        ),
        samples=[shapes(*QKV_ONE, "i64: 1", **ONE)],
        near_misses=[
            shapes("b H 2 D", "b H t D", "b H t E", "i64: 1", **ONE),
            shapes(*QKV_ONE, "i64: 1", **ONE | {"c": True}),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, j <= p and m) -> attention(q, k, v, m, offset=p, causal) for one query
    Rule(
        name="attention-up-to-position-and-mask",
        before=lambda q, k, v, m, t, x, p, y, c, s: attention(
            q, k, v, bit_and(_up_to(t, x, p, y), m), causal=c, scale=s
        ),
        when=lambda q, k, t, x, p, c: _fits_one(q, k, t, x, p, c),
        after=lambda q, k, v, m, p, s: attention(q, k, v, m, _one(p), causal=True, scale=s),
        samples=[shapes(*QKV_ONE, "bool: b 1 1 t", "i64: 1", **ONE)],
        near_misses=[shapes("b H 2 D", "b H t D", "b H t E", "bool: b 1 1 t", "i64: 1", **ONE)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, j <= i + p) -> attention(q, k, v, offset=p, causal)
    Rule(
        name="attention-up-to-positions",
        before=lambda q, k, v, t, x, s, p, y, c, f: attention(q, k, v, _spread(t, x, s, p, y), causal=c, scale=f),
        when=lambda q, k, t, x, s, p, y, c: _fits_several(q, k, t, x, s, p, y, c),
        after=lambda q, k, v, p, f: attention(q, k, v, _one(p), causal=True, scale=f),
        samples=[shapes(*QKV, "i64:", **SEVERAL), shapes(*QKV, "i64: 1", **SEVERAL)],
        near_misses=[
            # a position for each query
            shapes("b H 3 D", "b H t D", "b H t E", "i64: 3", **SEVERAL | {"s": 3, "y": (1, 1, 3, 1)}),
            shapes(*QKV, "i64:", **SEVERAL | {"c": True}),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, j <= i + p and m) -> attention(q, k, v, m, offset=p, causal)
    Rule(
        name="attention-up-to-positions-and-mask",
        before=lambda q, k, v, m, t, x, s, p, y, c, f: attention(
            q, k, v, bit_and(_spread(t, x, s, p, y), m), causal=c, scale=f
        ),
        when=lambda q, k, t, x, s, p, y, c: _fits_several(q, k, t, x, s, p, y, c),
        after=lambda q, k, v, m, p, f: attention(q, k, v, m, _one(p), causal=True, scale=f),
        samples=[shapes(*QKV, "bool: b 1 1 t", "i64:", **SEVERAL)],
        near_misses=[shapes(*QKV, "bool: b 1 1 t", "i64:", **SEVERAL | {"c": True})],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, offset=0, causal) -> attention(q, k, v, causal)
    Rule(
        name="attention-from-the-start",
        before=lambda q, k, v, to, f, c, s: attention(q, k, v, full(shape=to, value=0, dtype=f), causal=c, scale=s),
        when=lambda f: f == torch.int64,
        after=lambda q, k, v, s: attention(q, k, v, causal=True, scale=s),
        samples=[shapes(*QKV, to=(), f=torch.int64, c=True, s=0.5)],
        near_misses=[
            shapes(*(f"f32: {x}" for x in QKV), to=(), f=torch.float32, c=True, s=0.5),
            lambda q, k, v: attention(q, k, v, scalar(1, torch.int64), causal=True, scale=0.5),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
)

# --- writes -----------------------------------------------------------------------------------------------------------


def _picked(x: Node, n: Dim, d: int) -> Shape:
    """The shape of n places along an axis."""
    return (*x.shape[:d], n, *x.shape[d + 1 :])


def _is_inside(x: Node, d: int, start: Any, n: Any) -> bool:
    whole = is_size(start) and is_size(n)
    return bool(whole) and at_most(0, start) and at_most(canonical_dim(start + n), x.shape[d])


def _spreads(i: Node, to: Shape, d: int) -> bool:
    """Whether an index, expanded, is the same for all elements but along one axis, of which it has every place once."""
    shape = i.shape
    return len(shape) == len(to) and shape == (*[1] * d, to[d], *[1] * (len(to) - d - 1))


def _covers(x: Node, to: Shape, d: int) -> bool:
    """Whether a shape is as long as that of ``x`` along all axes but one."""
    return len(to) == len(x.shape) and all(a == b for i, (a, b) in enumerate(zip(x.shape, to, strict=True)) if i != d)


WRITES = (
    # x[..., a : a + n] = v, by a range -> the same by a slice
    Rule(
        name="index-put-by-range",
        before=lambda x, v, n, a, d: index_put(x, v, arange(size=n, start=a), dim=d),
        when=lambda x, n, a, d: _is_inside(x, d, a, n),
        after=lambda x, v, n, a, d: slice_put(x, broadcast_to(v, _picked(x, n, d)), dim=d, start=a),
        samples=[
            shapes("m 8 k", "m 3 k", n=3, a=2, d=1),
            shapes("m n k", "m n k", n=lambda n: n, a=0, d=1),
            shapes("m n", "n", n=lambda m: m, a=0, d=0),
        ],
        near_misses=[
            shapes("m 4 k", "m 3 k", n=3, a=2, d=1),
            shapes("m 4 k", "m 3 k", n=3, a=-3, d=1),
            lambda x, v: index_put(x, v, arange(size=3, step=2), dim=1),
        ],
    ),
    # x[..., [a]] = v -> x[..., a : a + 1] = v
    Rule(
        name="index-put-at-place",
        before=lambda x, v, a, d: index_put(x, v, full(shape=(1,), value=a, dtype=torch.int64), dim=d),
        when=lambda x, a, d: _is_inside(x, d, a, 1),
        after=lambda x, v, a, d: slice_put(x, broadcast_to(v, _picked(x, 1, d)), dim=d, start=a),
        samples=[shapes("m 8 k", "m 1 k", a=5, d=1), shapes("3 n", "n", a=0, d=0)],
        near_misses=[shapes("m 4 k", "m 1 k", a=-1, d=1), shapes("m n k", "m 1 k", a=3, d=1)],
    ),
    # x[a, i[b], c] = v[a, b, c], by an index for each element -> the same by one for each place along the axis
    Rule(
        name="scatter-of-places",
        before=lambda x, i, v, to, d: scatter(x, expand(i, shape=to), v, dim=d),
        when=lambda x, i, v, to, d: v.shape == to and _covers(x, to, d) and _spreads(i, to, d),
        after=lambda x, i, v, to, d: index_put(x, v, reshape(i, shape=(to[d],)), dim=d),
        samples=[
            shapes("b H 9 D", "i64: 1 1 1 1", "b H 1 D", to=lambda b, H, D: (b, H, 1, D), d=2),
            shapes("m 9", "i64: 1 n", "m n", to=lambda m, n: (m, n), d=1),
        ],
        near_misses=[
            shapes("2 9", "i64: 2 1", "2 3", to=(2, 3), d=1),
            shapes("5 9", "i64: 1 3", "2 3", to=(2, 3), d=1),
            lambda x, i, v: scatter(x, expand(i, shape=v.shape), v, dim=2, reduce="add"),
        ],
    ),
)

# --- what was written, read again -------------------------------------------------------------------------------------


def _is_apart(start: Any, n: Any, low: Any, high: Any) -> bool:
    """Whether [low, high) and n places from ``start`` on have none in common."""
    return at_most(high, start) or at_most(canonical_dim(start + n), low)


def _part(x: Node, d: int, low: Any, high: Any, step: Any) -> Node:
    return slice_(x, dim=d, start=low, stop=high, step=step)


PUT: dict[str, Any] = {"d": 1, "e": 1, "a": 2, "s": 1, "t": 1}


def _is_same_axis(d: Any, e: Any, s: Any) -> bool:
    return bool(d == e and s == 1)


READS = (
    # (x with x[a : a + n] = v)[a : a + n] -> v
    Rule(
        name="slice-of-what-was-put",
        before=lambda x, v, d, a, s, e, b, c, t: slice_(
            slice_put(x, v, dim=d, start=a, step=s), dim=e, start=b, stop=c, step=t
        ),
        when=lambda v, d, a, s, e, b, c, t: (
            _is_same_axis(d, e, s) and t == 1 and (a, canonical_dim(a + v.shape[d])) == (b, c)
        ),
        after=lambda v: v,
        samples=[shapes("m 8 k", "m 3 k", **PUT, b=2, c=5)],
        near_misses=[
            shapes("m 8 k", "m 3 k", **PUT, b=2, c=4),
            shapes("m 8 k", "m 3 k", **PUT | {"s": 2}, b=2, c=5),
        ],
    ),
    # (x with x[a : a + n] = v)[b : c] -> x[b : c] where the two have nothing in common
    Rule(
        name="slice-beside-what-was-put",
        before=lambda x, v, d, a, s, e, b, c, t: slice_(
            slice_put(x, v, dim=d, start=a, step=s), dim=e, start=b, stop=c, step=t
        ),
        when=lambda v, d, a, s, e, b, c: _is_same_axis(d, e, s) and _is_apart(a, v.shape[d], b, c),
        after=lambda x, e, b, c, t: _part(x, e, b, c, t),
        samples=[shapes("m 8 k", "m 3 k", **PUT, b=5, c=8), shapes("m 8 k", "m 3 k", **PUT | {"t": 2}, b=0, c=2)],
        near_misses=[shapes("m 8 k", "m 3 k", **PUT, b=4, c=8)],
    ),
    # (x with x[:, a : a + n] = v)[b : c] -> x[b : c] with [:, a : a + n] = v[b : c]
    Rule(
        name="slice-across-what-was-put",
        before=lambda x, v, d, a, s, e, b, c, t: slice_(
            slice_put(x, v, dim=d, start=a, step=s), dim=e, start=b, stop=c, step=t
        ),
        when=lambda d, e: d != e,
        after=lambda x, v, d, a, s, e, b, c, t: slice_put(
            _part(x, e, b, c, t), _part(v, e, b, c, t), dim=d, start=a, step=s
        ),
        samples=[shapes("4 8 k", "4 3 k", **PUT | {"e": 0}, b=1, c=4)],
        near_misses=[shapes("4 8 k", "4 3 k", **PUT, b=1, c=4)],
    ),
    # (x with x[:, i] = v)[b : c] -> x[b : c] with [:, i] = v[b : c]
    Rule(
        name="slice-across-rows-put",
        before=lambda x, v, i, d, u, e, b, c, t: slice_(
            index_put(x, v, i, dim=d, accumulate=u), dim=e, start=b, stop=c, step=t
        ),
        when=lambda x, v, i, d, e: e != d and i.tensor_type.rank == 1 and v.shape == _picked(x, i.shape[0], d),
        after=lambda x, v, i, d, u, e, b, c, t: index_put(
            _part(x, e, b, c, t), _part(v, e, b, c, t), i, dim=d, accumulate=u
        ),
        samples=[shapes("4 8 k", "4 1 k", "i64: 1", d=1, u=False, e=0, b=1, c=4, t=1)],
        near_misses=[
            shapes("4 8 k", "4 1 k", "i64: 1", d=1, u=False, e=1, b=1, c=4, t=1),
            shapes("4 8 k", "1 k", "i64: 1", d=1, u=False, e=0, b=1, c=4, t=1),
        ],
    ),
    # x with x[a : a + n] = x[a : a + n] -> x
    Rule(
        name="put-what-is-there",
        before=lambda x, d, a, s, e, b, c, t: slice_put(
            x, slice_(x, dim=e, start=b, stop=c, step=t), dim=d, start=a, step=s
        ),
        when=lambda d, a, s, e, b, t: d == e and a == b and s == t,
        after=lambda x: x,
        samples=[shapes("m 8 k", **PUT, b=2, c=5)],
        near_misses=[shapes("m 8 k", **PUT, b=1, c=5)],
    ),
    # (x with x[a : a + n] = v) with [a : a + n] = w -> x with x[a : a + n] = w
    Rule(
        name="put-over-what-was-put",
        before=lambda x, v, w, d, a, s, e, b, t: slice_put(
            slice_put(x, v, dim=d, start=a, step=s), w, dim=e, start=b, step=t
        ),
        when=lambda v, w, d, a, s, e, b, t: (d, a, s, v.shape) == (e, b, t, w.shape),
        after=lambda x, w, d, a, s: slice_put(x, w, dim=d, start=a, step=s),
        samples=[shapes("m 8 k", "m 3 k", "m 3 k", **PUT, b=2)],
        near_misses=[shapes("m 8 k", "m 3 k", "m 3 k", **PUT, b=1)],
    ),
)

RULES: Sequence[Rule] = (*WRITES, *READS)
