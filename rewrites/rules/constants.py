"""Constant folding: operators on constants, on ranges of integers, and on sizes."""

from __future__ import annotations

from typing import Any

import torch

from ...ir import ops
from ...ir.node import Node, OpDef, attr_key
from ...ir.ops import (
    add,
    arange,
    cast,
    concat,
    expand,
    full,
    le,
    lt,
    mul,
    neg,
    permute,
    reshape,
    scalar,
    scalar_like,
    slice_,
    sub,
)
from ...ir.types import canonical_dim, symbol
from ..pattern import constant
from ..rule import Rule
from ..sample import shapes
from .common import at_most, full_like, is_integer, is_number, is_size

UNARY = (
    *(ops.neg, ops.abs, ops.sign, ops.reciprocal, ops.floor, ops.ceil, ops.round, ops.trunc, ops.exp, ops.log),
    *(ops.sqrt, ops.rsqrt, ops.sin, ops.cos, ops.tanh, ops.sigmoid, ops.erf, ops.isnan, ops.bit_not),
)
BINARY = (
    *(ops.add, ops.sub, ops.mul, ops.div, ops.floor_div, ops.trunc_div, ops.remainder, ops.pow),
    *(ops.maximum, ops.minimum, ops.eq, ops.ne, ops.lt, ops.le, ops.bit_and, ops.bit_or, ops.bit_xor),
)


def _tensor(value: Any, dtype: torch.dtype) -> torch.Tensor:
    # through float64, because PyTorch refuses to make what a half type rounds to infinity
    wide = torch.float64 if dtype.is_floating_point else dtype
    return torch.tensor(value, dtype=wide).to(dtype)


def _value(op: OpDef, dtype: torch.dtype, *values: Any) -> Any:
    """The result of an operator on numbers, computed in their dtype as it would be at run time."""
    return op.evaluate(*(_tensor(v, dtype) for v in values)).item()


def _known(op: OpDef, dtype: torch.dtype, *values: Any) -> bool:
    """Whether all operands are numbers and the operator has a result for them: an integer division by zero has none."""
    if not all(is_number(v) for v in values):
        return False
    try:
        _value(op, dtype, *values)
    except (RuntimeError, ZeroDivisionError, OverflowError):
        return False
    return True


def _fold_unary(op: OpDef) -> Rule:
    # op(c) -> the number
    dtype = torch.int64 if op is ops.bit_not else torch.float32
    return Rule(
        name=f"fold-{op.name}".replace("_", "-"),
        before=lambda a, s, t: op(full(shape=s, value=a, dtype=t)),
        when=lambda a, t: _known(op, t, a),
        after=lambda root, a, t: full_like(root, _value(op, t, a)),
        samples=[shapes(a=3, s=lambda m: (m,), t=dtype)],
        near_misses=[shapes(a=symbol("n"), s=(), t=dtype)],
    )


def _fold_binary(op: OpDef) -> Rule:
    # c op d -> the number
    dtype = torch.int64 if op.name.startswith("bit") else torch.float32
    return Rule(
        name=f"fold-{op.name}".replace("_", "-"),
        before=lambda a, b, s, r, t: op(full(shape=s, value=a, dtype=t), full(shape=r, value=b, dtype=t)),
        when=lambda a, b, t: _known(op, t, a, b),
        after=lambda root, a, b, t: full_like(root, _value(op, t, a, b)),
        samples=[shapes(a=7, b=2, s=lambda m: (m,), r=(), t=dtype)],
        near_misses=[shapes(a=symbol("n"), b=2, s=(), r=(), t=dtype)],
    )


FOLDING = (
    *map(_fold_unary, UNARY),
    *map(_fold_binary, BINARY),
    # cast(c) -> the number
    Rule(
        name="fold-cast",
        before=lambda s, v, t, u: cast(full(shape=s, value=v, dtype=t), dtype=u),
        when=lambda v, t, u: is_number(v) and not (u.is_complex or t.is_complex),
        after=lambda root, v, t, u: full_like(root, _tensor(v, t).to(u).item()),
        samples=[
            shapes(s=lambda m: (m,), v=1.1, t=torch.float32, u=torch.bfloat16),
            shapes(s=(), v=-2.5, t=torch.float32, u=torch.int64),
        ],
        near_misses=[shapes(s=(), v=symbol("n"), t=torch.int64, u=torch.float32)],
    ),
)


