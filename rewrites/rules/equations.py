"""Equations for ``optimize="search"``: both sides are right, and which is cheaper depends on sizes.

They hold for real numbers, and for integers modulo 2^n; floating-point results differ by rounding, and where a value
overflows on one side it need not on the other. They are no part of ``RULES``: applied wherever they fit they would have
no end. An e-graph (``rewrites.search``) holds all that follows from them, and the cheapest is taken out. Half types are
left alone: what is computed between two products would be rounded to seven or ten bits more often than in the model.

Every guard looks at types alone, since an e-graph knows a value by any of many nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ...ir.node import Node, OpDef
from ...ir.ops import (
    add,
    exp,
    gelu,
    linear,
    matmul,
    mean,
    mul,
    neg,
    permute,
    relu,
    sigmoid,
    silu,
    sub,
    tanh,
    transpose,
)
from ...ir.ops import sum as sum_
from ..rule import ROUNDING, Domain, Rule
from ..sample import Sample, shapes
from .common import is_integer

Picture = Callable[..., Node]


def is_wide(x: Node) -> bool:
    """Whether the dtype has at least the digits of float32, or is an integer's."""
    return x.dtype in (torch.float32, torch.float64) or is_integer(x.dtype)


def _one_way(
    name: str,
    before: Picture,
    after: Picture,
    samples: Sequence[Sample],
    misses: Sequence[Sample | Picture],
    when: Callable[..., bool] | None,
) -> Rule:
    return Rule(
        name=name,
        before=before,
        after=after,
        samples=samples,
        near_misses=misses,
        when=when,
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    )


def _both(
    name: str,
    left: Picture,
    right: Picture,
    samples: Sequence[Sample],
    misses: Sequence[Sample],
    when: Callable[..., bool],
    back_misses: Sequence[Sample] = (),
) -> tuple[Rule, Rule]:
    """An equation as a rule for each direction; both sides have the same variables."""
    forth = _one_way(name, left, right, samples, misses, when)
    return forth, _one_way(f"{name}-back", right, left, samples, back_misses or misses, when)


def _matrices_agree(b: Node, c: Node) -> bool:
    """Whether two factors have matrices of one size: in a sum of the two neither is broadcast but over the batch."""
    return b.shape[-2:] == c.shape[-2:]


def _scales_rows(a: Node, s: Node) -> bool:
    """Whether ``s`` has one element for a row of ``a``, or is a scalar."""
    return a.tensor_type.rank >= 2 and (not s.shape or s.shape[-1] == 1)


def _scales_columns(b: Node, s: Node) -> bool:
    """Whether ``s`` has one element for a column of ``b``, or is a scalar."""
    return b.tensor_type.rank >= 2 and (s.tensor_type.rank < 2 or s.shape[-2] == 1)


def _is_transpose(p: tuple[int, ...]) -> bool:
    """Whether a permutation exchanges the last two axes alone."""
    rank = len(p)
    return rank >= 2 and p == (*range(rank - 2), rank - 1, rank - 2)


def _keeps_matrices(p: tuple[int, ...]) -> bool:
    """Whether a permutation moves none of the last two axes."""
    rank = len(p)
    return rank >= 2 and p[-2:] == (rank - 2, rank - 1)


def _transposed(x: Node) -> Node:
    return transpose(x, -1, -2)


