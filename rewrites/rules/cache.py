"""Caches of keys and values: masks by position as causal attention with an offset, writes to known places as slices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ...ir.node import Node
from ...ir.ops import (
    add,
    arange,
    attention,
    bit_and,
    bit_not,
    expand,
    full,
    index_put,
    input,
    le,
    lt,
    neg,
    reshape,
    scalar,
    scatter,
    slice_,
    slice_put,
    sub,
    where,
)
from ...ir.types import Dim, Shape, canonical_dim
from ..rule import ROUNDING, Domain, Rule
from ..sample import shapes
from .common import at_most, broadcast_to, is_size
from .positions import as_node, offset_of, seen

# --- masks by position ------------------------------------------------------------------------------------------------


def _number(name: str = "p", shape: Shape = (1,)) -> Node:
    return input(name=name, shape=shape, dtype=torch.int64)


def _keys(t: Dim, rank: int = 4) -> Node:
    """The positions of keys along the last of some axes."""
    return reshape(arange(size=t), shape=(*[1] * (rank - 1), t))


def _queries(s: Dim, start: Dim = 0) -> Node:
    return reshape(arange(size=s, start=start), shape=(s, 1))


def _is_by_position(q: Node, k: Node, m: Node, c: Any) -> bool:
    return not c and offset_of(m, q.shape[2], k.shape[2]) is not None


def _from(q: Node, k: Node, m: Node) -> tuple[Node, ...]:
    """The offset that a mask by position stands for; none for 0."""
    line = offset_of(m, q.shape[2], k.shape[2])
    assert line is not None
    return () if (line.terms, line.constant) == ((), 0) else (as_node(line),)


QKV = ("b H s D", "b H t D", "b H t E")
QKV_ONE = ("b H 1 D", *QKV[1:])
ATTRS: dict[str, Any] = {"c": False, "s": 0.5}
GROUPED = ("b 4 1 D", "b 2 t D", "b 2 t E")


def _hidden(hides: Node) -> Node:
    """What is added to scores: -inf where a mask hides, 0 elsewhere."""
    return where(hides, scalar(-math.inf, torch.float32), scalar(0.0, torch.float32))


MASKS = (
    # attention(q, k, v, j <= i + p) -> attention(q, k, v, offset=p, causal), however the mask is written
    Rule(
        name="attention-of-positions",
        before=lambda q, k, v, m, c, s: attention(q, k, v, m, causal=c, scale=s),
        when=lambda q, k, m, c: _is_by_position(q, k, m, c),
        after=lambda q, k, v, m, s: attention(q, k, v, *_from(q, k, m), causal=True, scale=s),
        samples=[
            shapes(*QKV_ONE, lambda t: le(_keys(t), reshape(_number(), shape=(1, 1, 1, 1))), **ATTRS),
            shapes(*GROUPED, lambda t: reshape(lt(arange(size=t), _number()), shape=(1, t)), **ATTRS),
            shapes(*QKV_ONE, lambda t: lt(_keys(t), add(_number(), scalar(1, torch.int64))), **ATTRS),
            shapes(*QKV_ONE, lambda t: bit_not(reshape(lt(_number(), arange(size=t)), shape=(1, 1, t))), **ATTRS),
            shapes(
                *(f"f32: {x}" for x in QKV_ONE),
                lambda t: reshape(_hidden(lt(_number(), arange(size=t))), shape=(1, t)),
                **ATTRS,
            ),
            shapes(*QKV, lambda s, t: le(_keys(t), add(_queries(s), _number(shape=()))), **ATTRS),
            shapes(*QKV, lambda s, t: le(sub(_keys(t, 2), _number()), _queries(s)), **ATTRS),
            shapes(*QKV, lambda s, t: lt(_keys(t), sub(add(_queries(s, 3), _number()), _number("n"))), **ATTRS),
        ],
        near_misses=[
            shapes(*QKV_ONE, lambda t: le(_keys(t), reshape(_number(), shape=(1, 1, 1, 1))), **ATTRS | {"c": True}),
            # the same keys for all queries, a position for each query, a position for each sequence
            shapes("b H 3 D", *QKV[1:], lambda t: le(_keys(t), _number()), **ATTRS),
            shapes("b H 3 D", *QKV[1:], lambda t: le(_keys(t), _number(shape=(3, 1))), **ATTRS),
            shapes(
                "3 H 1 D",
                "3 H t D",
                "3 H t E",
                lambda t: le(_keys(t), _number(shape=(3, 1, 1, 1))),
                **ATTRS,
            ),
            # keys from the end, keys after the position, every second key
            shapes(*QKV_ONE[:1], "b H 4 D", "b H 4 E", lambda: le(neg(_keys(4)), _number()), **ATTRS),
            shapes(*QKV_ONE[:1], "b H 4 D", "b H 4 E", lambda: lt(_number(), _keys(4)), **ATTRS),
            shapes(*QKV_ONE[:1], "b H 4 D", "b H 4 E", lambda: le(arange(size=4, step=2), _number()), **ATTRS),
            # the same along queries in place of keys
            shapes(
                "b H 3 D",
                "b H 3 D",
                "b H 3 E",
                lambda: le(_queries(3), add(_keys(3), _number())),
                **ATTRS,
            ),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # attention(q, k, v, j <= i + p and m) -> attention(q, k, v, m, offset=p, causal)
    Rule(
        name="attention-of-positions-and-mask",
        before=lambda q, k, v, p, m, c, s: attention(q, k, v, bit_and(p, m), causal=c, scale=s),
        when=lambda q, k, p, m, c: m.dtype == torch.bool and _is_by_position(q, k, p, c) and seen(m) is None,
        after=lambda q, k, v, p, m, s: attention(q, k, v, m, *_from(q, k, p), causal=True, scale=s),
        samples=[
            shapes(*QKV_ONE, lambda t: le(_keys(t), _number()), "bool: b 1 1 t", **ATTRS),
            shapes(*QKV, lambda s, t: le(_keys(t), add(_queries(s), _number())), "bool: b 1 1 t", **ATTRS),
        ],
        near_misses=[
            shapes("b H 3 D", *QKV[1:], lambda t: le(_keys(t), _number()), "bool: b 1 1 t", **ATTRS),
            shapes(*QKV_ONE, lambda t: le(_keys(t), _number()), "bool: b 1 1 t", **ATTRS | {"c": True}),
        ],
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
        near_misses=[shapes("m 4 k", "m 1 k", a=-1, d=1), shapes("m 3 k", "m 1 k", a=3, d=1)],
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