def _ones(*shape: Any) -> Node:
    return full(shape=shape, value=1.0, dtype=torch.float32)


def _are_equal_constants(nodes: tuple[Node, ...]) -> bool:
    values = [attr_key(x.attrs["value"]) for x in nodes if x.op is full]
    return len(values) == len(nodes) and len(set(values)) == 1


VIEWS_OF_CONSTANTS = (
    # reshape(c) -> c
    Rule(
        name="reshape-of-constant",
        before=lambda s, v, t, to: reshape(full(shape=s, value=v, dtype=t), shape=to),
        after=lambda root, v: full_like(root, v),
        samples=[shapes(s=lambda m, n: (m, n), v=2.5, t=torch.float32, to=lambda m, n: (m * n,))],
        near_misses=[lambda: reshape(arange(size=4), shape=(2, 2))],
    ),
    # permute(c) -> c
    Rule(
        name="permute-of-constant",
        before=lambda s, v, t, dims: permute(full(shape=s, value=v, dtype=t), dims=dims),
        after=lambda root, v: full_like(root, v),
        samples=[shapes(s=lambda m, n: (m, n), v=True, t=torch.bool, dims=(1, 0))],
        near_misses=[lambda: permute(reshape(arange(size=4), shape=(2, 2)), dims=(1, 0))],
    ),
    # expand(c) -> c
    Rule(
        name="expand-of-constant",
        before=lambda s, v, t, to: expand(full(shape=s, value=v, dtype=t), shape=to),
        after=lambda root, v: full_like(root, v),
        samples=[shapes(s=lambda n: (1, n), v=7, t=torch.int32, to=lambda m, n: (m, n))],
        near_misses=[lambda: expand(arange(size=4), shape=(2, 4))],
    ),
    # c[a:b] -> c
    Rule(
        name="slice-of-constant",
        before=lambda s, v, t, d, a, b, k: slice_(full(shape=s, value=v, dtype=t), dim=d, start=a, stop=b, step=k),
        after=lambda root, v: full_like(root, v),
        samples=[shapes(s=lambda N: (N, 2 * N), v=-0.0, t=torch.float32, d=-1, a=1, b=lambda N: 2 * N, k=2)],
        near_misses=[lambda: slice_(arange(size=4), dim=0, start=0, stop=2)],
    ),
    # cat(c, c) -> c
    Rule(
        name="concat-of-constants",
        before=lambda dim, *xs: concat(*xs, dim=dim),
        when=lambda *xs: _are_equal_constants(xs),
        after=lambda root, *xs: full_like(root, xs[0].attrs["value"]),
        samples=[shapes(lambda m, n: _ones(m, n), lambda n: _ones(2, n), dim=0)],
        near_misses=[shapes("m n", "m n", dim=0), shapes(lambda n: _ones(n), "f32: n", dim=0)],
    ),
)


def _wrapped(value: Any, dtype: torch.dtype) -> Any:
    """An integer modulo the dtype's power of two, as arithmetic in it gives; a size as it is."""
    if not isinstance(value, int):
        return canonical_dim(value)
    info = torch.iinfo(dtype)
    return (value - info.min) % (info.max - info.min + 1) + info.min


def _are_sizes(dtype: torch.dtype, *values: Any) -> bool:
    """Whether all are integers of the dtype; size expressions are taken as 64-bit integers only."""
    known = is_integer(dtype) and all(is_number(v) for v in values)
    return known or (dtype == torch.int64 and all(is_size(v) for v in values))