CHAINS = (
    # (a b) c = a (b c)
    *_both(
        "matmul-chain",
        lambda a, b, c: matmul(matmul(a, b), c),
        lambda a, b, c: matmul(a, matmul(b, c)),
        samples=[
            shapes("f32: m K", "f32: K N", "f32: N p"),
            shapes("f64: b m K", "f64: K N", "f64: b N p"),
            shapes("int: m K", "int: K N", "int: N p"),
        ],
        misses=[shapes("bf16: m K", "bf16: K N", "bf16: N p")],
        when=lambda root: is_wide(root),
    ),
    # (x a^T) b^T = x (b a)^T
    *_both(
        "linear-chain",
        lambda x, a, b: linear(linear(x, a), b),
        lambda x, a, b: linear(x, matmul(b, a)),
        samples=[shapes("f32: b m K", "f32: R K", "f32: N R"), shapes("f64: K", "f64 weight: R K", "f64 weight: N R")],
        misses=[shapes("f16: m K", "f16: R K", "f16: N R")],
        when=lambda root: is_wide(root),
    ),
    # (a b) w^T = a (b w^T)
    *_both(
        "layer-of-product",
        lambda a, b, w: linear(matmul(a, b), w),
        lambda a, b, w: matmul(a, linear(b, w)),
        samples=[shapes("f32: b m K", "f32: K N", "f32: R N"), shapes("f64: m K", "f64: b K N", "f64 weight: R N")],
        misses=[shapes("f16: m K", "f16: K N", "f16: R N")],
        when=lambda root: is_wide(root),
    ),
    # x (w a^T)^T = (x a) w^T
    *_both(
        "layer-of-layer",
        lambda x, w, a: linear(x, linear(w, a)),
        lambda x, w, a: linear(matmul(x, a), w),
        samples=[
            shapes("f32: b m K", "f32: N R", "f32: K R"),
            shapes("f64: m K", "f64 weight: N R", "f64 weight: K R"),
        ],
        misses=[shapes("f16: m K", "f16: N R", "f16: K R"), shapes("f32: K", "f32: N R", "f32: K R")],
        back_misses=[shapes("f16: m K", "f16: N R", "f16: K R"), shapes("f32: b m K", "f32: N R", "f32: b K R")],
        when=lambda x, w, a: is_wide(x) and x.tensor_type.rank >= 2 and w.tensor_type.rank == a.tensor_type.rank == 2,
    ),
    # x w^T + b = linear(x, w, b)
    *_both(
        "linear-with-bias",
        lambda x, w, b: add(linear(x, w), b),
        lambda x, w, b: linear(x, w, b),
        samples=[shapes("f32: b m K", "f32: N K", "f32: N")],
        misses=[shapes("f16: m K", "f16: N K", "f16: N")],
        when=lambda w, b: is_wide(w) and b.shape == w.shape[:1],
    ),
)


def _factors(op: OpDef, word: str) -> tuple[Rule, ...]:
    """The distributive laws for a sum or a difference."""
    return (
        # a b + a c = a (b + c)
        *_both(
            f"{word}-of-left-products",
            lambda a, b, c: op(matmul(a, b), matmul(a, c)),
            lambda a, b, c: matmul(a, op(b, c)),
            samples=[
                shapes("f32: m K", "f32: K N", "f32: K N"),
                shapes("f64: m K", "f64: b K N", "f64: K N"),
                shapes("int: m K", "int: K N", "int: K N"),
            ],
            misses=[
                shapes("f32: m K", "f32: K 3", "f32: K 1"),
                shapes("bf16: m K", "bf16: K N", "bf16: K N"),
            ],
            when=lambda b, c: is_wide(b) and _matrices_agree(b, c),
        ),
        # a c + b c = (a + b) c
        *_both(
            f"{word}-of-right-products",
            lambda a, b, c: op(matmul(a, c), matmul(b, c)),
            lambda a, b, c: matmul(op(a, b), c),
            samples=[shapes("f32: b m K", "f32: m K", "f32: K N"), shapes("int: m K", "int: m K", "int: K N")],
            misses=[
                shapes("f32: 3 K", "f32: 1 K", "f32: K N"),
                shapes("bf16: m K", "bf16: m K", "bf16: K N"),
            ],
            when=lambda a, b: is_wide(a) and _matrices_agree(a, b),
        ),
        # x w^T + x v^T = x (w + v)^T
        *_both(
            f"{word}-of-layers",
            lambda x, w, v: op(linear(x, w), linear(x, v)),
            lambda x, w, v: linear(x, op(w, v)),
            samples=[shapes("f32: b m K", "f32: N K", "f32: N K")],
            misses=[shapes("f32: m K", "f32: 3 K", "f32: 1 K"), shapes("f16: m K", "f16: N K", "f16: N K")],
            when=lambda w, v: is_wide(w) and w.type == v.type,
        ),
        # x w^T + y w^T = (x + y) w^T
        *_both(
            f"{word}-of-layer-results",
            lambda x, y, w: op(linear(x, w), linear(y, w)),
            lambda x, y, w: linear(op(x, y), w),
            samples=[shapes("f32: b m K", "f32: b m K", "f32: N K")],
            misses=[shapes("f32: b 3 K", "f32: 1 K", "f32: N K"), shapes("f16: m K", "f16: m K", "f16: N K")],
            when=lambda x, y: is_wide(x) and x.type == y.type,
        ),
        # x a + x b = x (a + b)
        *_both(
            f"{word}-of-multiples",
            lambda x, a, b: op(mul(x, a), mul(x, b)),
            lambda x, a, b: mul(x, op(a, b)),
            samples=[shapes("f32: m n", "f32: m n", "f32: n"), shapes("int: m", "int: m", "int: m")],
            misses=[shapes("f16: m n", "f16: m n", "f16: m n")],
            when=lambda root: is_wide(root),
        ),
    )


