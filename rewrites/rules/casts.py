"""Casts: none that changes nothing, none through a dtype that keeps every value."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...ir import ops
from ...ir.node import Node, OpDef
from ...ir.ops import HALF, cast, eq, gelu, input, layer_norm, log_softmax, ne, relu, rms_norm, scalar, silu, softmax
from ..pattern import constant
from ..rule import ROUNDING, Domain, Rule
from ..sample import shapes

# Every integer of so many bits is exact.
_FLOAT_BITS = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24, torch.float64: 53}
_WIDER_FLOATS = {
    torch.float16: (torch.float32, torch.float64),
    torch.bfloat16: (torch.float32, torch.float64),
    torch.float32: (torch.float64,),
}


def keeps_values(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether every value of one dtype has an equal one in the other."""
    if source == target or source == torch.bool:
        return True
    if source.is_floating_point:
        return target in _WIDER_FLOATS.get(source, ())
    if source.is_complex or target.is_complex or target == torch.bool:
        return False
    if target.is_floating_point:
        return torch.iinfo(source).bits <= _FLOAT_BITS[target]
    have, want = torch.iinfo(source), torch.iinfo(target)
    return want.min <= have.min and have.max <= want.max


IDENTITIES = (
    # cast(x, its dtype) -> x
    Rule(
        name="cast-to-own-dtype",
        before=lambda x, t: cast(x, dtype=t),
        when=lambda x, t: x.dtype == t,
        after=lambda x: x,
        samples=[shapes("f32: m n", t=torch.float32), shapes("bool: m", t=torch.bool)],
        near_misses=[shapes("f32: m n", t=torch.float64), shapes("i64: m", t=torch.int32)],
    ),
    # cast(cast(x, wider), t) -> cast(x, t)
    Rule(
        name="cast-of-lossless-cast",
        before=lambda x, s, t: cast(cast(x, dtype=s), dtype=t),
        when=lambda x, s: keeps_values(x.dtype, s),
        after=lambda x, t: cast(x, dtype=t),
        samples=[
            shapes("bf16: m n", s=torch.float32, t=torch.bfloat16),
            shapes("f32: m n", s=torch.float64, t=torch.float16),
            shapes("i32: m n", s=torch.float64, t=torch.int64),
            shapes("i32: m n", s=torch.int64, t=torch.int8),
            shapes("bool: m n", s=torch.float16, t=torch.int64),
        ],
        near_misses=[
            shapes("f32: m n", s=torch.bfloat16, t=torch.float32),
            shapes("f32: m n", s=torch.int64, t=torch.float32),
            shapes("i32: m n", s=torch.float32, t=torch.int32),
            shapes("i64: m n", s=torch.bool, t=torch.int64),
        ],
    ),
    # number(p) != 0 -> p
    Rule(
        name="nonzero-of-number",
        before=lambda p, t: ne(cast(p, dtype=t), constant(0)),
        when=lambda p, t: p.dtype == torch.bool,
        after=lambda p: p,
        samples=[shapes("bool: m n", t=torch.float32), shapes("bool: m n", t=torch.int64)],
        near_misses=[
            shapes("f32: m n", t=torch.bfloat16),
            lambda p: ne(cast(p, dtype=torch.int32), scalar(1, torch.int32)),
        ],
    ),
    # number(p) == 1 -> p
    Rule(
        name="one-of-number",
        before=lambda p, t: eq(cast(p, dtype=t), constant(1)),
        when=lambda p, t: p.dtype == torch.bool,
        after=lambda p: p,
        samples=[shapes("bool: m n", t=torch.float32), shapes("bool: m n", t=torch.int64)],
        near_misses=[
            shapes("f32: m n", t=torch.bfloat16),
            lambda p: eq(cast(p, dtype=torch.int32), scalar(0, torch.int32)),
        ],
    ),
    # number(p) == 0 -> not p
    Rule(
        name="zero-of-number",
        before=lambda p, t: eq(cast(p, dtype=t), constant(0)),
        when=lambda p, t: p.dtype == torch.bool,
        after=lambda p: ops.bit_not(p),
        samples=[shapes("bool: m n", t=torch.float32), shapes("bool: m n", t=torch.int64)],
        near_misses=[
            shapes("f32: m n", t=torch.bfloat16),
            lambda p: eq(cast(p, dtype=torch.int32), scalar(1, torch.int32)),
        ],
    ),
)