def _fold_sizes(op: OpDef, compute: Any) -> Rule:
    # size op size -> the size
    return Rule(
        name=f"{op.name}-of-sizes",
        before=lambda a, b, s, r: op(
            full(shape=s, value=a, dtype=torch.int64), full(shape=r, value=b, dtype=torch.int64)
        ),
        when=lambda a, b: _are_sizes(torch.int64, a, b) and not (is_number(a) and is_number(b)),
        after=lambda root, a, b: full_like(root, canonical_dim(compute(a, b))),
        samples=[shapes(a=symbol("m"), b=3, s=(), r=()), shapes(a=symbol("m"), b=symbol("n"), s=(), r=(2,))],
        near_misses=[shapes(a=2, b=3, s=(), r=())],
    )


SIZES = (
    # cast(size) -> the size, in a dtype that holds it
    Rule(
        name="cast-of-size",
        before=lambda v, s, t: cast(full(shape=s, value=v, dtype=torch.int64), dtype=t),
        when=lambda v, t: is_size(v) and not is_number(v) and t in (torch.float32, torch.float64, torch.int64),
        after=lambda root, v: full_like(root, v),
        samples=[shapes(v=symbol("n"), s=(), t=torch.float32)],
        near_misses=[shapes(v=symbol("n"), s=(), t=torch.float16), shapes(v=3, s=(), t=torch.float32)],
    ),
    _fold_sizes(add, lambda a, b: a + b),
    _fold_sizes(sub, lambda a, b: a - b),
    _fold_sizes(mul, lambda a, b: a * b),
    # (x + c) + d -> x + (c + d) for integers
    Rule(
        name="add-add-constants",
        before=lambda x, c, d: add(add(x, constant(c)), constant(d)),
        when=lambda x, c, d: _are_sizes(x.dtype, c, d),
        after=lambda x, c, d: add(x, scalar_like(_wrapped(c + d, x.dtype), x)),
        samples=[
            shapes("int: m n", c=3, d=-5),
            shapes("i32: m", c=2**31 - 1, d=1),
            shapes("i64: m", c=symbol("n"), d=1),
        ],
        near_misses=[shapes("m n", c=3.0, d=-5.0), shapes("i32: m n", c=symbol("n"), d=1)],
    ),
    # (x c) d -> x (c d) for integers
    Rule(
        name="mul-mul-constants",
        before=lambda x, c, d: mul(mul(x, constant(c)), constant(d)),
        when=lambda x, c, d: _are_sizes(x.dtype, c, d),
        after=lambda x, c, d: mul(x, scalar_like(_wrapped(c * d, x.dtype), x)),
        samples=[shapes("int: m n", c=3, d=-5), shapes("i32: m", c=2**30, d=2), shapes("i64: m", c=symbol("n"), d=2)],
        near_misses=[shapes("m n", c=3.0, d=-5.0), shapes("i32: m n", c=symbol("n"), d=2)],
    ),
)


def _range(n: Any, a: Any, s: Any) -> Any:
    """The pattern of a range of 64-bit integers."""
    return arange(size=n, start=a, step=s)


def _shifted(root: Node, start: Any, step: Any) -> Node:
    return arange(size=root.shape[0], start=canonical_dim(start), step=canonical_dim(step))