# What a sum of three holds in any order: the rules above see two terms only where they stand side by side.
THREE_TERMS = (
    # (p + a b) + a c -> p + a (b + c)
    _one_way(
        "sum-of-left-products-and-more",
        lambda p, a, b, c: add(add(p, matmul(a, b)), matmul(a, c)),
        lambda p, a, b, c: add(p, matmul(a, add(b, c))),
        samples=[shapes("f32: m N", "f32: m K", "f32: K N", "f32: K N")],
        misses=[
            shapes("f32: m 3", "f32: m K", "f32: K 3", "f32: K 1"),
            shapes("f16: m N", "f16: m K", "f16: K N", "f16: K N"),
        ],
        when=lambda b, c: is_wide(b) and _matrices_agree(b, c),
    ),
    # (p + a c) + b c -> p + (a + b) c
    _one_way(
        "sum-of-right-products-and-more",
        lambda p, a, b, c: add(add(p, matmul(a, c)), matmul(b, c)),
        lambda p, a, b, c: add(p, matmul(add(a, b), c)),
        samples=[shapes("f32: m N", "f32: m K", "f32: m K", "f32: K N")],
        misses=[
            shapes("f32: 3 N", "f32: 3 K", "f32: 1 K", "f32: K N"),
            shapes("f16: m N", "f16: m K", "f16: m K", "f16: K N"),
        ],
        when=lambda a, b: is_wide(a) and _matrices_agree(a, b),
    ),
    # (p + x w^T) + x v^T -> p + x (w + v)^T
    _one_way(
        "sum-of-layers-and-more",
        lambda p, x, w, v: add(add(p, linear(x, w)), linear(x, v)),
        lambda p, x, w, v: add(p, linear(x, add(w, v))),
        samples=[shapes("f32: N", "f32: b m K", "f32: N K", "f32: N K")],
        misses=[
            shapes("f32: 3", "f32: m K", "f32: 3 K", "f32: 1 K"),
            shapes("f16: N", "f16: m K", "f16: N K", "f16: N K"),
        ],
        when=lambda w, v: is_wide(w) and w.type == v.type,
    ),
)

