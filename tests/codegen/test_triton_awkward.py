"""Every class of kernel on sizes that no block divides: none, 1, 17, 1823 x 781."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from smelt.codegen.gpu import GpuAttentionSchedule, GpuMapSchedule, GpuMatmulSchedule, GpuRowsSchedule, GpuSchedule
from smelt.ir import ops
from smelt.ir.types import symbol

from . import quantized_cases as quantized
from .cases import Case, operand
from .triton_harness import build

A, B = symbol("a"), symbol("b")
F32, F16, I64 = torch.float32, torch.float16, torch.int64


def pointwise() -> Case:
    x, y = operand(0, (A, B)), operand(1, (B,))
    return Case([x, y], [ops.silu(ops.add(x, y))])


def norm() -> Case:
    return Case([operand(0, (A, 781))], [ops.layer_norm(operand(0, (A, 781)), eps=1e-5)])


def softmax() -> Case:
    return Case([operand(0, (A, B))], [ops.softmax(operand(0, (A, B)), dim=1)])


def linear(dtype: torch.dtype) -> Case:
    x, w = operand(0, (A, 33), dtype), operand(1, (781, 33), dtype)
    return Case([x, w], [ops.linear(x, w)])


def attention() -> Case:
    q, k, v = (operand(i, (1, 1, n, 24), F16) for i, n in enumerate((A, B, B)))
    return Case([q, k, v], [ops.attention(q, k, v, causal=False, scale=0.2)])


def gathered() -> Case:
    table, ids = operand(0, (781, B)), operand(1, (A,), I64)
    return Case([table, ids], [ops.embedding(table, ids)], low=0, high=781)


def scattered() -> Case:
    cache, rows, places = operand(0, (A, 781)), operand(1, (A, 5)), operand(2, (5,), I64)
    return Case([cache, rows, places], [ops.index_put(cache, rows, places, dim=1)], low=0, high=781)


def recurrent() -> Case:
    shapes = ((A, B, 33), (33, 33), (33,), (B, 33))
    inputs = [operand(i, shape) for i, shape in enumerate(shapes)]
    return Case(inputs, list(ops.results(ops.recurrence(*inputs, kind="tanh", reverse=True))))


Sizes = tuple[tuple[int, int], ...]
SMALL: Sizes = ((0, 17), (1, 1), (17, 1))
LARGE: Sizes = (*SMALL, (1823, 781))

CLASSES: dict[str, tuple[Callable[[], Case], GpuSchedule | None, Sizes]] = {
    "map": (pointwise, GpuMapSchedule(1 << 16), LARGE),
    "map in small blocks": (pointwise, GpuMapSchedule(128, 1), SMALL),
    "rows at once": (norm, None, LARGE),
    "rows in passes": (softmax, None, (*SMALL, (182, 781))),
    "several rows": (norm, GpuRowsSchedule(4, 1024), SMALL),
    "product, tiles": (lambda: linear(F16), None, LARGE),
    "product, one by one": (lambda: linear(F32), GpuMatmulSchedule(4, 64, 64, dot=False), ((0, 1), (1, 1), (183, 1))),
    "product, parts": (lambda: linear(F32), GpuMatmulSchedule(16, 64, 16, splits=2), (*SMALL, (183, 1))),
    "product, shares": (lambda: linear(F32), GpuMatmulSchedule(16, 64, 16, streams=7), (*SMALL, (183, 1))),
    "product, in turns": (lambda: linear(F32), GpuMatmulSchedule(16, 64, 16, persistent=5), (*SMALL, (183, 1))),
    "attention, many queries": (attention, None, LARGE),
    "attention, few queries": (attention, GpuAttentionSchedule(1, 64, few=True, splits=3), (*SMALL, (3, 781))),
    "gather": (gathered, None, ((0, 17), (1, 1), (17, 1), (1823, 7))),
    "scatter": (scattered, None, LARGE),
    "recurrence": (recurrent, None, ((1, 1), (2, 17), (3, 3))),
}


@pytest.mark.parametrize("name", CLASSES)
def test_sizes(name: str) -> None:
    make, schedule, sizes = CLASSES[name]
    kernel = build(make(), schedule)
    names = [str(s) for s in kernel.program.symbols]
    for a, b in dict.fromkeys((x if "a" in names else 0, y if "b" in names else 0) for x, y in sizes):
        kernel.check({n: size for n, size in (("a", a), ("b", b)) if n in names})


@pytest.mark.parametrize("bits", [4, 8])
def test_few_bits(bits: int) -> None:
    kernel = build(quantized.few_bits(781, 33, bits, 32, zeros=True, packed=False))
    for m in (0, 1, 17):
        kernel.check({"m": m}, quantized.tensors_of(kernel.case, {"m": m}))
