"""Views in their one form: no view that moves nothing, no two where one will do, `expand` outermost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...ir import ops
from ...ir.node import Node, OpDef
from ...ir.ops import cast, concat, expand, flip, full, input, neg, pad, permute, reshape, scalar, slice_, where
from ...ir.types import DTYPE_NAMES, Dim, Shape, canonical_dim, product
from ..pattern import COMMUTATIVE
from ..rule import EXACT, ROUNDING, Rule
from ..sample import shapes
from .common import at_most, broadcast_to, without_ones


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
    return reshape(x, shape=(*[1] * (rank - x.tensor_type.rank), *x.shape))


def _regrouped(x: Node, wide: Shape, to: Shape) -> Node:
    """``x``, which expands to ``wide``, with its axes of size 1 placed as in ``to``."""
    lifted = _lifted(x, len(wide))
    sizes = iter(size for size, dim in zip(lifted.shape, wide, strict=True) if dim != 1)
    return reshape(lifted, shape=tuple(1 if dim == 1 else next(sizes) for dim in to))


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


def refinement(coarse: Shape, fine: Shape) -> list[Shape] | None:
    """The dims of ``fine`` that each dim of ``coarse`` is split into; None where ``fine`` is no such splitting.

    A dim of 1 may be split into no dim at all.
    """
    groups: list[Shape] = []
    at = 0
    for dim in coarse:
        start, size = at, canonical_dim(1)
        while size != dim and at < len(fine):
            size, at = canonical_dim(size * fine[at]), at + 1
        if size != dim:
            return None
        groups.append(fine[start:at])
    if any(dim != 1 for dim in fine[at:]):
        return None
    if groups:
        groups[-1] = (*groups[-1], *fine[at:])
    return groups


def _split_before_permute(x: Node, p: Sequence[int], fine: Shape) -> Node:
    """``reshape(permute(x, p), fine)`` where that splits axes alone, with the split done first."""
    groups = refinement(tuple(x.shape[d] for d in p), fine)
    assert groups is not None
    inner = [groups[p.index(d)] for d in range(len(p))]
    starts = [sum(map(len, inner[:d])) for d in range(len(p))]
    order = [starts[d] + k for d in p for k in range(len(inner[d]))]
    return permute(reshape(x, shape=tuple(dim for group in inner for dim in group)), dims=tuple(order))


def _merged_before_permute(x: Node, p: Sequence[int], coarse: Shape) -> Node | None:
    """``reshape(permute(x, p), coarse)`` with the reshape done first, where that joins neighbours of x in their order."""
    groups = refinement(coarse, tuple(x.shape[d] for d in p))
    if groups is None or not all(groups):
        return None
    axes = [tuple(p[sum(map(len, groups[:i])) :][: len(group)]) for i, group in enumerate(groups)]
    if any(run != tuple(range(run[0], run[0] + len(run))) for run in axes):
        return None
    order = sorted(axes)
    shape = tuple(product(x.shape[d] for d in run) for run in order)
    return permute(reshape(x, shape=shape), dims=tuple(order.index(run) for run in axes))


def _split_axis(x: Node, s: Shape, dim: int) -> tuple[int, Dim] | None:
    """Where a reshape splits an axis of x and ``dim`` is the outermost part: that axis, and the size of what is inside."""
    groups = refinement(x.shape, s)
    at = 0
    for axis, group in enumerate(groups or ()):
        outer = without_ones(group[: dim - at])
        if at <= dim < at + len(group) and not outer:
            return axis, product(group[dim - at + 1 :])
        at += len(group)
    return None


def _slice_before_split(root: Node, x: Node, s: Shape, dim: int, start: Dim, stop: Dim) -> Node:
    found = _split_axis(x, s, dim)
    assert found is not None
    axis, inner = found
    part = slice_(x, dim=axis, start=canonical_dim(start * inner), stop=canonical_dim(stop * inner))
    return reshape(part, shape=root.shape)


# Reshapes and slices are done as early as can be, where they meet others of their kind or disappear. They come after
# recognition, which looks for slices where models write them.
MOTIONS = (
    # reshape(permute(x)) that splits axes -> permute(reshape(x))
    Rule(
        name="split-before-permute",
        before=lambda x, p, t: reshape(permute(x, dims=p), shape=t),
        when=lambda x, p, t: refinement(tuple(x.shape[d] for d in p), t) is not None,
        after=lambda x, p, t: _split_before_permute(x, p, t),
        samples=[
            shapes("m 2*H 3", p=(1, 2, 0), t=lambda m, H: (2, H, 3, m)),
            shapes("m 1 n", p=(2, 1, 0), t=lambda m, n: (1, n, m, 1)),
        ],
        near_misses=[shapes("m 2 3", p=(1, 0, 2), t=lambda m: (2, 3 * m)), shapes("2 3", p=(1, 0), t=(2, 3))],
    ),
    # reshape(permute(x)) that joins neighbours of x -> permute(reshape(x))
    Rule(
        name="merge-before-permute",
        before=lambda x, p, t: reshape(permute(x, dims=p), shape=t),
        when=lambda x, p, t: len(t) < len(p) and _merged_before_permute(x, p, t) is not None,
        after=lambda x, p, t: _merged_before_permute(x, p, t),
        samples=[
            shapes("m 2 5 3", p=(3, 1, 2, 0), t=lambda m: (3, 10, m)),
            shapes("m n 2 3", p=(2, 3, 0, 1), t=lambda m, n: (6, m * n)),
        ],
        near_misses=[
            shapes("2 3 4", p=(2, 1, 0), t=(4, 6)),
            shapes("2 3 4", p=(2, 0, 1), t=(8, 3)),
            shapes("2 3 4", p=(2, 0, 1), t=(4, 2, 3)),
        ],
    ),
    # permute(x)[a:b] -> permute(x[a:b])
    Rule(
        name="slice-before-permute",
        before=lambda x, p, d, a, b, k: slice_(permute(x, dims=p), dim=d, start=a, stop=b, step=k),
        after=lambda x, p, d, a, b, k: permute(slice_(x, dim=p[d], start=a, stop=b, step=k), dims=p),
        samples=[shapes("m 5 n", p=(1, 2, 0), d=0, a=1, b=4, k=2)],
        near_misses=[lambda x: slice_(neg(x), dim=1, start=0, stop=2)],
    ),
    # reshape(x)[a:b] along the outer part of a split axis -> reshape(x[a c:b c])
    Rule(
        name="slice-before-split",
        before=lambda x, s, d, a, b: slice_(reshape(x, shape=s), dim=d, start=a, stop=b),
        when=lambda x, s, d: _split_axis(x, s, d) is not None,
        after=lambda root, x, s, d, a, b: _slice_before_split(root, x, s, d, a, b),
        samples=[
            shapes("m 3*H", s=lambda m, H: (1, m, 3, H), d=2, a=1, b=2),
            shapes("4*n 5", s=lambda n: (4, n, 5), d=0, a=1, b=3),
        ],
        near_misses=[
            shapes("m 6", s=lambda m: (m, 3, 2), d=2, a=1, b=2),
            shapes("2 3", s=(3, 2), d=0, a=1, b=2),
            shapes("2 3", s=(6,), d=0, a=1, b=2),
        ],
    ),
)

# Operators on elements that are worth doing before their operands are expanded.
UNARY = (ops.neg, ops.bit_not, ops.exp, ops.cos, ops.sin, ops.sqrt, ops.rsqrt)
BINARY = (
    *(ops.add, ops.sub, ops.mul, ops.div, ops.maximum, ops.minimum, ops.pow, ops.floor_div),
    *(ops.eq, ops.ne, ops.lt, ops.le, ops.bit_and, ops.bit_or),
)


def _dtype_of(op: OpDef) -> str:
    return "int: " if op.name.startswith("bit") else ""


def _unary_of_expand(op: OpDef) -> Rule:
    # op(expand(x)) -> expand(op(x))
    return Rule(
        name=f"{op.name}-of-expanded".replace("_", "-"),
        before=lambda x, s: op(expand(x, shape=s)),
        after=lambda x, s: expand(op(x), shape=s),
        samples=[shapes(_dtype_of(op) + "1 n", s=lambda m, n: (2, m, n))],
        near_misses=[lambda x: op(x)],
        tolerance=ROUNDING,
    )


def _binary_of_expand(op: OpDef, swapped: bool) -> Rule:
    # x op expand(y) -> expand(x op y), which is x op y where x is as large
    def applied(x: Node, y: Node) -> Node:
        return op(y, x) if swapped else op(x, y)

    dtype = _dtype_of(op)
    return Rule(
        name=f"{op.name}-of-expanded{'-left' if swapped else ''}".replace("_", "-"),
        before=lambda x, y, s: applied(x, expand(y, shape=s)),
        after=lambda root, x, y: broadcast_to(applied(x, y), root.shape),
        samples=[
            shapes(dtype + "m n", dtype + "n", s=lambda m, n: (m, n)),
            shapes(dtype + "m 1", dtype + "1 n", s=lambda m, n: (m, n)),
            shapes(dtype + "n", dtype + "1 n", s=lambda m, n: (m, n)),
        ],
        near_misses=[lambda x, y: applied(x, y)],
        tolerance=ROUNDING if op is ops.pow else EXACT,
    )


def _binary_of_wide_constant(op: OpDef, swapped: bool) -> Rule:
    # x op [c, c, ...] -> expand(x op c), which is x op c where x is as large
    def applied(x: Node, c: Node) -> Node:
        return op(c, x) if swapped else op(x, c)

    dtype = torch.int64 if op.name.startswith("bit") else torch.float32
    operand = f"{DTYPE_NAMES[dtype]}: "
    return Rule(
        name=f"{op.name}-of-wide-constant{'-left' if swapped else ''}".replace("_", "-"),
        before=lambda x, c, s, t: applied(x, full(shape=s, value=c, dtype=t)),
        when=lambda root, x, s: s != () and x.op is not full,
        after=lambda root, x, c, t: broadcast_to(applied(x, scalar(c, t)), root.shape),
        samples=[
            shapes(operand + "m n", c=3, s=lambda n: (n,), t=dtype),
            shapes(operand + "n", c=3, s=lambda m: (m, 1), t=dtype),
        ],
        near_misses=[shapes(operand + "m n", c=3, s=(), t=dtype)],
        tolerance=ROUNDING if op is ops.pow else EXACT,
    )


EXPANSIONS = (
    *(_binary_of_wide_constant(op, swapped=False) for op in BINARY),
    *(_binary_of_wide_constant(op, swapped=True) for op in BINARY if op not in COMMUTATIVE),
    *map(_unary_of_expand, UNARY),
    *(_binary_of_expand(op, swapped=False) for op in BINARY),
    *(_binary_of_expand(op, swapped=True) for op in BINARY if op not in COMMUTATIVE),
    # cast(expand(x)) -> expand(cast(x))
    Rule(
        name="cast-of-expanded",
        before=lambda x, s, t: cast(expand(x, shape=s), dtype=t),
        after=lambda x, s, t: expand(cast(x, dtype=t), shape=s),
        samples=[shapes("int: 1 n", s=lambda m, n: (m, n), t=torch.float32)],
        near_misses=[lambda x: cast(x, dtype=torch.float32)],
    ),
    # where(expand(p), x, y) -> expand(where(p, x, y))
    Rule(
        name="where-of-expanded-condition",
        before=lambda p, x, y, s: where(expand(p, shape=s), x, y),
        after=lambda root, p, x, y: broadcast_to(where(p, x, y), root.shape),
        samples=[shapes("bool: 1 n", "m n", "n", s=lambda m, n: (m, n)), shapes("bool: 1", "1", "1", s=lambda m: (m,))],
        near_misses=[lambda p, x, y: where(p, x, y)],
    ),
    # where(p, expand(x), y) -> expand(where(p, x, y))
    Rule(
        name="where-of-expanded-left",
        before=lambda p, x, y, s: where(p, expand(x, shape=s), y),
        after=lambda root, p, x, y: broadcast_to(where(p, x, y), root.shape),
        samples=[shapes("bool: m n", "1 n", "n", s=lambda m, n: (m, n)), shapes("bool: 1", "1", "1", s=lambda m: (m,))],
        near_misses=[lambda p, x, y: where(p, x, y)],
    ),
    # where(p, [c, c, ...], y) -> expand(where(p, c, y))
    Rule(
        name="where-of-wide-constant-left",
        before=lambda p, y, c, s, t: where(p, full(shape=s, value=c, dtype=t), y),
        when=lambda s: s != (),
        after=lambda root, p, y, c, t: broadcast_to(where(p, scalar(c, t), y), root.shape),
        samples=[shapes("bool: m 1", "f32: 1", c=0.5, s=lambda n: (n,), t=torch.float32)],
        near_misses=[shapes("bool: m n", "f32: n", c=0.5, s=(), t=torch.float32)],
    ),
    # where(p, x, [c, c, ...]) -> expand(where(p, x, c))
    Rule(
        name="where-of-wide-constant-right",
        before=lambda p, x, c, s, t: where(p, x, full(shape=s, value=c, dtype=t)),
        when=lambda s: s != (),
        after=lambda root, p, x, c, t: broadcast_to(where(p, x, scalar(c, t)), root.shape),
        samples=[shapes("bool: m 1", "f32: 1", c=0.5, s=lambda n: (n,), t=torch.float32)],
        near_misses=[shapes("bool: m n", "f32: n", c=0.5, s=(), t=torch.float32)],
    ),
    # where(p, x, expand(y)) -> expand(where(p, x, y))
    Rule(
        name="where-of-expanded-right",
        before=lambda p, x, y, s: where(p, x, expand(y, shape=s)),
        after=lambda root, p, x, y: broadcast_to(where(p, x, y), root.shape),
        samples=[shapes("bool: m n", "n", "1 n", s=lambda m, n: (m, n)), shapes("bool: 1", "1", "1", s=lambda m: (m,))],
        near_misses=[lambda p, x, y: where(p, x, y)],
    ),
)

RULES = (*IDENTITIES, *COMPOSITIONS, *EXPANSIONS)