SCALES = (
    # diag(s) (a b) = (diag(s) a) b
    *_both(
        "scale-of-rows",
        lambda a, b, s: mul(matmul(a, b), s),
        lambda a, b, s: matmul(mul(a, s), b),
        samples=[
            shapes("f32: m K", "f32: K N", "f32: m 1"),
            shapes("f64: b m K", "f64: K N", "f64:"),
            shapes("int: m K", "int: K N", "int: 1"),
        ],
        misses=[shapes("f32: m 3", "f32: 3 3", "f32: 3"), shapes("f16: m K", "f16: K N", "f16:")],
        when=lambda root, a, s: is_wide(root) and _scales_rows(a, s),
    ),
    # (a b) diag(s) = a (b diag(s))
    *_both(
        "scale-of-columns",
        lambda a, b, s: mul(matmul(a, b), s),
        lambda a, b, s: matmul(a, mul(b, s)),
        samples=[shapes("f32: b m K", "f32: K N", "f32: N"), shapes("int: m K", "int: K N", "int:")],
        misses=[shapes("f32: 3 3", "f32: 3 N", "f32: 3 1"), shapes("f16: m K", "f16: K N", "f16:")],
        when=lambda root, b, s: is_wide(root) and _scales_columns(b, s),
    ),
    # s (x w^T) = (s x) w^T
    *_both(
        "scale-of-layer-input",
        lambda x, w, s: mul(linear(x, w), s),
        lambda x, w, s: linear(mul(x, s), w),
        samples=[shapes("f32: b m K", "f32: N K", "f32:"), shapes("f32: m K", "f32: N K", "f32: m 1")],
        misses=[shapes("f32: m 3", "f32: 3 3", "f32: 3"), shapes("f16: m K", "f16: N K", "f16:")],
        when=lambda x, s: is_wide(x) and _scales_rows(x, s) and s.tensor_type.rank <= x.tensor_type.rank,
    ),
    # s (x w^T) = x (s w)^T
    *_both(
        "scale-of-layer-weight",
        lambda x, w, s: mul(linear(x, w), s),
        lambda x, w, s: linear(x, mul(w, s)),
        samples=[shapes("f32: b m K", "f32 weight: N K", "f32:")],
        misses=[shapes("f32: m 3", "f32: 3 3", "f32: 3"), shapes("f16: m K", "f16: N K", "f16:")],
        when=lambda root, s: is_wide(root) and not s.shape,
    ),
)

REDUCTIONS = (
    # mean over rows of x w^T -> (mean over rows of x) w^T
    _one_way(
        "mean-of-layer",
        lambda x, w, d, k: mean(linear(x, w), dims=d, keepdim=k),
        lambda x, w, d, k: linear(mean(x, dims=d, keepdim=k), w),
        samples=[
            shapes("f32: b m K", "f32: N K", d=(1,), k=False),
            shapes("f32: b m K", "f32: N K", d=(0, 1), k=True),
        ],
        misses=[
            shapes("f32: m 3", "f32: 3 3", d=(1,), k=False),
            shapes("f16: m K", "f16: N K", d=(0,), k=True),
        ],
        when=lambda x, d: is_wide(x) and x.tensor_type.rank - 1 not in d,
    ),
    # mean over rows of x w^T + b -> (mean over rows of x) w^T + b
    _one_way(
        "mean-of-layer-with-bias",
        lambda x, w, b, d, k: mean(linear(x, w, b), dims=d, keepdim=k),
        lambda x, w, b, d, k: linear(mean(x, dims=d, keepdim=k), w, b),
        samples=[shapes("f32: b m K", "f32: N K", "f32: N", d=(1,), k=False)],
        misses=[
            shapes("f32: m 3", "f32: 3 3", "f32: 3", d=(1,), k=False),
            shapes("f16: m K", "f16: N K", "f16: N", d=(0,), k=True),
        ],
        when=lambda x, d: is_wide(x) and x.tensor_type.rank - 1 not in d,
    ),
    # sum over rows of x w^T -> (sum over rows of x) w^T
    _one_way(
        "sum-of-layer",
        lambda x, w, d, k: sum_(linear(x, w), dims=d, keepdim=k),
        lambda x, w, d, k: linear(sum_(x, dims=d, keepdim=k), w),
        samples=[
            shapes("f32: b m K", "f32: N K", d=(1,), k=False),
            shapes("f32: b m K", "f32: N K", d=(0, 1), k=True),
        ],
        misses=[
            shapes("f32: m 3", "f32: 3 3", d=(1,), k=False),
            shapes("f16: m K", "f16: N K", d=(0,), k=True),
        ],
        when=lambda x, d: x.dtype in (torch.float32, torch.float64) and x.tensor_type.rank - 1 not in d,
    ),
)

