"""Scores whose batch and heads are one axis, as `torch.bmm` and `torch.baddbmm` take them, with two axes again.

Attention has an axis for each; a mask or a bias often does too.
"""

from __future__ import annotations

from typing import Any

import torch

from ...ir.node import Node
from ...ir.ops import add, div, input, matmul, mul, permute, reshape, scalar_like
from ...ir.types import Shape, broadcast_shapes, canonical_dim
from ..pattern import constant
from ..rule import ROUNDING, Rule
from ..sample import shapes
from .common import is_number


def _with_two(x: Node) -> Node | None:
    """[B, H, ...] of which ``x`` is [B H, ...]: what it was reshaped from, permuted since or not."""
    if x.op is permute and x.attrs["dims"] == (0, 2, 1):
        inner = _with_two(x.inputs[0])
        return None if inner is None else permute(inner, dims=(0, 1, 3, 2))
    source = x.inputs[0] if x.op is reshape else None
    if source is None or x.tensor_type.rank != 3 or source.tensor_type.rank != 4:
        return None
    return source if source.shape[2:] == x.shape[1:] else None


def _product(x: Node, y: Node) -> Node:
    a, b = _with_two(x), _with_two(y)
    assert a is not None
    assert b is not None
    return matmul(a, b)


def _batches(x: Node) -> Shape | None:
    """[B, H] of what ``_with_two`` finds."""
    found = _with_two(x)
    return None if found is None else found.shape[:2]


def _broadcasts(y: Node, x: Node) -> bool:
    return broadcast_shapes(x.shape, y.shape) == x.shape


def _splits_first(inner: Shape, t: Shape) -> bool:
    """Whether a reshape splits the first of three axes in two."""
    return len(inner) == 3 and len(t) == 4 and t[2:] == inner[1:]


def _split(x: Node, t: Shape) -> Node:
    """``x``, which broadcasts to [B H, s, t], as what broadcasts to [B, H, s, t]."""
    shape = x.shape
    if len(shape) < 3:
        return x
    outer = t[:2] if shape[0] == canonical_dim(t[0] * t[1]) else (1, 1)
    return reshape(x, shape=(*outer, *shape[1:]))


def _is_product(x: Node) -> bool:
    """Whether ``x`` is a product of matrices of flat batches, scaled, added to or neither."""
    for _ in range(3):
        x = x.inputs[0] if x.op in (add, mul, div) else x
    return x.op is reshape and x.inputs[0].op is matmul and x.tensor_type.rank == 3


def _flat(name: str, shape: Shape) -> Node:
    """An input [B, H, ...] as [B H, ...]."""
    x = input(name=name, shape=shape, dtype=torch.float32)
    return reshape(x, shape=(canonical_dim(shape[0] * shape[1]), *shape[2:]))


def _queries(b: Any, H: Any, s: Any, D: Any) -> Node:
    return _flat("q", (b, H, s, D))


def _keys(b: Any, H: Any, t: Any, D: Any) -> Node:
    return permute(_flat("k", (b, H, t, D)), dims=(0, 2, 1))


def _scores(b: Any, H: Any, s: Any, t: Any) -> Node:
    """A product of matrices, the first two axes of it as one."""
    q, k = (input(name=n, shape=(b, H, size, 4), dtype=torch.float32) for n, size in (("q", s), ("k", t)))
    return reshape(matmul(q, permute(k, dims=(0, 1, 3, 2))), shape=(canonical_dim(b * H), s, t))


def _split_shape(b: Any, H: Any, s: Any, t: Any) -> Shape:
    return (b, H, s, t)


RULES = (
    # reshape(x) reshape(y) -> reshape(x y) where the reshapes join the axes of batches
    Rule(
        name="product-of-flat-batches",
        before=lambda x, y: matmul(x, y),
        when=lambda x, y: _batches(x) is not None and _batches(x) == _batches(y),
        after=lambda root, x, y: reshape(_product(x, y), shape=root.shape),
        samples=[shapes(_queries, _keys), shapes(_queries, lambda b, H, D, t: _flat("v", (b, H, D, t)))],
        near_misses=[
            shapes("6 3 4", "6 4 5"),
            shapes(lambda: _flat("q", (2, 3, 5, 4)), lambda: _flat("v", (3, 2, 4, 5))),
            shapes(lambda: _flat("q", (2, 3, 5, 4)), "f32: 6 4 5"),
        ],
        tolerance=ROUNDING,
    ),
    # reshape(x c) -> reshape(x) c for scores x
    Rule(
        name="split-before-scale",
        before=lambda x, c, t: reshape(mul(x, constant(c)), shape=t),
        when=lambda x, c, t: is_number(c) and _splits_first(x.shape, t) and _is_product(x),
        after=lambda x, c, t: mul(_split(x, t), scalar_like(c, x)),
        samples=[shapes(_scores, c=0.25, t=_split_shape)],
        near_misses=[shapes("6 3 5", c=0.25, t=(2, 3, 3, 5)), shapes(lambda: _scores(2, 3, 4, 5), c=0.25, t=(6, 20))],
    ),
    # reshape(x + y) -> reshape(x) + reshape(y) for scores x
    Rule(
        name="split-before-mask",
        before=lambda x, y, t: reshape(add(x, y), shape=t),
        when=lambda root, x, y, t: _splits_first(x.shape, t) and _is_product(x) and _broadcasts(y, x),
        after=lambda x, y, t: add(_split(x, t), _split(y, t)),
        samples=[
            shapes(_scores, lambda b, H, t: _flat("m", (b, H, 1, t)), t=_split_shape),
            shapes(_scores, "f32: s t", t=_split_shape),
            shapes(_scores, "f32: 1 1 t", t=_split_shape),
        ],
        near_misses=[
            shapes("f32: 6 3 5", "f32: 6 3 5", t=(2, 3, 3, 5)),
            shapes(lambda: _scores(2, 3, 4, 5), "f32: 6 4 5", t=(6, 20)),
            shapes(lambda: _scores(2, 3, 1, 5), "f32: 6 4 5", t=(2, 3, 4, 5)),
        ],
    ),
)
