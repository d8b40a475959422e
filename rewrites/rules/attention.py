"""Attention from products and softmax.

A query that sees no key at all gets 0 from the operator, and NaN from a softmax over a row of -inf. Where a mask may
hide all keys, the NaN is put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ...ir.node import Node, topological
from ...ir.ops import (
    add,
    arange,
    attention,
    bit_and,
    bit_not,
    bit_or,
    div,
    eq,
    gt,
    input,
    lt,
    matmul,
    mul,
    permute,
    reshape,
    scalar,
    scalar_like,
    softmax,
    tanh,
    where,
)
from ...ir.ops import all as all_
from ...ir.types import Shape, broadcast_shapes
from ..pattern import constant, without_casts
from ..rule import ROUNDING, Domain, Rule
from ..sample import shapes
from .common import is_number, like

MINUS_INFINITY = -math.inf
LARGE = 1e4  # half the largest number of float16, the least of the dtypes, is more than this

# --- from primitives --------------------------------------------------------------------------------------------------


def _fit(q: Node, kt: Node, v: Node, m: Node | None = None, c: Any = 1.0, p: Any = 1.0) -> bool:
    """Whether operands are those of attention: one batch, heads that fit, a mask that widens nothing."""
    rank = q.tensor_type.rank
    if rank not in (3, 4) or not rank == kt.tensor_type.rank == v.tensor_type.rank:
        return False
    if not is_number(c) or c == 0 or not is_number(p) or p <= 0:
        return False
    # as many heads for all, or one head of keys and values for all heads of queries
    shared = rank == 4 and q.shape[0] == kt.shape[0] and kt.shape[1] == 1 and isinstance(q.shape[1], int)
    if kt.shape[: rank - 2] != v.shape[: rank - 2] or not (q.shape[: rank - 2] == kt.shape[: rank - 2] or shared):
        return False
    scores = (*q.shape[:-1], kt.shape[-1])
    return m is None or bool(broadcast_shapes(scores, m.shape) == scores)


def _built(root: Node, scale: float, q: Node, kt: Node, v: Node, m: Node | None = None, p: float = 0.0) -> Node:
    rank = q.tensor_type.rank
    k = permute(kt, dims=(*range(rank - 2), rank - 1, rank - 2))
    operands = [_with_heads(like(x, root)) for x in (q, k, v, m) if x is not None]
    found = attention(*operands, scale=scale, softcap=float(p))
    if m is not None and _may_hide(m):
        none = all_(eq(operands[3], scalar(MINUS_INFINITY, root.dtype)), dims=(-1,), keepdim=True)
        hidden = bit_and(none, gt(scalar(kt.shape[-1], torch.int64), scalar(0, torch.int64)))  # no keys at all: 0
        found = where(hidden, scalar(math.nan, root.dtype), found)
    return reshape(found, shape=root.shape)


def _may_hide(m: Node) -> bool:
    """Whether a mask that is added may be -inf for every key: the softmax of such a row is NaN, the operator gives 0.

    A mask made of finite numbers alone may not, unless two of the lowest are added up; nor may one of weights, taken to
    be finite as all weights are.
    """
    if m.tensor_type.rank == 0:
        return False
    large: dict[Node, bool] = {}  # nodes from which a number near the limits of a dtype can be reached
    for node in topological([m]):
        value = node.attrs.get("value")
        number = value if isinstance(value, float) else 0.0
        if not math.isfinite(number) or (node.op is input and node.dtype.is_floating_point):
            return True
        large[node] = abs(number) > LARGE or any(large[x] for x in node.inputs)
        if node.op in (add, mul) and node.dtype.is_floating_point and all(large[x] for x in node.inputs):
            return True
    return False


def _with_heads(x: Node) -> Node:
    """[B, S, D] as [B, 1, S, D]; a mask of fewer axes broadcasts as it is."""
    shape: Shape = x.shape
    return reshape(x, shape=(shape[0], 1, *shape[1:])) if len(shape) == 3 else x


def _weighted(scores: Node, v: Any) -> Node:
    """The pattern of softmax(scores) v."""
    return matmul(softmax(scores, dim=-1), v)


def _capped(scores: Any, p: Any) -> Node:
    """The pattern of p tanh(scores / p)."""
    return mul(tanh(div(scores, constant(p))), constant(p))


HEADS = ("f32: b H s D", "f32: b H D t", "f32: b H t E")
ONE_HEAD = ("f32: b H s D", "f32: b 1 D t", "f32: b 1 t E")
NO_HEADS = ("f32: b s D", "f32: b D t", "f32: b t E")
BROADCAST = ("f32: 2 3 D", "f32: 2 D t", "f32: 1 t E")  # a batch of values that broadcasts


def _of_products(name: str, before: Callable[..., Node], scale: Callable[[Any], float], *mask: str, **c: Any) -> Rule:
    """The rule for one way to scale and mask the scores; with a mask, ``mask`` is how it is shaped in the samples."""
    rows = ("f32: b s t",) if mask else ()
    return Rule(
        name=name,
        before=before,
        when=lambda **bound: _fit(**bound),
        after=lambda root, **bound: _built(root, scale(bound.pop("c", 1.0)), **bound),
        samples=[shapes(*HEADS, *mask, **c), shapes(*NO_HEADS, *rows, **c), shapes(*ONE_HEAD, *mask, **c)],
        near_misses=[
            shapes(*BROADCAST, *(("f32: 3 t",) if mask else ()), **c),
            lambda q, kt, v: matmul(softmax(matmul(q, kt), dim=-2), v),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    )


PRODUCTS = (
    # softmax(q k^T) v -> attention(q, k, v)
    _of_products("attention-of-scores", lambda q, kt, v: _weighted(matmul(q, kt), v), lambda c: 1.0),
    # softmax(c q k^T) v -> attention(q, k, v, scale=c)
    _of_products(
        "attention-of-scaled-scores",
        lambda q, kt, v, c: _weighted(mul(matmul(q, kt), constant(c)), v),
        lambda c: float(c),
        c=0.25,
    ),
    # softmax(q k^T / c) v -> attention(q, k, v, scale=1/c)
    _of_products(
        "attention-of-divided-scores",
        lambda q, kt, v, c: _weighted(div(matmul(q, kt), constant(c)), v),
        lambda c: 1.0 / c,
        c=3.0,
    ),
    # softmax(q k^T + m) v -> attention(q, k, v, m)
    _of_products(
        "attention-of-masked-scores",
        lambda q, kt, v, m: _weighted(add(matmul(q, kt), m), v),
        lambda c: 1.0,
        "f32: b 1 1 t",
    ),
    # softmax(c q k^T + m) v -> attention(q, k, v, m, scale=c)
    _of_products(
        "attention-of-scaled-masked-scores",
        lambda q, kt, v, m, c: _weighted(add(mul(matmul(q, kt), constant(c)), m), v),
        lambda c: float(c),
        "f32: s t",
        c=0.25,
    ),
    # softmax(q k^T / c + m) v -> attention(q, k, v, m, scale=1/c)
    _of_products(
        "attention-of-divided-masked-scores",
        lambda q, kt, v, m, c: _weighted(add(div(matmul(q, kt), constant(c)), m), v),
        lambda c: 1.0 / c,
        "f32: 1 H s t",
        c=3.0,
    ),
    # softmax(p tanh(q k^T / p)) v -> attention(q, k, v, softcap=p)
    _of_products(
        "attention-of-capped-scores",
        lambda q, kt, v, p: _weighted(_capped(matmul(q, kt), p), v),
        lambda c: 1.0,
        p=3.0,
    ),
    # softmax(p tanh(c q k^T / p)) v -> attention(q, k, v, scale=c, softcap=p)
    _of_products(
        "attention-of-scaled-capped-scores",
        lambda q, kt, v, c, p: _weighted(_capped(mul(matmul(q, kt), constant(c)), p), v),
        lambda c: float(c),
        c=0.25,
        p=3.0,
    ),
    # softmax(p tanh(q k^T / p) + m) v -> attention(q, k, v, m, softcap=p)
    _of_products(
        "attention-of-capped-masked-scores",
        lambda q, kt, v, m, p: _weighted(add(_capped(matmul(q, kt), p), m), v),
        lambda c: 1.0,
        "f32: b 1 1 t",
        p=3.0,
    ),
    # softmax(p tanh(c q k^T / p) + m) v -> attention(q, k, v, m, scale=c, softcap=p)
    _of_products(
        "attention-of-scaled-capped-masked-scores",
        lambda q, kt, v, m, c, p: _weighted(add(_capped(mul(matmul(q, kt), constant(c)), p), m), v),
        lambda c: float(c),
        "f32: s t",
        c=0.25,
        p=3.0,
    ),
)


def _is_scores(x: Node) -> bool:
    """Whether ``x`` is a product of matrices, scaled, capped or masked already, or not."""
    for _ in range(6):
        x = without_casts(x.inputs[0] if x.op in (add, mul, div, tanh) else x)
    return x.op is matmul


def _scores() -> Node:
    """A product of matrices that samples mask."""
    q, k = (input(name=name, shape=(2, 3, 4), dtype=torch.float32) for name in "qk")
    return matmul(q, permute(k, dims=(0, 2, 1)))


def mask_of_keys(s: Any, t: Any) -> Node:
    """A random mask that lets every query see the first key."""
    first = reshape(lt(arange(size=t), scalar(1, torch.int64)), shape=(1, t))
    return bit_or(input(name="m", shape=(s, t), dtype=torch.bool), first)


LOWEST = torch.finfo(torch.float32).min


def _is_fill(c: Any, dtype: torch.dtype) -> bool:
    """Whether a number masks scores: -inf, or the lowest of their dtype, which swallows what is added to it."""
    return bool(c in (MINUS_INFINITY, torch.finfo(dtype).min))


# The ways to mask scores, as a mask that is added.
MASKED_SCORES = (
    # softmax(where(m, s, c)) -> softmax(s + where(m, 0, c)) for scores s and c = -inf or the lowest number
    Rule(
        name="scores-kept-by-mask",
        before=lambda m, s, c, d: softmax(where(m, s, constant(c)), dim=d),
        when=lambda root, s, c: _is_fill(c, s.dtype) and _is_scores(s) and s.shape == root.shape,
        after=lambda m, s, c, d: softmax(add(s, where(m, scalar_like(0.0, s), scalar_like(c, s))), dim=d),
        samples=[
            shapes(lambda: mask_of_keys(3, 3), lambda: _scores(), c=MINUS_INFINITY, d=-1),
            shapes(lambda: mask_of_keys(3, 3), lambda: _scores(), c=LOWEST, d=-1),
        ],
        near_misses=[
            shapes(lambda: mask_of_keys(3, 3), lambda: _scores(), c=-1e4, d=-1),
            shapes("bool: m n", "f32: m n", c=LOWEST, d=-1),
            shapes("bool: 5 2 3 3", lambda: _scores(), c=LOWEST, d=-1),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # softmax(where(m, c, s)) -> softmax(s + where(m, c, 0)) for scores s and c = -inf or the lowest number
    Rule(
        name="scores-filled-by-mask",
        before=lambda m, s, c, d: softmax(where(m, constant(c), s), dim=d),
        when=lambda root, s, c: _is_fill(c, s.dtype) and _is_scores(s) and s.shape == root.shape,
        after=lambda m, s, c, d: softmax(add(s, where(m, scalar_like(c, s), scalar_like(0.0, s))), dim=d),
        samples=[
            shapes(lambda: bit_not(mask_of_keys(3, 3)), lambda: _scores(), c=MINUS_INFINITY, d=-1),
            shapes(lambda: bit_not(mask_of_keys(3, 3)), lambda: _scores(), c=LOWEST, d=-1),
        ],
        near_misses=[
            shapes(lambda: mask_of_keys(3, 3), lambda: _scores(), c=-1e4, d=-1),
            shapes("bool: m n", "f32: m n", c=LOWEST, d=-1),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # softmax(where(m, s, c) + n) -> softmax(s + (where(m, 0, c) + n)) for scores s and c = -inf or the lowest number
    Rule(
        name="scores-kept-by-mask-and-masked",
        before=lambda m, s, c, n, d: softmax(add(where(m, s, constant(c)), n), dim=d),
        when=lambda root, m, s, c: _is_fill(c, s.dtype) and _is_scores(s) and s.shape == root.shape,
        after=lambda m, s, c, n, d: softmax(add(s, add(where(m, scalar_like(0.0, s), scalar_like(c, s)), n)), dim=d),
        samples=[
            shapes(lambda: mask_of_keys(3, 3), lambda: _scores(), "f32: 1 3", c=MINUS_INFINITY, d=-1),
            shapes(lambda: mask_of_keys(3, 3), lambda: _scores(), "f32: 3 1", c=LOWEST, d=-1),
        ],
        near_misses=[
            shapes(lambda: mask_of_keys(3, 3), lambda: _scores(), "f32: 1 3", c=-1e4, d=-1),
            shapes("bool: m n", "f32: m n", "f32: m n", c=LOWEST, d=-1),
        ],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # softmax((s + m) + n) -> softmax(s + (m + n)) for scores s
    Rule(
        name="scores-masked-twice",
        before=lambda s, m, n, d: softmax(add(add(s, m), n), dim=d),
        when=lambda root, s, m: _is_scores(s) and s.op is not add and s.shape == root.shape,
        after=lambda root, s, m, n, d: softmax(add(like(s, root), add(like(m, root), like(n, root))), dim=d),
        samples=[shapes(lambda: _scores(), "f32: 1 3", "f32: 3 1", d=-1)],
        near_misses=[shapes("f32: 2 3", "f32: 1 3", "f32: 2 1", d=-1)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
        through_casts=True,
    ),
)

RULES = (*MASKED_SCORES, *PRODUCTS)
