"""Views in their one form: no view that moves nothing, no two where one will do, `expand` outermost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ir import ops
from ...ir.node import Node
from ...ir.ops import concat, expand, flip, input, neg, pad, permute, reshape, slice_
from ...ir.types import Dim, Shape, canonical_dim
from ..rule import Rule
from ..sample import shapes
from .common import at_most, without_ones


def _only_ones_move(x: Node, dims: Sequence[int]) -> bool:
    """Whether a permutation keeps the order of all axes that are longer than 1."""
    kept = [d for d in dims if x.shape[d] != 1]
    return kept == sorted(kept)


IDENTITIES = (
    # reshape(x, its shape) -> x
    Rule(
        name="reshape-to-own-shape",
        before=lambda x, s: reshape(x, shape=s),
        when=lambda x, s: x.shape == s,
        after=lambda x: x,
        samples=[shapes("m n", s=lambda m, n: (m, n)), shapes("any:", s=())],
        near_misses=[shapes("m n", s=lambda m, n: (m, 1, n)), lambda x: reshape(x, shape=(1, *x.shape))],
    ),
    # permute(x, 0 1 2 ...) -> x
    Rule(
        name="permute-in-order",
        before=lambda x, dims: permute(x, dims=dims),
        when=lambda dims: dims == tuple(sorted(dims)),
        after=lambda x: x,
        samples=[shapes("m n", dims=(0, 1)), shapes("any: m n k", dims=(0, -2, 2))],
        near_misses=[shapes("m n", dims=(1, 0))],
    ),
    # expand(x, its shape) -> x
    Rule(
        name="expand-to-own-shape",
        before=lambda x, s: expand(x, shape=s),
        when=lambda x, s: x.shape == s,
        after=lambda x: x,
        samples=[shapes("m n", s=lambda m, n: (m, n))],
        near_misses=[shapes("1 n", s=lambda m, n: (2, n)), shapes("n", s=lambda n: (1, n))],
    ),
    # x[0:size] -> x
    Rule(
        name="slice-of-all",
        before=lambda x, d, a, b: slice_(x, dim=d, start=a, stop=b),
        when=lambda x, d, a, b: a == 0 and b == x.shape[d],
        after=lambda x: x,
        samples=[shapes("m n", d=1, a=0, b=lambda n: n)],
        near_misses=[
            shapes("m 4", d=1, a=0, b=3),
            shapes("m 4", d=1, a=1, b=4),
            lambda x: slice_(x, dim=1, start=0, stop=x.shape[1], step=2),
        ],
    ),
    # cat(x) -> x
    Rule(
        name="concat-of-one",
        before=lambda x, d: concat(x, dim=d),
        after=lambda x: x,
        samples=[shapes("any: m n", d=1)],
        near_misses=[lambda x: concat(x, x, dim=1)],
    ),
    # pad(x, 0, 0) -> x
    Rule(
        name="pad-by-nothing",
        before=lambda x, a, b, v: pad(x, low=a, high=b, value=v),
        when=lambda a, b: not any(a) and not any(b),
        after=lambda x: x,
        samples=[shapes("m n", a=(0, 0), b=(0, 0), v=1.0)],
        near_misses=[shapes("m n", a=(0, 1), b=(0, 0), v=0), shapes("m n", a=(0, 0), b=(1, 0), v=0)],
    ),
    # flip(flip(x)) -> x
    Rule(
        name="flip-flip",
        before=lambda x, d: flip(flip(x, dims=d), dims=d),
        after=lambda x: x,
        samples=[shapes("m n", d=(0, -1))],
        near_misses=[lambda x: flip(flip(x, dims=(0,)), dims=(1,))],
    ),
    # permute(x) that moves axes of size 1 alone -> reshape(x)
    Rule(
        name="permute-of-ones",
        before=lambda x, dims: permute(x, dims=dims),
        when=lambda x, dims: dims != tuple(sorted(dims)) and _only_ones_move(x, dims),
        after=lambda root, x: reshape(x, shape=root.shape),
        samples=[shapes("m 1 n", dims=(1, 0, 2)), shapes("1 4 1 7", dims=(2, 1, 0, 3))],
        near_misses=[shapes("4 1 7", dims=(2, 1, 0))],
    ),
)


def _composed(outer: Sequence[int], inner: Sequence[int]) -> tuple[int, ...]:
    return tuple(inner[d] for d in outer)


def _lifted(x: Node, rank: int) -> Node:
    """``x`` with leading axes of size 1 up to a rank."""
    missing = rank - x.tensor_type.rank
    return reshape(x, shape=(*[1] * missing, *x.shape)) if missing else x


def _regrouped(x: Node, wide: Shape, to: Shape) -> Node:
    """``x``, which expands to ``wide``, with its axes of size 1 placed as in ``to``."""
    own = (*[1] * (len(wide) - x.tensor_type.rank), *x.shape)
    sizes = iter(size for size, dim in zip(own, wide, strict=True) if dim != 1)
    return reshape(x, shape=tuple(1 if dim == 1 else next(sizes) for dim in to))


COMPOSITIONS = (
    # reshape(reshape(x)) -> reshape(x)
    Rule(
        name="reshape-reshape",
        before=lambda x, s, t: reshape(reshape(x, shape=s), shape=t),
        after=lambda x, t: reshape(x, shape=t),
        samples=[
            shapes("m n", s=lambda m, n: (n, m), t=lambda m, n: (m * n,)),
            shapes("m n", s=lambda m, n: (n, m), t=lambda m, n: (m, n)),
        ],
        near_misses=[lambda x: reshape(permute(x, dims=(1, 0)), shape=(x.tensor_type.numel,))],
    ),
    # permute(permute(x)) -> permute(x)
    Rule(
        name="permute-permute",
        before=lambda x, p, q: permute(permute(x, dims=p), dims=q),
        after=lambda x, p, q: permute(x, dims=_composed(q, p)),
        samples=[shapes("m n k", p=(1, 2, 0), q=(1, 0, 2)), shapes("m n", p=(1, 0), q=(1, 0))],
        near_misses=[lambda x: permute(neg(x), dims=(0, 2, 1))],
    ),
    # expand(expand(x)) -> expand(x)
    Rule(
        name="expand-expand",
        before=lambda x, s, t: expand(expand(x, shape=s), shape=t),
        after=lambda x, t: expand(x, shape=t),
        samples=[shapes("1 1 n", s=lambda m, n: (m, 1, n), t=lambda k, m, n: (2, m, k, n))],
        near_misses=[lambda x: expand(neg(x), shape=(2, *x.shape))],
    ),
    # reshape(expand(x)) that places axes of size 1 -> expand(reshape(x))
    Rule(
        name="reshape-of-expand",
        before=lambda x, s, t: reshape(expand(x, shape=s), shape=t),
        when=lambda s, t: without_ones(s) == without_ones(t) and s != t,
        after=lambda x, s, t: expand(_regrouped(x, s, t), shape=t),
        samples=[
            shapes("1 n", s=lambda m, n: (m, n), t=lambda m, n: (m, 1, n)),
            shapes("n 1", s=lambda n, K: (1, 1, n, K + 1), t=lambda n, K: (n, 1, K + 1)),
        ],
        near_misses=[shapes("1 3", s=(2, 3), t=(6,)), shapes("1 3", s=(2, 3), t=(3, 2))],
    ),
    # permute(expand(x)) -> expand(permute(x))
    Rule(
        name="permute-of-expand",
        before=lambda x, s, p: permute(expand(x, shape=s), dims=p),
        after=lambda root, x, s, p: expand(permute(_lifted(x, len(s)), dims=p), shape=root.shape),
        samples=[shapes("1 n", s=lambda k, m, n: (k, m, n), p=(2, 0, 1))],
        near_misses=[lambda x: permute(neg(x), dims=(1, 0))],
    ),
    # x[a:b][c:d:k] -> x[a+c:a+d:k]
    Rule(
        name="slice-slice",
        before=lambda x, dim, a, b, c, d, k: slice_(
            slice_(x, dim=dim, start=a, stop=b), dim=dim, start=c, stop=d, step=k
        ),
        after=lambda x, dim, a, c, d, k: slice_(
            x, dim=dim, start=canonical_dim(a + c), stop=canonical_dim(a + d), step=k
        ),
        samples=[shapes("9 n", dim=0, a=2, b=8, c=1, d=6, k=2), shapes("n 9", dim=1, a=0, b=8, c=1, d=6, k=1)],
        near_misses=[
            lambda x: slice_(slice_(x, dim=0, start=0, stop=8, step=2), dim=0, start=1, stop=3),
            lambda x: slice_(slice_(x, dim=0, start=0, stop=8), dim=1, start=0, stop=0),
        ],
    ),
    # cat(cat(x, y), z) -> cat(x, y, z)
    Rule(
        name="concat-concat",
        before=lambda d, *xs: concat(*xs, dim=d),
        when=lambda d, *xs: len(xs) > 1 and any(x.op is concat and x.attrs["dim"] == d for x in xs),
        after=lambda d, *xs: concat(*(y for x in xs for y in _parts(x, d)), dim=d),
        samples=[
            shapes(
                lambda m, n: concat(_named("a", m, n), _named("b", m, 2), dim=1),
                lambda m, n: _named("c", m, n),
                d=1,
            )
        ],
        near_misses=[
            shapes("m n", "m n", d=0),
            shapes(lambda n: concat(_named("a", 2, n), _named("b", 2, n), dim=1), lambda n: _named("c", 3, 2 * n), d=0),
        ],
    ),
    # cat(x[a:b], x[b:c]) -> x[a:c]
    Rule(
        name="concat-of-adjacent-slices",
        before=lambda x, d, a, b, c: concat(
            slice_(x, dim=d, start=a, stop=b), slice_(x, dim=d, start=b, stop=c), dim=d
        ),
        after=lambda x, d, a, c: slice_(x, dim=d, start=a, stop=c),
        samples=[shapes("m 6", d=1, a=1, b=3, c=6)],
        near_misses=[
            lambda x: concat(slice_(x, dim=1, start=2, stop=4), slice_(x, dim=1, start=0, stop=2), dim=1),
        ],
    ),
    # cat(x, y, z)[a:b] that lies within y -> y[a':b']
    Rule(
        name="slice-of-concat",
        before=lambda d, a, b, k, *xs: slice_(concat(*xs, dim=d), dim=d, start=a, stop=b, step=k),
        when=lambda d, a, b, *xs: _holder(xs, d, a, b) is not None,
        after=lambda d, a, b, k, *xs: _slice_within(xs, d, a, b, k),
        samples=[
            shapes("m n", "m 4", d=1, a=lambda n: n + 1, b=lambda n: n + 3, k=1),
            shapes("m 5", "m n", d=-1, a=0, b=4, k=2),
        ],
        near_misses=[shapes("m 3", "m 4", d=1, a=2, b=5, k=1)],
    ),
)


def _named(name: str, *shape: Any) -> Node:
    return input(name=name, shape=shape, dtype=ops.HALF[1])


def _parts(x: Node, dim: int) -> Sequence[Node]:
    return x.inputs if x.op is concat and x.attrs["dim"] == dim else (x,)


def _holder(xs: Sequence[Node], dim: int, start: Dim, stop: Dim) -> tuple[Node, Dim] | None:
    """The operand of a concatenation that holds [start, stop), and where it begins."""
    at: Dim = 0
    for x in xs:
        if at_most(at, start) and at_most(stop, at + x.shape[dim]):
            return x, at
        at = canonical_dim(at + x.shape[dim])
    return None


def _slice_within(xs: Sequence[Node], dim: int, start: Dim, stop: Dim, step: int) -> Node:
    found = _holder(xs, dim, start, stop)
    assert found is not None
    x, at = found
    return slice_(x, dim=dim, start=canonical_dim(start - at), stop=canonical_dim(stop - at), step=step)


RULES = (*IDENTITIES, *COMPOSITIONS)