RANGES = (
    # [a, a + s, ...] + c -> [a + c, a + c + s, ...]
    Rule(
        name="add-to-range",
        before=lambda n, a, s, c: add(_range(n, a, s), constant(c)),
        after=lambda root, a, s, c: _shifted(root, a + c, s),
        samples=[shapes(n=lambda m: m, a=0, s=1, c=5), shapes(n=4, a=lambda m: m, s=-2, c=lambda m: m)],
        near_misses=[lambda n: add(arange(size=n), full(shape=(2, n), value=5, dtype=torch.int64))],
    ),
    # [a, a + s, ...] - c -> [a - c, a - c + s, ...]
    Rule(
        name="sub-from-range",
        before=lambda n, a, s, c: sub(_range(n, a, s), constant(c)),
        after=lambda root, a, s, c: _shifted(root, a - c, s),
        samples=[shapes(n=lambda m: m, a=0, s=1, c=5), shapes(n=4, a=2, s=-2, c=lambda m: m)],
        near_misses=[lambda n: sub(arange(size=n, dtype=torch.int32), scalar(5, torch.int32))],
    ),
    # c - [a, a + s, ...] -> [c - a, c - a - s, ...]
    Rule(
        name="range-subtracted",
        before=lambda n, a, s, c: sub(constant(c), _range(n, a, s)),
        after=lambda root, a, s, c: _shifted(root, c - a, -s),
        samples=[shapes(n=lambda m: m, a=0, s=1, c=5), shapes(n=4, a=2, s=-2, c=lambda m: m)],
        near_misses=[lambda n: add(scalar(5, torch.int64), arange(size=n))],
    ),
    # [a, a + s, ...] c -> [a c, a c + s c, ...]
    Rule(
        name="mul-of-range",
        before=lambda n, a, s, c: mul(_range(n, a, s), constant(c)),
        after=lambda root, a, s, c: _shifted(root, a * c, s * c),
        samples=[shapes(n=lambda m: m, a=1, s=1, c=5), shapes(n=4, a=2, s=-2, c=lambda m: m)],
        near_misses=[lambda n: mul(arange(size=n), arange(size=n))],
    ),
    # -[a, a + s, ...] -> [-a, -a - s, ...]
    Rule(
        name="neg-of-range",
        before=lambda n, a, s: neg(_range(n, a, s)),
        after=lambda root, a, s: _shifted(root, -a, -s),
        samples=[shapes(n=lambda m: m, a=1, s=2)],
        near_misses=[lambda n: neg(arange(size=n, dtype=torch.float32))],
    ),
    # [a, a + s, ...][b::k] -> [a + b s, a + b s + k s, ...]
    Rule(
        name="slice-of-range",
        before=lambda n, a, s, b, e, k: slice_(_range(n, a, s), dim=0, start=b, stop=e, step=k),
        after=lambda root, a, s, b, k: _shifted(root, a + b * s, s * k),
        samples=[
            shapes(n=lambda m: 2 * m + 3, a=1, s=1, b=1, e=lambda m: m + 1, k=1),
            shapes(n=9, a=0, s=-2, b=2, e=8, k=3),
        ],
        near_misses=[lambda: slice_(reshape(arange(size=4), shape=(4, 1)), dim=0, start=0, stop=2)],
    ),
    # [a] -> a
    Rule(
        name="range-of-one",
        before=lambda a, s, t: arange(size=1, start=a, step=s, dtype=t),
        after=lambda root, a: full_like(root, a),
        samples=[shapes(a=3, s=2, t=torch.int64), shapes(a=lambda m: m, s=1, t=torch.float32)],
        near_misses=[lambda: arange(size=2)],
    ),
    # c <= [a, a + s, ...] -> true where c <= a and 0 <= s
    Rule(
        name="range-at-least",
        before=lambda n, a, s, to, c: le(constant(c), reshape(_range(n, a, s), shape=to)),
        when=lambda a, s, c: is_size(c) and at_most(c, a) and at_most(0, s),
        after=lambda root: full_like(root, True),
        samples=[shapes(n=lambda m: m, a=2, s=1, to=lambda m: (1, m, 1), c=0)],
        near_misses=[
            shapes(n=lambda m: m, a=2, s=1, to=lambda m: (m, 1), c=3),
            shapes(n=lambda m: m, a=2, s=-1, to=lambda m: (m, 1), c=2),
        ],
    ),
    # c < [a, a + s, ...] -> true where c < a and 0 <= s
    Rule(
        name="range-above",
        before=lambda n, a, s, to, c: lt(constant(c), reshape(_range(n, a, s), shape=to)),
        when=lambda a, s, c: is_size(c) and at_most(c + 1, a) and at_most(0, s),
        after=lambda root: full_like(root, True),
        samples=[shapes(n=lambda m: m, a=0, s=1, to=lambda m: (1, m, 1), c=-1)],
        near_misses=[
            shapes(n=lambda m: m, a=2, s=1, to=lambda m: (m, 1), c=2),
            shapes(n=lambda m: m, a=2, s=-1, to=lambda m: (m, 1), c=1),
        ],
    ),
)

RULES = (*FOLDING, *VIEWS_OF_CONSTANTS, *SIZES, *RANGES)
