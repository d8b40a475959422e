"""Views moved to where they meet others of their kind or disappear: reshapes and slices early, transposes late.

They come after recognition, which looks for slices where models write them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.node import Node, OpDef
from ...ir.ops import gelu, neg, permute, relu, reshape, silu, slice_, tanh
from ...ir.types import Dim, Shape, canonical_dim, product
from ..rule import ROUNDING, Rule
from ..sample import shapes
from .common import without_ones


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
    """``reshape(permute(x, p), coarse)`` with the reshape first; None where it joins what are not neighbours in x."""
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
    """The axis of x that a reshape splits with ``dim`` as the outermost part, and the size of the parts inside."""
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


def _after_activation(activation: OpDef) -> Rule:
    """``activation(permute(x)) -> permute(activation(x))``: so it can follow the product that x is, in its kernel.

    What a convolution makes of channels last is permuted to channels first, and back for the next one.
    """
    return Rule(
        name=f"permute-after-{activation.name}",
        before=lambda x, p: activation(permute(x, dims=p)),
        after=lambda x, p: permute(activation(x), dims=p),
        samples=[shapes("m 5 n", p=(0, 2, 1)), shapes("bf16: m n", p=(1, 0))],
        near_misses=[lambda x: activation(reshape(x, shape=(x.tensor_type.numel,)))],
        tolerance=ROUNDING,
    )


RULES = (
    # f(permute(x)) -> permute(f(x)) for an activation f
    *(_after_activation(f) for f in (relu, silu, tanh)),
    # relu(reshape(x)) -> reshape(relu(x)), and the same of gelu
    Rule(
        name="reshape-after-relu",
        before=lambda x, s: relu(reshape(x, shape=s)),
        after=lambda x, s: reshape(relu(x), shape=s),
        samples=[shapes("m 6 n", s=lambda m, n: (m, 2, 3, n)), shapes("bf16: m n", s=lambda m, n: (m * n,))],
        near_misses=[lambda x: relu(permute(x, dims=tuple(reversed(range(len(x.shape))))))],
    ),
    Rule(
        name="reshape-after-gelu",
        before=lambda x, s, a: gelu(reshape(x, shape=s), approximate=a),
        after=lambda x, s, a: reshape(gelu(x, approximate=a), shape=s),
        samples=[
            shapes("m 6 n", s=lambda m, n: (m, 2, 3, n), a="none"),
            shapes("bf16: m n", s=lambda m, n: (m * n,), a="tanh"),
        ],
        near_misses=[lambda x: gelu(permute(x, dims=tuple(reversed(range(len(x.shape))))))],
        tolerance=ROUNDING,
    ),
    Rule(
        name="permute-after-gelu",
        before=lambda x, p, a: gelu(permute(x, dims=p), approximate=a),
        after=lambda x, p, a: permute(gelu(x, approximate=a), dims=p),
        samples=[shapes("m 5 n", p=(0, 2, 1), a="none"), shapes("bf16: m n", p=(1, 0), a="tanh")],
        near_misses=[lambda x: gelu(reshape(x, shape=(x.tensor_type.numel,)))],
        tolerance=ROUNDING,
    ),
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
        near_misses=[shapes("5 2 3", p=(1, 0, 2), t=(2, 15)), shapes("2 3", p=(1, 0), t=(2, 3))],
    ),
    # reshape(permute(x)) that joins neighbours of x -> permute(reshape(x))
    Rule(
        name="merge-before-permute",
        before=lambda x, p, t: reshape(permute(x, dims=p), shape=t),
        when=lambda x, p, t: len(t) < len(p) and _merged_before_permute(x, p, t) is not None,
        after=lambda x, p, t: _merged_before_permute(x, p, t) or x,
        samples=[
            shapes("m 2 5 3", p=(3, 1, 2, 0), t=lambda m: (3, 10, m)),
            shapes("M N 2 3", p=(2, 3, 0, 1), t=lambda M, N: (6, M * N)),
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
