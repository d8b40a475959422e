"""Pointwise kernels and rows: all regions, reductions, dtypes, norms, awkward sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from smelt.ir import ops
from smelt.ir.errors import TypeRuleError
from smelt.ir.node import OpDef
from smelt.ir.types import DTYPE_NAMES

from .cases import Case, Sizes, operand
from .regions import BF16, BOOL, F16, F32, F64, FILLED, I32, I64, SIZES, U8, B, S, all_regions, one, x, y, z

AWKWARD: Sequence[Sizes] = ({"b": 1823, "s": 781},)
LONG: Sequence[Sizes] = tuple(
    {"b": b, "s": s} for b, s in ((1, 1), (2, 15), (3, 16), (1, 17), (2, 63), (1, 64), (2, 200))
)


def reductions() -> dict[str, Case]:
    """Every reduction over every axis of [B, S, 5], and over several."""
    found = {}
    for op in (ops.sum, ops.prod, ops.amax, ops.amin, ops.mean, ops.var):
        for n, dims in enumerate(((2,), (0,), (1,), (0, 2), (1, 2), (0, 1), None)):
            found[f"{op.name} {dims}"] = one(
                lambda v, op=op, dims=dims, n=n: op(v, dims=dims, keepdim=n % 2 == 0), (B, S, 5), _sizes(op)
            )
    for dim in range(3):
        for op in (ops.softmax, ops.log_softmax, ops.cumsum):
            found[f"{op.name} {dim}"] = one(lambda v, op=op, dim=dim: op(v, dim=dim), (B, S, 5))
        for op in (ops.argmax, ops.argmin):
            found[f"{op.name} {dim}"] = one(
                lambda v, op=op, dim=dim: op(v, dim=dim, keepdim=dim == 1), (B, S, 5), FILLED
            )
    return found


def _sizes(op: OpDef) -> Sequence[Sizes]:
    return FILLED if op in (ops.amax, ops.amin, ops.var, ops.mean) else SIZES


def dtypes() -> dict[str, Case]:
    """Every reduction in every dtype that it takes, along the last axis and across rows."""
    found = {}
    kinds: list[tuple[OpDef, dict[str, Any]]] = [
        *((op, {"dims": (1,)}) for op in (ops.sum, ops.prod, ops.amax, ops.amin, ops.any, ops.all, ops.mean, ops.var)),
        *((op, {"dims": (0,)}) for op in (ops.sum, ops.prod, ops.amax, ops.amin, ops.any, ops.all, ops.mean)),
        *((op, {"dim": dim}) for op in (ops.argmax, ops.argmin, ops.cumsum, ops.softmax) for dim in (0, 1)),
    ]
    for dtype in (F64, F16, BF16, I64, I32, torch.int8, U8, BOOL):
        for op, attributes in kinds:
            source = x(S, B, dtype=dtype)
            try:
                node = op(source, **attributes)
            except TypeRuleError:
                continue
            name = f"{op.name} {next(iter(attributes.values()))} of {DTYPE_NAMES[dtype]}"
            found[name] = Case([source], [node], FILLED, high=4, low=-3)
    return found


def widths() -> dict[str, Case]:
    """Rows of every length around the width of a vector, known and unknown; rows side by side likewise."""
    found = {}
    for size in (1, 2, 3, 8, 15, 16, 17, 48, 64, 65, 100, 768):
        found[f"softmax of {size}"] = one(lambda v: ops.softmax(v, dim=1), (B, size), FILLED[:2])
        found[f"max beside {size}"] = one(lambda v: ops.amax(v, dims=(1,)), (B, S, size), FILLED[:2])
    found["softmax of any"] = one(lambda v: ops.softmax(v, dim=1), (B, S), LONG)
    found["sum of any"] = one(lambda v: ops.sum(v, dims=(1,)), (B, S), LONG)
    found["sum beside any"] = one(lambda v: ops.sum(v, dims=(0,)), (B, S), LONG)
    found["softmax beside any"] = one(lambda v: ops.softmax(v, dim=0), (B, S), LONG)
    found["argmax of any"] = one(lambda v: ops.argmax(v, dim=1), (B, S), LONG)
    found["argmin beside any"] = one(lambda v: ops.argmin(v, dim=0), (B, S), LONG)
    return found


def norms() -> dict[str, Case]:
    """Norms and softmax as models have them, with what is fused before and after."""
    a, b, w, c = x(B, S, 96), y(B, S, 96), z(96), operand(3, (96,))
    half = [operand(i, n.shape, BF16) for i, n in enumerate((a, b, w, c))]
    total = ops.add(a, b)
    scores, mask = x(B, 4, S, S), y(B, S, dtype=BOOL)
    low = ops.scalar(float("-inf"), F32)
    masked = ops.where(ops.reshape(mask, shape=(B, 1, 1, S)), scores, low)
    return {
        "layer_norm": Case([a, b, w, c], [ops.layer_norm(a, w, c, eps=1e-5)], SIZES),
        "add and layer_norm": Case([a, b, w, c], [ops.layer_norm(total, w, c, eps=1e-5), total], SIZES),
        "layer_norm of half": Case(half, [ops.layer_norm(ops.add(*half[:2]), *half[2:], eps=1e-5)], SIZES),
        "layer_norm over two axes": Case(
            [x(B, S, 3, 5), y(3, 5), z(3, 5)],
            [ops.layer_norm(x(B, S, 3, 5), y(3, 5), z(3, 5), eps=1e-5, axes=2)],
            SIZES,
        ),
        "layer_norm of gelu": Case([a, b, w, c], [ops.layer_norm(ops.gelu(a), w, c, eps=1e-5)], SIZES),
        "gelu of layer_norm": Case([a, b, w, c], [ops.gelu(ops.layer_norm(a, w, c, eps=1e-5))], SIZES),
        "rms_norm": Case([a, y(96)], [ops.rms_norm(a, y(96), eps=1e-6)], SIZES),
        "rms_norm of a permuted operand": Case(
            [a, y(96)], [ops.rms_norm(a, y(96), eps=1e-6)], SIZES, operands={0: (2, 0, 1)}
        ),
        "masked softmax": Case([scores, mask], [ops.softmax(masked, dim=3)], SIZES),
        "scaled softmax": Case([scores], [ops.softmax(ops.mul(scores, ops.scalar(0.125, F32)), dim=3)], SIZES),
        "softmax of half": Case([x(B, S, dtype=F16)], [ops.softmax(x(B, S, dtype=F16), dim=1)], SIZES),
        "softmax of a view": Case(
            [x(B, S, 12)],
            [ops.softmax(ops.permute(ops.reshape(x(B, S, 12), shape=(B, S, 3, 4)), dims=(0, 2, 1, 3)), dim=3)],
            SIZES,
        ),
        "softmax of a running sum": one(lambda v: ops.softmax(ops.cumsum(v, dim=1), dim=1), (B, S)),
        "softmax of a running sum across rows": one(lambda v: ops.softmax(ops.cumsum(v, dim=0), dim=0), (B, S)),
        "running sum and its softmax": one(lambda v: ops.add(ops.cumsum(v, dim=1), ops.softmax(v, dim=1)), (B, S)),
        "exp of a running sum of exp": one(lambda v: ops.exp(ops.neg(ops.cumsum(ops.exp(v), dim=2))), (B, S, 4)),
        "sum of a running sum of a running sum": one(
            lambda v: ops.sum(ops.cumsum(ops.cumsum(v, dim=0), dim=0), dims=(0,)), (B, S), FILLED
        ),
        "softmax of two running sums": one(
            lambda v: ops.softmax(ops.add(ops.cumsum(v, dim=1), ops.cumsum(ops.neg(v), dim=1)), dim=1), (B, S)
        ),
        "mean and variance": one(
            lambda v: ops.div(ops.sub(v, ops.mean(v, dims=(1,), keepdim=True)), ops.var(v, dims=(1,), keepdim=True)),
            (B, S, 4),
            FILLED[:1],
        ),
        "mask of what is largest": one(lambda v: ops.eq(v, ops.amax(v, dims=(2,), keepdim=True)), (B, S, 7), FILLED),
        "largest share": one(lambda v: ops.amax(ops.softmax(v, dim=1), dims=(1,)), (B, S), FILLED),
        "largest share across rows": one(lambda v: ops.amax(ops.softmax(v, dim=0), dims=(0,)), (B, S), FILLED),
        "entropy": one(
            lambda v: ops.neg(ops.sum(ops.mul(ops.softmax(v, dim=1), ops.log_softmax(v, dim=1)), dims=(1,))), (B, S)
        ),
        "shares and the largest": one(
            lambda v: ops.mul(ops.softmax(v, dim=2), ops.amax(ops.softmax(v, dim=2), dims=(2,), keepdim=True)),
            (B, S, 5),
            FILLED,
        ),
        "chosen by another's argmax": Case(
            [x(B, S), y(B, S)],
            [ops.argmax(ops.mul(x(B, S), y(B, S)), dim=1), ops.amax(ops.mul(x(B, S), y(B, S)), dims=(1,))],
            FILLED,
        ),
    }


def awkward() -> dict[str, Case]:
    """Sizes that no vector or chunk divides."""
    add = Case([x(B, S), y(S)], [ops.mul(ops.add(x(B, S), y(S)), x(B, S))], AWKWARD)
    return {
        "awkward pointwise": add,
        "awkward gelu": one(lambda v: ops.gelu(v), (B, S), AWKWARD),
        "awkward transpose": one(lambda v: ops.neg(ops.permute(v, dims=(1, 0))), (B, S), AWKWARD),
        "awkward softmax": one(lambda v: ops.softmax(v, dim=1), (B, S), AWKWARD),
        "awkward columns": one(lambda v: ops.mean(v, dims=(0,)), (B, S), AWKWARD),
        "awkward concat": one(lambda v: ops.concat(v, ops.neg(v), dim=1), (B, S), AWKWARD),
        "awkward half": Case([x(B, S, dtype=BF16)], [ops.exp(x(B, S, dtype=BF16))], AWKWARD),
        "known awkward": one(lambda v: ops.softmax(ops.gelu(v), dim=1), (181, 781), [{}]),
    }


CASES = {**all_regions(), **reductions(), **dtypes(), **widths(), **norms(), **awkward()}
