"""The text of kernels at sizes that pass 2^31: no number that an address is computed of overflows, none is outside."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

import pytest
import sympy
import torch

from smelt.codegen.gpu import (
    GPU_MACHINES,
    GpuAttentionSchedule,
    GpuMapSchedule,
    GpuMatmulSchedule,
    GpuRecurrenceSchedule,
    GpuRowsSchedule,
    GpuSchedule,
)
from smelt.codegen.gpu_schedule import default_gpu_schedule
from smelt.codegen.triton.file import KernelFile
from smelt.codegen.triton.module import emit
from smelt.ir import ops
from smelt.ir.types import Dim, concrete, symbol

from .cases import Case, operand
from .huge import LIMIT, Outside, Overflow, largest

A, B, C = symbol("a"), symbol("b"), symbol("c")
F32, BF16, I64 = torch.float32, torch.bfloat16, torch.int64
Dims = tuple[Dim, Dim, Dim]


def broadcast(a: Dim, b: Dim, c: Dim) -> Case:
    x, y = operand(0, (a, b, c)), operand(1, (b, 1))
    return Case([x, y], [ops.add(x, y)], operands={0: (2, 0, 1)})


def joined(a: Dim, b: Dim, c: Dim) -> Case:
    x, y = operand(0, (a, b, 16)), operand(1, (a, c, 16))
    return Case([x, y], [ops.concat(x, y, dim=1)])


def norm(a: Dim, b: Dim, c: Dim, dim: int = 2) -> Case:
    x = operand(0, (a, b, c))
    return Case([x], [ops.softmax(x, dim=dim)])


def linear(a: Dim, b: Dim, c: Dim) -> Case:
    x, w = operand(0, (a, b), BF16), operand(1, (c, b), BF16)
    return Case([x, w], [ops.linear(x, w)])


def batched(a: Dim, b: Dim, c: Dim) -> Case:
    x, y = operand(0, (a, b, 64)), operand(1, (a, 64, c))
    return Case([x, y], [ops.matmul(x, y)])


def normed(a: Dim, b: Dim, c: Dim) -> Case:
    x, w, g = operand(0, (a, b, 768)), operand(1, (c, 768)), operand(2, (768,))
    return Case([x, w, g], [ops.linear(ops.rms_norm(x, g), w)], weights=frozenset([1]))


def attention(a: Dim, b: Dim, c: Dim) -> Case:
    """Heads beside one another in memory, as in a cache of [batch, keys, heads, head]."""
    q, k, v = (operand(i, (a, 8, n, 64), BF16) for i, n in enumerate((b, c, c)))
    return Case(
        [q, k, v], [ops.attention(q, k, v, causal=False, scale=0.2)], operands=dict.fromkeys(range(3), (0, 2, 1, 3))
    )


def one_query(a: Dim, b: Dim, c: Dim) -> Case:
    return attention(a, 1, c)


def gathered(a: Dim, b: Dim, c: Dim) -> Case:
    table, ids = operand(0, (b, c)), operand(1, (a,), I64)
    return Case([table, ids], [ops.embedding(table, ids)])


def scattered(a: Dim, b: Dim, c: Dim) -> Case:
    cache, rows, places = operand(0, (a, b, c)), operand(1, (a, 5, c)), operand(2, (5,), I64)
    return Case([cache, rows, places], [ops.index_put(cache, rows, places, dim=1)])


def recurrent(a: Dim, b: Dim, c: Dim) -> Case:
    inputs = [operand(i, shape) for i, shape in enumerate(((a, b, 4 * c), (4 * c, c), (4 * c,), (b, c), (b, c)))]
    return Case(inputs, list(ops.results(ops.recurrence(*inputs, kind="lstm", reverse=False))))


@dataclass(frozen=True)
class Class:
    """A class of kernels: what it computes, how, the counts of elements that are drawn to be near 2^31.

    ``index`` is one more than the largest index from data.
    """

    make: Callable[[Dim, Dim, Dim], Case]
    schedule: GpuSchedule | None
    extents: tuple[Dim, ...]
    index: Dim = 1


MATRICES = (A * B, B * C, A * C)
TILES = GpuMatmulSchedule(16, 16, 16)
CLASSES = {
    "map": Class(broadcast, GpuMapSchedule(256, 1), (A * B * C,)),
    "pieces": Class(joined, GpuMapSchedule(256, 1), (16 * A * (B + C),)),
    "rows at once": Class(lambda a, b, c: norm(a, b, 781), GpuRowsSchedule(2, 1024), (A * B * 781,)),
    "rows in passes": Class(norm, GpuRowsSchedule(2, 256, False), (A * B * C,)),
    "rows apart": Class(lambda a, b, c: norm(a, b, c, 1), GpuRowsSchedule(16, 16, False), (A * B * C,)),
    "product": Class(linear, None, MATRICES),
    "small tiles": Class(linear, TILES, MATRICES),
    "one by one": Class(linear, GpuMatmulSchedule(2, 8, 32, dot=False), MATRICES),
    "parts": Class(linear, GpuMatmulSchedule(16, 16, 16, splits=4), MATRICES),
    "shares": Class(linear, GpuMatmulSchedule(16, 16, 16, streams=132), MATRICES),
    "in turns": Class(linear, GpuMatmulSchedule(16, 16, 16, persistent=132), MATRICES),
    "batched": Class(batched, TILES, (64 * A * B, 64 * A * C, A * B * C)),
    "norm and product": Class(normed, TILES, (768 * A * B, 768 * C, A * B * C)),
    "attention": Class(attention, GpuAttentionSchedule(16, 16), (512 * A * B, 512 * A * C)),
    "one query": Class(one_query, GpuAttentionSchedule(1, 16, few=True), (512 * A * C,)),
    "parts of keys": Class(one_query, GpuAttentionSchedule(1, 16, few=True, splits=8), (512 * A * C,)),
    "gather": Class(gathered, GpuMapSchedule(256, 1), (A * C, B * C), B),
    "scatter": Class(scattered, GpuMapSchedule(256, 1), (A * B * C,), B),
    "recurrence": Class(recurrent, GpuRecurrenceSchedule(), (4 * A * B * C, 4 * C * C)),
}


def written(case: Case, schedule: GpuSchedule | None) -> KernelFile:
    program = case.program()
    chosen = schedule or default_gpu_schedule(program, GPU_MACHINES["sm_90"])
    return emit("kernel", program, chosen, case.region.symbols)


@cache
def of_any_size(name: str) -> KernelFile:
    return written(CLASSES[name].make(A, B, C), CLASSES[name].schedule)


def drawn(name: str, rng: random.Random) -> dict[sympy.Symbol, int]:
    """Sizes at which the largest tensor has about 2^31 elements: some more, some fewer."""
    while True:
        sizes = {s: int(2 ** rng.uniform(0, 26)) for s in (A, B, C)}
        most = max(concrete(extent, sizes) for extent in CLASSES[name].extents)
        if 2**27 < most < 2**36:
            return sizes


def can_run(file: KernelFile, sizes: Mapping[sympy.Symbol, int]) -> bool:
    """Whether a grid has as many programs."""
    return all(concrete(launch.programs, sizes) <= LIMIT for launch in file.launches)


@pytest.mark.parametrize("name", CLASSES)
def test_sizes_of_a_call(name: str) -> None:
    file, rng, bits, roomy = of_any_size(name), random.Random(name), [], []
    for _ in range(60):
        sizes = drawn(name, rng)
        sizes = {s: n for s, n in sizes.items() if any(s in x.symbols for x in file.launches)}
        chosen = file.at(sizes)
        if not can_run(chosen, sizes):
            continue
        last = concrete(CLASSES[name].index, sizes) - 1
        for index in {last, -1 if last else 0}:
            largest(chosen, sizes, index)
        bits.append(chosen.bits)
        if chosen.bits == 64 and file.narrow is not None:
            roomy.append(_narrow_would_do(file.narrow, sizes, last))
    assert bits.count(32) >= 5, "offsets of 32 bits are for something"
    assert bits.count(64) >= 5
    # bounds are sums of absolute values, so somewhat more than is reached
    assert sum(roomy) <= 0.1 * len(roomy), f"{sum(roomy)} of {len(roomy)} would do with a quarter of what 32 bits hold"


def _narrow_would_do(file: KernelFile, sizes: Mapping[sympy.Symbol, int], last: int) -> bool:
    if not can_run(file, sizes):
        return False
    try:
        return largest(file, sizes, last) < LIMIT // 4
    except (Overflow, Outside):
        return False


@pytest.mark.parametrize("name", [n for n, c in CLASSES.items() if c.make is linear])
def test_no_terms(name: str) -> None:
    """Nothing is divided by 0, which a GPU gives any number for."""
    for sizes in ({A: 40, B: 0, C: 70}, {A: 0, B: 40, C: 70}):
        for file in of_any_size(name).all:
            largest(file, sizes)


@pytest.mark.parametrize("name", CLASSES)
def test_sizes_that_are_numbers(name: str) -> None:
    rng = random.Random(name)
    for _ in range(12):
        sizes = drawn(name, rng)
        file = written(CLASSES[name].make(*(sizes[s] for s in (A, B, C))), CLASSES[name].schedule)
        assert file.narrow is None
        if can_run(file, {}):
            largest(file, {}, concrete(CLASSES[name].index, sizes) - 1)