def _in_half(op: OpDef) -> Rule:
    # half(f(float32(x))) -> f(x): composites compute half types in float32 and round once
    return Rule(
        name=f"{op.name}-in-half".replace("_", "-"),
        before=lambda x, h: cast(op(cast(x, dtype=torch.float32)), dtype=h),
        when=lambda x, h: _is_half(x, h),
        after=lambda x: op(x),
        samples=[shapes("bf16: m n", h=torch.bfloat16), shapes("f16: m n", h=torch.float16)],
        near_misses=[shapes("bf16: m n", h=torch.float16), shapes("f64: m n", h=torch.float64)],
        tolerance=ROUNDING,
    )


def _is_half(x: Node, dtype: torch.dtype) -> bool:
    return x.dtype == dtype and dtype in HALF


def _row_in_half(op: OpDef) -> Rule:
    # half(f(float32(x), d)) -> f(x, d)
    return Rule(
        name=f"{op.name}-in-half".replace("_", "-"),
        before=lambda x, h, d: cast(op(cast(x, dtype=torch.float32), dim=d), dtype=h),
        when=lambda x, h: _is_half(x, h),
        after=lambda x, d: op(x, dim=d),
        samples=[shapes("bf16: m N", h=torch.bfloat16, d=-1), shapes("f16: N m", h=torch.float16, d=0)],
        near_misses=[shapes("bf16: m N", h=torch.float16, d=-1)],
        tolerance=ROUNDING,
    )


def _is_widened(w: Node, dtype: torch.dtype) -> bool:
    return w.op is cast and w.dtype == torch.float32 and w.inputs[0].dtype == dtype


def _some_widened(x: Node, ws: Sequence[Node]) -> bool:
    return x.dtype in HALF and any(_is_widened(w, x.dtype) for w in ws)


def _narrowed(x: Node, ws: Sequence[Node]) -> list[Node]:
    return [w.inputs[0] if _is_widened(w, x.dtype) else w for w in ws]


def _widened_vector(N: int) -> Node:
    return cast(input(name="w", shape=(N,), dtype=torch.bfloat16), dtype=torch.float32)


COMPOSITES = (
    *map(_in_half, (gelu, silu, relu)),
    *map(_row_in_half, (softmax, log_softmax)),
    # half(layer_norm(float32(x), ...)) -> layer_norm(x, ...)
    Rule(
        name="layer-norm-in-half",
        before=lambda x, h, e, n, *ws: cast(layer_norm(cast(x, dtype=torch.float32), *ws, eps=e, axes=n), dtype=h),
        when=lambda x, h: _is_half(x, h),
        after=lambda x, e, n, *ws: layer_norm(x, *ws, eps=e, axes=n),
        samples=[
            shapes("bf16: m N", h=torch.bfloat16, e=1e-5, n=1),
            shapes("f16: m N", "f32: N", h=torch.float16, e=0.1, n=1),
        ],
        near_misses=[shapes("bf16: m N", h=torch.float16, e=1e-5, n=1)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # half(rms_norm(float32(x), ...)) -> rms_norm(x, ...)
    Rule(
        name="rms-norm-in-half",
        before=lambda x, h, e, *ws: cast(rms_norm(cast(x, dtype=torch.float32), *ws, eps=e), dtype=h),
        when=lambda x, h: _is_half(x, h),
        after=lambda x, e, *ws: rms_norm(x, *ws, eps=e),
        samples=[shapes("bf16: m N", h=torch.bfloat16, e=1e-5), shapes("f16: m N", "f32: N", h=torch.float16, e=0.1)],
        near_misses=[shapes("bf16: m N", h=torch.float16, e=1e-5)],
        tolerance=ROUNDING,
        domain=Domain.FINITE,
    ),
    # layer_norm(x, float32(w), ...) -> layer_norm(x, w, ...)
    Rule(
        name="layer-norm-of-widened-affine",
        before=lambda x, e, n, *ws: layer_norm(x, *ws, eps=e, axes=n),
        when=lambda x, *ws: _some_widened(x, ws),
        after=lambda x, e, n, *ws: layer_norm(x, *_narrowed(x, ws), eps=e, axes=n),
        samples=[shapes("bf16: m N", _widened_vector, e=1e-5, n=1)],
        near_misses=[shapes("bf16: m N", "f32: N", e=1e-5, n=1), shapes("f32: m N", _widened_vector, e=1e-5, n=1)],
    ),
    # rms_norm(x, float32(w)) -> rms_norm(x, w)
    Rule(
        name="rms-norm-of-widened-affine",
        before=lambda x, e, *ws: rms_norm(x, *ws, eps=e),
        when=lambda x, *ws: _some_widened(x, ws),
        after=lambda x, e, *ws: rms_norm(x, *_narrowed(x, ws), eps=e),
        samples=[shapes("bf16: m N", _widened_vector, e=1e-5)],
        near_misses=[shapes("bf16: m N", "f32: N", e=1e-5), shapes("f32: m N", _widened_vector, e=1e-5)],
    ),
)
