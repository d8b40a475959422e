"""Whether offsets fit 32 bits: decided before a kernel is written, and never wrongly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise, product

import pytest
import sympy
import torch

from smelt.codegen.gpu import GpuMapSchedule, GpuMatmulSchedule
from smelt.codegen.program import Axis, Load, Param, Program, Role, Skeleton, Store
from smelt.codegen.triton.module import emit
from smelt.codegen.triton.width import NARROW_LIMIT, SPARE, bounds_of, index_bits
from smelt.ir import ops
from smelt.ir.types import Dim, SymbolRange, TensorType, concrete, symbol

from .cases import Case, operand

S = symbol("s")


def copy_of(shape: Sequence[Dim], strides: Sequence[Dim], flipped: Sequence[bool]) -> Program:
    """out[i] = in[i], some axes of the operand read from the end; both lie in memory alike."""
    type_ = TensorType(tuple(shape), torch.float32)
    params = tuple(Param(n, type_, tuple(strides), r) for n, r in (("in0", Role.IN), ("out0", Role.OUT)))
    axes = tuple(Axis(f"i{d}", size) for d, size in enumerate(shape))
    at = tuple(a.symbol for a in axes)
    read = tuple(a.size - 1 - a.symbol if f else a.symbol for a, f in zip(axes, flipped, strict=True))
    store = Store("out0", axes, at, Load("in0", read, torch.float32))
    symbols = tuple(sorted({s for n in shape if isinstance(n, sympy.Expr) for s in n.free_symbols}, key=str))
    return Program(Skeleton.MAP, params, (), (store,), symbols)


def largest(shape: Sequence[int], strides: Sequence[int], flipped: Sequence[bool]) -> int:
    """The greatest number that reading or counting the points forms, found at the corners, term by term."""
    count = 1
    for size in shape:
        count *= size
    found = [count]
    for corner in product(*([0, n - 1] for n in shape)):
        found.append(sum(i * s for i, s in zip(corner, strides, strict=True)))
        terms = []
        for i, n, s, f in zip(corner, shape, strides, flipped, strict=True):
            terms += [(n - 1) * s, -i * s] if f else [i * s]
        for start in range(len(terms)):
            for stop in range(start + 1, len(terms) + 1):
                found.append(abs(sum(terms[start:stop])))
    return max(found)


def drawn(seed: int) -> tuple[list[int], list[int], list[bool]]:
    rng = random.Random(seed)
    rank = rng.randint(1, 4)
    shape = [int(2 ** rng.uniform(16 / rank, 42 / rank)) for _ in range(rank)]
    order = rng.sample(range(rank), rank)
    strides, step = [0] * rank, 1
    for d in order:
        strides[d] = step
        step *= shape[d] + rng.choice([0, 0, 1, 17])
    return shape, strides, [rng.random() < 0.3 for _ in range(rank)]


@pytest.mark.parametrize("start", range(0, 1000, 100))
def test_random_shapes_and_strides(start: int) -> None:
    for seed in range(start, start + 100):
        shape, strides, flipped = drawn(seed)
        most = largest(shape, strides, flipped)
        bits = index_bits(copy_of(shape, strides, flipped), ())
        assert most <= NARROW_LIMIT or bits == 64, (shape, strides)
        extent = sum(n * s for n, s in zip(shape, strides, strict=True))
        # bounds are sums of absolute values: at most twice what is reached, one more of each dim
        roomy = 2 * extent + sum(shape) + most + SPARE <= NARROW_LIMIT
        assert not roomy or bits == 32, (shape, strides, most)


@pytest.mark.parametrize("start", range(0, 1000, 250))
def test_sizes_at_a_launch_decide_as_numbers_would(start: int) -> None:
    for seed in range(start, start + 250):
        shape, strides, flipped = drawn(seed)
        symbols = [symbol(f"n{d}") for d in range(len(shape))]
        # dense, so that strides are products of sizes; the order of dims is as drawn
        order = sorted(range(len(shape)), key=lambda d: strides[d])
        dense: list[Dim] = [1] * len(shape)
        for before, after in pairwise(order):
            dense[after] = dense[before] * symbols[before]
        sizes = dict(zip(symbols, shape, strict=True))
        numbers = [concrete(d, sizes) for d in dense]
        most = largest(shape, numbers, flipped)
        found = max(concrete(b, sizes) for b in bounds_of(copy_of(symbols, dense, flipped), ()))
        assert found >= most, (shape, numbers)
        known = index_bits(copy_of(shape, numbers, flipped), ())
        assert (found + SPARE <= NARROW_LIMIT) == (known == 32), (shape, numbers)


def test_random_cases_are_of_both_kinds() -> None:
    bits = [index_bits(copy_of(*drawn(seed)), ()) for seed in range(300)]
    assert 60 < bits.count(32) < 240


@pytest.mark.parametrize(("high", "bits"), [(None, 64), (2**20, 32), (2**21 - 1, 64), (2**22, 64)])
def test_a_size_with_a_bound(high: int | None, bits: int) -> None:
    program = copy_of([S, 1024], [1024, 1], [False, False])
    assert index_bits(program, [SymbolRange(S, 0, high)]) == bits


def test_a_size_that_nothing_is_known_of() -> None:
    assert index_bits(copy_of([S], [1], [False]), ()) == 64


def test_sizes_choose_between_both_kernels() -> None:
    file = emit("kernel", copy_of([S, 1024], [1024, 1], [False, False]), GpuMapSchedule())
    assert file.bits == 64
    assert file.narrow is not None
    assert file.at({S: 2**20}).bits == 32
    assert file.at({S: 2**21}) is file
    assert "int64" not in file.narrow.text
    bounded = emit("kernel", copy_of([S, 4], [4, 1], [False, False]), GpuMapSchedule(), [SymbolRange(S, 0, 9)])
    assert (bounded.bits, bounded.narrow) == (32, None)


def test_memory_that_a_kernel_is_lent_counts() -> None:
    """Parts of a sum may take more memory than any operand."""
    case = Case([operand(0, (S, 64)), operand(1, (64, 64))], [ops.matmul(operand(0, (S, 64)), operand(1, (64, 64)))])
    file = emit("kernel", case.program(), GpuMatmulSchedule(16, 16, 16, splits=64))
    assert file.at({S: 2**13}).bits == 32
    assert file.at({S: 2**19}).bits == 64
