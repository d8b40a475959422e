"""Rules that are wrong, each in a way in which an author could be: the harness rejects them, and none has a proof."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from smelt.ir import ops
from smelt.ir.ops import (
    add,
    amax,
    amin,
    arange,
    attention,
    bit_not,
    cast,
    concat,
    div,
    eq,
    exp,
    expand,
    flip,
    floor_div,
    full,
    gelu,
    layer_norm,
    le,
    leaky_relu,
    linear,
    lt,
    matmul,
    maximum,
    mean,
    minimum,
    mul,
    ne,
    neg,
    pad,
    permute,
    relu,
    reshape,
    rms_norm,
    rope,
    scalar_like,
    silu,
    slice_,
    softmax,
    sqrt,
    sub,
    swiglu,
    var,
    where,
)
from smelt.ir.ops import sum as sum_
from smelt.rewrites.certify import certify
from smelt.rewrites.certify.positions import BeyondProofError
from smelt.rewrites.certify.proof import prove
from smelt.rewrites.pattern import constant
from smelt.rewrites.rule import ROUNDING, Domain, Rule, rules_by_name
from smelt.rewrites.rules import RULES
from smelt.rewrites.sample import Sample, shapes

ALL = rules_by_name(RULES)

QKV = ("b H s D", "b H s D", "b H s D")
ELSE = [lambda x: exp(x)]  # a near miss that none of these rules takes
REAL: dict[str, Any] = {"tolerance": ROUNDING, "domain": Domain.FINITE}  # the least that a rule may promise


def wrong(before: Callable[..., Any], after: Callable[..., Any], *samples: Sample, **more: Any) -> Callable[[], Rule]:
    """A rule that does not keep its promise, built when it is asked for."""
    first = before.__code__.co_varnames[0]
    near = {"near_misses": [eval(f"lambda {first}: ops.flip({first}, dims=(0,))", {"ops": ops})]}
    return lambda: Rule(name="wrong", before=before, after=after, samples=samples, **(near | more))


# What is wrong, and the rule.
WRONG: dict[str, Callable[[], Rule]] = {
    "operands of a difference exchanged": lambda: Rule(
        name="wrong",
        before=lambda x, y: sub(mul(x, x), y),
        after=lambda x, y: sub(y, mul(x, x)),
        samples=[shapes("m n", "m n")],
        near_misses=ELSE,
    ),
    "operands of a product of matrices exchanged": lambda: Rule(
        name="wrong",
        before=lambda x, y: matmul(neg(x), y),
        after=lambda x, y: neg(matmul(y, x)),
        samples=[shapes("n n", "n n")],
        near_misses=ELSE,
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    "a transpose dropped where shapes are square": lambda: Rule(
        name="wrong",
        before=lambda x: permute(exp(x), dims=(1, 0)),
        after=lambda x: exp(x),
        samples=[shapes("n n")],
        near_misses=ELSE,
    ),
    "the wrong axis": lambda: Rule(
        name="wrong",
        before=lambda x: softmax(neg(x), dim=-1),
        after=lambda x: softmax(sub(scalar_like(0.0, x), x), dim=0),
        samples=[shapes("n n")],
        near_misses=ELSE,
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    "a scale lost": lambda: Rule(
        name="wrong",
        before=lambda q, k, v: attention(mul(q, constant(0.5)), k, v, scale=0.5),
        after=lambda q, k, v: attention(q, k, v, scale=0.5),
        samples=[shapes(*QKV)],
        near_misses=[lambda q: exp(q)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    "causality lost": lambda: Rule(
        name="wrong",
        before=lambda q, k, v: attention(q, k, neg(v), causal=True, scale=0.5),
        after=lambda q, k, v: neg(attention(q, k, v, scale=0.5)),
        samples=[shapes(*QKV)],
        near_misses=[lambda q: exp(q)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    "a bias lost": lambda: Rule(
        name="wrong",
        before=lambda x, w, b: linear(x, w, b),
        after=lambda x, w: linear(x, w),
        samples=[shapes("m K", "weight: N K", "weight: N")],
        near_misses=ELSE,
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    "the sign of a zero": lambda: Rule(
        name="wrong",
        before=lambda x: add(x, constant(0)),
        after=lambda x: x,
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "NaN taken for a number": lambda: Rule(
        name="wrong",
        before=lambda x: where(ops.lt(constant(0), x), x, constant(0)),
        after=lambda x: relu(x),
        samples=[shapes("m n")],
        near_misses=ELSE,
        tolerance=ROUNDING,
    ),
    "infinity times zero": lambda: Rule(
        name="wrong",
        before=lambda x: mul(x, constant(0)),
        after=lambda root: ops.full(shape=root.shape, value=0, dtype=root.dtype),
        samples=[shapes("m n")],
        near_misses=ELSE,
        tolerance=ROUNDING,
    ),
    "a broadcast that the result keeps": lambda: Rule(
        name="wrong",
        before=lambda x, y: add(x, mul(y, constant(1))),
        after=lambda x, y: add(x, y),
        samples=[shapes("n", "m n")],
        near_misses=[lambda x, y: add(x, y), lambda x, y: exp(y)],
        when=lambda x: True,
    ),
    "a constant that widens": lambda: Rule(
        name="wrong",
        before=lambda x, s, t: mul(x, ops.full(shape=s, value=1, dtype=t)),
        after=lambda x: x,
        samples=[shapes("f32: n", s=lambda m, n: (m, n), t=torch.float32)],
        near_misses=ELSE,
    ),
    "a product rounded twice": lambda: Rule(
        name="wrong",
        before=lambda x: div(x, constant(3)),
        after=lambda x: mul(x, scalar_like(1 / 3, x)),
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "a cast that loses digits": lambda: Rule(
        name="wrong",
        before=lambda x: cast(cast(x, dtype=torch.bfloat16), dtype=torch.float32),
        after=lambda x: x,
        samples=[shapes("f32: m n")],
        near_misses=ELSE,
    ),
    "an overflow in between": lambda: Rule(
        name="wrong",
        before=lambda x: div(mul(x, constant(2)), constant(2)),
        after=lambda x: x,
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "a slice off by one": lambda: Rule(
        name="wrong",
        before=lambda x: slice_(slice_(x, dim=0, start=2, stop=7), dim=0, start=1, stop=3),
        after=lambda x: slice_(x, dim=0, start=2, stop=4),
        samples=[shapes("8 n")],
        near_misses=ELSE,
    ),
    "a reshape for a permutation": lambda: Rule(
        name="wrong",
        before=lambda x: permute(neg(x), dims=(1, 0)),
        after=lambda root, x: neg(reshape(x, shape=root.shape)),
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "parts in another order": lambda: Rule(
        name="wrong",
        before=lambda x, y: neg(concat(x, y, dim=0)),
        after=lambda x, y: concat(neg(y), neg(x), dim=0),
        samples=[shapes("n 2", "n 2")],
        near_misses=ELSE,
    ),
    "largest for smallest": lambda: Rule(
        name="wrong",
        before=lambda x: neg(amax(x, dims=(1,))),
        after=lambda x: amin(x, dims=(1,)),
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "a variance with the other correction": lambda: Rule(
        name="wrong",
        before=lambda x: neg(var(x, dims=(1,), correction=1)),
        after=lambda x: neg(var(x, dims=(1,), correction=0)),
        samples=[shapes("m 5")],
        near_misses=ELSE,
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    "another type": lambda: Rule(
        name="wrong",
        before=lambda x: ops.eq(x, x),
        after=lambda x: x,
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "a replacement that cannot be built": lambda: Rule(
        name="wrong",
        before=lambda x: neg(x),
        after=lambda x: permute(x, dims=(0, 1, 2, 3, 4)),
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "it fires on its own result": lambda: Rule(
        name="wrong",
        before=lambda x: neg(x),
        after=lambda x: neg(neg(neg(x))),
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "it replaces a node by itself": lambda: Rule(
        name="wrong", before=lambda x: neg(x), after=lambda root: root, samples=[shapes("m n")], near_misses=ELSE
    ),
    "another rule undoes it": lambda: Rule(
        name="wrong",
        before=lambda x, y: sub(x, y),
        after=lambda x, y: add(x, neg(y)),
        samples=[shapes("m n", "m n")],
        near_misses=ELSE,
    ),
    "a guard that never fires": lambda: Rule(
        name="wrong",
        before=lambda x: maximum(x, x),
        when=lambda x: True,
        after=lambda x: x,
        samples=[shapes("m n")],
        near_misses=ELSE,
    ),
    "a guard that never agrees": lambda: Rule(
        name="wrong",
        before=lambda x: maximum(x, x),
        when=lambda x: False,
        after=lambda x: x,
        samples=[shapes("m n")],
        near_misses=[shapes("m n")],
    ),
    "it takes a near miss": lambda: Rule(
        name="wrong",
        before=lambda x: maximum(x, x),
        after=lambda x: x,
        samples=[shapes("m n")],
        near_misses=[lambda x: maximum(x, x)],
    ),
    "nothing to try it on": lambda: Rule(
        name="wrong", before=lambda x: maximum(x, x), after=lambda x: x, samples=[], near_misses=ELSE
    ),
}

ORDERS: dict[str, Callable[[], Rule]] = {
    "a weight that is not transposed": wrong(
        lambda x, w: matmul(x, w), lambda x, w: linear(x, w), shapes("m n", "weight: n n"), **REAL
    ),
    "heads and positions exchanged": wrong(
        lambda x, p, s: reshape(permute(x, dims=p), shape=s),
        lambda x, s: reshape(x, shape=s),
        shapes("b H s D", p=(0, 2, 1, 3), s=lambda b, H, s, D: (b, s, H * D)),
    ),
    "a permutation composed the other way round": wrong(
        lambda x: permute(permute(x, dims=(1, 2, 0)), dims=(0, 2, 1)),
        lambda x: permute(x, dims=(2, 1, 0)),
        shapes("n n n"),
    ),
    "the inverse of a permutation": wrong(
        lambda x: neg(permute(x, dims=(1, 2, 0))), lambda x: permute(neg(x), dims=(2, 0, 1)), shapes("n n n")
    ),
    "a gate and what it gates exchanged": wrong(
        lambda g, u: mul(silu(g), neg(u)), lambda g, u: swiglu(neg(u), g), shapes("m n", "m n"), **REAL
    ),
    "the divisor divided": wrong(
        lambda x, y: div(neg(x), y), lambda x, y: neg(div(y, x)), shapes("m n", "m n"), **REAL
    ),
    "halves of a rotation turned back": wrong(
        lambda x, c, s, h, n: add(
            mul(x, c),
            mul(concat(slice_(x, dim=-1, start=h, stop=n), neg(slice_(x, dim=-1, start=0, stop=h)), dim=-1), s),
        ),
        lambda x, c, s: rope(x, c, s),
        shapes("b H t 2*D", "t 2*D", "t 2*D", h=lambda D: D, n=lambda D: 2 * D),
        **REAL,
    ),
    "heads of groups repeated as blocks": wrong(
        lambda q, k, v, w, f: attention(
            q, reshape(expand(k, shape=w), shape=f), reshape(expand(v, shape=w), shape=f), scale=0.5
        ),
        lambda q, k, v: attention(
            q, reshape(k, shape=(k.shape[0], *k.shape[2:])), reshape(v, shape=(v.shape[0], *v.shape[2:])), scale=0.5
        ),
        shapes(
            "b 4 s D",
            "b 1 2 t D",
            "b 1 2 t D",
            w=lambda b, t, D: (b, 2, 2, t, D),
            f=lambda b, t, D: (b, 4, t, D),
        ),
        **REAL,
    ),
    "flipped along one axis of two": wrong(
        lambda x: neg(flip(x, dims=(0, 1))),
        lambda x: flip(neg(x), dims=(1,)),
        shapes("n n"),
        near_misses=ELSE,
    ),
    "padded on the other side": wrong(
        lambda x: neg(pad(x, low=(1, 0), high=(0, 0), value=1.0)),
        lambda x: pad(neg(x), low=(0, 0), high=(1, 0), value=-1.0),
        shapes("m n"),
    ),
    "what is padded with keeps its sign": wrong(
        lambda x: neg(pad(x, low=(1, 0), high=(0, 0), value=1.0)),
        lambda x: pad(neg(x), low=(1, 0), high=(0, 0), value=1.0),
        shapes("m n"),
    ),
    "a start that is not scaled by the step": wrong(
        lambda x: slice_(slice_(x, dim=0, start=0, stop=8, step=2), dim=0, start=1, stop=3),
        lambda x: slice_(x, dim=0, start=1, stop=5, step=2),
        shapes("8 n"),
    ),
    "softmax along an axis that was permuted": wrong(
        lambda x: softmax(permute(x, dims=(1, 0)), dim=-1),
        lambda x: permute(softmax(x, dim=-1), dims=(1, 0)),
        shapes("m n"),
        **REAL,
    ),
    "a row for a column where shapes are square": wrong(
        lambda x, b, s: add(x, reshape(b, shape=s)),
        lambda x, b: add(x, neg(neg(b))),
        shapes("n n", "n", s=lambda n: (n, 1)),
    ),
    "an axis that is not kept, where shapes are square": wrong(
        lambda x: sub(x, mean(x, dims=(1,), keepdim=True)),
        lambda x: sub(x, mean(x, dims=(1,), keepdim=False)),
        shapes("n n"),
        **REAL,
    ),
    "the size of the other axis": wrong(
        lambda x, c: div(sum_(x, dims=(0,)), constant(c)),
        lambda x: mean(x, dims=(0,)),
        shapes("m n", c=lambda n: n),
        **REAL,
    ),
    "a norm over too few axes": wrong(
        lambda x: layer_norm(neg(x), eps=0.1, axes=2),
        lambda x: neg(layer_norm(x, eps=0.1, axes=1)),
        shapes("b m n"),
        **REAL,
    ),
}

MASKS: dict[str, Callable[[], Rule]] = {
    "a mask that hides what it should show": wrong(
        lambda q, k, v, m: attention(
            q, k, v, where(m, constant(-math.inf), full(shape=(), value=0.0, dtype=torch.float32)), scale=0.5
        ),
        lambda q, k, v, m: attention(q, k, v, m, scale=0.5),
        shapes("f32: b H s D", "f32: b H t D", "f32: b H t D", "bool: s t"),
        **REAL,
    ),
    "a window off by one": wrong(
        lambda i, j: lt(sub(i, j), constant(3)),
        lambda i, j: le(sub(i, j), scalar_like(3, i)),
        shapes("i64: s 1", "i64: t"),
    ),
    "a triangle that is one key wider": wrong(
        lambda q, k, v, t, s, x, y: attention(
            q, k, v, le(reshape(arange(size=t), shape=x), reshape(arange(size=s, start=1), shape=y)), scale=0.5
        ),
        lambda q, k, v: attention(q, k, v, causal=True, scale=0.5),
        shapes(
            "b H s D",
            "b H t D",
            "b H t D",
            t=lambda t: t,
            s=lambda s: s,
            x=lambda t: (1, t),
            y=lambda s: (s, 1),
        ),
        **REAL,
    ),
    "a mask forgotten": wrong(
        lambda q, k, v, m: attention(q, k, neg(v), m, scale=0.5),
        lambda q, k, v: neg(attention(q, k, v, scale=0.5)),
        shapes("f32: b H s D", "f32: b H t D", "f32: b H t D", "f32: s t"),
        **REAL,
    ),
    "either mask for both": wrong(
        lambda x, m, n, c: where(m, where(n, x, constant(c)), constant(c)),
        lambda x, m, n, c: where(ops.bit_or(m, n), x, scalar_like(c, x)),
        shapes("m n", "bool: m n", "bool: m n", c=-1.0),
    ),
    "the scale of scores lost": wrong(
        lambda q, k, v, p: matmul(softmax(mul(matmul(q, permute(k, dims=p)), constant(0.25)), dim=-1), v),
        lambda q, k, v: attention(q, k, v, scale=1.0),
        shapes("b H s D", "b H t D", "b H t D", p=(0, 1, 3, 2)),
        **REAL,
    ),
    "a scale of queries for one of values": wrong(
        lambda q, k, v: attention(q, k, mul(v, constant(2)), scale=0.5),
        lambda q, k, v: attention(q, k, v, scale=1.0),
        shapes(*QKV),
        **REAL,
    ),
}

NUMBERS: dict[str, Callable[[], Rule]] = {
    "a zero of the other sign, subtracted from": wrong(lambda x: sub(constant(0), x), lambda x: neg(x), shapes("m n")),
    "NaN equal to itself": wrong(
        lambda x: eq(x, x), lambda root: full(shape=root.shape, value=True, dtype=torch.bool), shapes("m n")
    ),
    "NaN replaced, and not any more": wrong(lambda x: where(ne(x, x), constant(0), x), lambda x: x, shapes("m n")),
    "not less taken for greater or equal": wrong(
        lambda x, y: bit_not(lt(x, y)), lambda x, y: le(y, x), shapes("m n", "m n")
    ),
    "sums in another order": wrong(
        lambda x, y, z: add(add(x, y), z), lambda x, y, z: add(x, add(y, z)), shapes("m n", "m n", "m n")
    ),
    "a product distributed over infinities": wrong(
        lambda x, y, z: mul(x, add(y, neg(z))),
        lambda x, y, z: sub(mul(x, y), mul(x, z)),
        shapes("m n", "m n", "m n"),
        tolerance=ROUNDING,
    ),
    "exponentials that overflow": wrong(
        lambda x, y: exp(add(x, y)), lambda x, y: mul(exp(x), exp(y)), shapes("m n", "m n"), tolerance=ROUNDING
    ),
    "a root that loses a sign": wrong(lambda x: sqrt(mul(x, x)), lambda x: x, shapes("m n"), **REAL),
    "eps outside the root": wrong(
        lambda x: div(x, add(sqrt(mean(mul(x, x), dims=(-1,), keepdim=True)), constant(0.1))),
        lambda x: rms_norm(x, eps=0.1),
        shapes("m n"),
        **REAL,
    ),
    "another eps": wrong(
        lambda x: neg(rms_norm(x, eps=1e-2)), lambda x: rms_norm(neg(x), eps=1e-3), shapes("m n"), **REAL
    ),
    "bounds in the other order": wrong(
        lambda x, a, b: minimum(maximum(x, constant(a)), constant(b)),
        lambda x, a, b: maximum(minimum(x, scalar_like(b, x)), scalar_like(a, x)),
        shapes("m n", a=2.0, b=1.0),
        **REAL,
    ),
    "tanh for erf": wrong(
        lambda x: neg(gelu(x)),
        lambda x: neg(gelu(x, approximate="tanh")),
        shapes("m n"),
        **(REAL | {"tolerance": 1e-6}),
    ),
    "the slope on the wrong side": wrong(
        lambda x: where(lt(x, constant(0)), x, mul(x, constant(0.5))),
        lambda x: leaky_relu(x, slope=0.5),
        shapes("m n"),
        **REAL,
    ),
    "the first of the biases for all": wrong(
        lambda x, w, b: add(linear(x, w), b),
        lambda x, w, b: add(linear(x, w), slice_(b, dim=0, start=0, stop=1)),
        shapes("m K", "weight: N K", "N"),
        **REAL,
    ),
    "a bias added to every term": wrong(
        lambda x, y: sum_(add(x, y), dims=(1,), keepdim=True),
        lambda x, y: add(sum_(x, dims=(1,), keepdim=True), y),
        shapes("m n", "m 1"),
        **REAL,
    ),
}

DTYPES: dict[str, Callable[[], Rule]] = {
    "an integer product that overflows": wrong(
        lambda x: floor_div(mul(x, constant(2)), constant(2)), lambda x: x, shapes("int: m n")
    ),
    "a product in too narrow integers": wrong(
        lambda x, y: mul(cast(x, dtype=torch.int64), cast(y, dtype=torch.int64)),
        lambda x, y: cast(mul(x, y), dtype=torch.int64),
        shapes("i32: m n", "i32: m n"),
    ),
    "a sum in too narrow integers": wrong(
        lambda x: sum_(cast(x, dtype=torch.int64), dims=(1,)),
        lambda x: cast(sum_(x, dims=(1,)), dtype=torch.int64),
        shapes("i32: m n"),
    ),
    "a half type rounded once, not twice": wrong(
        lambda x, y, z: add(add(x, y), z),
        lambda x, y, z: cast(
            add(add(*(cast(v, dtype=torch.float32) for v in (x, y))), cast(z, dtype=torch.float32)), dtype=x.dtype
        ),
        shapes("bf16: m n", "bf16: m n", "bf16: m n"),
    ),
    "a half type that overflows": wrong(
        lambda x: cast(mul(cast(x, dtype=torch.float32), constant(0.5)), dtype=torch.float16),
        lambda x: div(mul(x, scalar_like(2.0, x)), scalar_like(4.0, x)),
        shapes("f16: m n"),
    ),
    "numbers compared with fewer digits": wrong(
        lambda x, y: eq(x, neg(y)),
        lambda x, y: eq(cast(x, dtype=torch.bfloat16), cast(neg(y), dtype=torch.bfloat16)),
        shapes("f32: m n", "f32: m n"),
    ),
    "a range of float16 for one of bfloat16": wrong(
        lambda x: neg(cast(x, dtype=torch.float32)),
        lambda x: neg(cast(cast(x, dtype=torch.float16), dtype=torch.float32)),
        shapes("bf16: m n"),
    ),
    "a truncated quotient for a floored one": wrong(
        lambda x: floor_div(x, constant(3)), lambda x: ops.trunc_div(x, scalar_like(3, x)), shapes("int: m n")
    ),
    "the sign of a remainder": wrong(
        lambda x: ops.remainder(x, constant(3)), lambda x: ops.fmod(x, scalar_like(3, x)), shapes("int: m n")
    ),
    "no elements": wrong(
        lambda x: ops.any(x, dims=(1,)),
        lambda x: ne(amax(cast(x, dtype=torch.int32), dims=(1,)), full(shape=(), value=0, dtype=torch.int32)),
        shapes("bool: m n"),
    ),
    "all of none": wrong(
        lambda x: ops.all(bit_not(x), dims=(1,)),
        lambda x: bit_not(ops.any(x, dims=(0,))),
        shapes("bool: n n"),
    ),
}

WRONG |= ORDERS | MASKS | NUMBERS | DTYPES


@pytest.mark.parametrize("mistake", WRONG)
def test_the_harness_rejects(mistake: str) -> None:
    assert certify(WRONG[mistake](), list(ALL.values())), f"not found: {mistake}"


def test_how_many_mistakes_are_tried() -> None:
    assert len(WRONG) >= 60


# What is wrong with these is not the value: the two sides are equal.
EQUAL = {
    "a guard that never fires",
    "another rule undoes it",
    "it fires on its own result",
    "it replaces a node by itself",
    "it takes a near miss",
}


@pytest.mark.parametrize("mistake", sorted(WRONG.keys() - EQUAL))
def test_no_wrong_rule_is_proved(mistake: str) -> None:
    with pytest.raises(BeyondProofError):
        prove(WRONG[mistake](), milliseconds=200)


def test_faults_are_the_same_every_time() -> None:
    rule = WRONG["the sign of a zero"]()
    assert list(map(str, certify(rule))) == list(map(str, certify(rule)))