TRANSPOSES = (
    # (a b)^T -> b^T a^T
    _one_way(
        "transpose-of-product",
        lambda a, b, p: permute(matmul(a, b), dims=p),
        lambda a, b: matmul(_transposed(b), _transposed(a)),
        samples=[shapes("f32: m K", "f32: K N", p=(1, 0)), shapes("f32: b m K", "f32: K N", p=(0, 2, 1))],
        misses=[
            shapes("f32: b m K", "f32: K N", p=(2, 0, 1)),
            shapes("f16: m K", "f16: K N", p=(1, 0)),
        ],
        when=lambda root, p: is_wide(root) and _is_transpose(p),
    ),
    # (x w^T)^T -> w x^T
    _one_way(
        "transpose-of-layer",
        lambda x, w: permute(linear(x, w), dims=(1, 0)),
        lambda x, w: linear(w, x),
        samples=[shapes("f32: m K", "f32: N K")],
        misses=[shapes("f16: m K", "f16: N K")],
        when=lambda root: is_wide(root) and root.tensor_type.rank == 2,
    ),
    # b^T a^T -> (a b)^T
    _one_way(
        "product-of-transposes",
        lambda a, b, p, q: matmul(permute(b, dims=q), permute(a, dims=p)),
        lambda a, b: _transposed(matmul(a, b)),
        samples=[shapes("f32: b m K", "f32: K N", p=(0, 2, 1), q=(1, 0))],
        misses=[
            shapes("f32: K b m", "f32: K N", p=(1, 0, 2), q=(1, 0)),
            shapes("f16: m K", "f16: K N", p=(1, 0), q=(1, 0)),
        ],
        when=lambda root, p, q: is_wide(root) and _is_transpose(p) and _is_transpose(q),
    ),
    # permute(a b) = permute(a) permute(b), of axes of the batch
    *_both(
        "permute-of-batched-product",
        lambda a, b, p: permute(matmul(a, b), dims=p),
        lambda a, b, p: matmul(permute(a, dims=p), permute(b, dims=p)),
        samples=[shapes("f32: b 3 m K", "f32: b 3 K N", p=(1, 0, 2, 3))],
        misses=[
            shapes("f32: 2 2 2", "f32: 2 2 2", p=(1, 2, 0)),
            shapes("f16: b 3 m K", "f16: b 3 K N", p=(1, 0, 2, 3)),
        ],
        when=lambda a, b, p: is_wide(a) and _keeps_matrices(p) and a.tensor_type.rank == b.tensor_type.rank == len(p),
    ),
)


def _permuted(op: OpDef, **attrs: Any) -> tuple[Rule, Rule]:
    # permute(f(x)) = f(permute(x))
    drawn = _one_way(
        f"permute-of-{op.name.replace('_', '-')}",
        lambda x, p: permute(op(x, **attrs), dims=p),
        lambda x, p: op(permute(x, dims=p), **attrs),
        samples=[shapes("m n k", p=(1, 2, 0))],
        misses=[lambda x: permute(sum_(x, dims=(0,), keepdim=True), dims=(1, 2, 0))],
        when=None,
    )
    back = _one_way(f"{drawn.name}-back", drawn.after, drawn.before, drawn.samples, drawn.near_misses, None)
    return drawn, back


def _permuted_pair(op: OpDef) -> tuple[Rule, ...]:
    return (
        # permute(x + y) = permute(x) + permute(y)
        *_both(
            f"permute-of-{op.name}",
            lambda x, y, p: permute(op(x, y), dims=p),
            lambda x, y, p: op(permute(x, dims=p), permute(y, dims=p)),
            samples=[shapes("m n k", "m n k", p=(1, 2, 0))],
            misses=[shapes("3 3", "1 3", p=(1, 0))],
            when=lambda x, y: x.type == y.type,
        ),
        # permute(x + s) = permute(x) + s, of a scalar s
        *_both(
            f"permute-of-{op.name}-scalar",
            lambda x, s, p: permute(op(x, s), dims=p),
            lambda x, s, p: op(permute(x, dims=p), s),
            samples=[shapes("m n k", "float:", p=(1, 2, 0))],
            misses=[shapes("3 3", "3", p=(1, 0))],
            when=lambda s: not s.shape,
        ),
    )


PERMUTES = (
    *(rule for op in (neg, exp, relu, tanh, sigmoid, silu) for rule in _permuted(op)),
    *_permuted(gelu, approximate="none"),
    *(rule for op in (add, sub, mul) for rule in _permuted_pair(op)),
)

EQUATIONS = (
    *CHAINS,
    *_factors(add, "sum"),
    *_factors(sub, "difference"),
    *THREE_TERMS,
    *SCALES,
    *REDUCTIONS,
    *TRANSPOSES,
    *PERMUTES,
)
