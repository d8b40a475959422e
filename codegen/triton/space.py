"""The schedules of a program on a GPU that a tuner may choose, and the order in which it looks at them.

None of them changes what is computed. Registers and shared memory are estimated here; what the compiler says counts
(``compile_file``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from itertools import product as combinations
from math import log2
from typing import Any

import sympy
import torch

from ...ir.ops.quantize import WORD
from ...ir.types import concrete, product
from ..contraction import contraction
from ..gpu import (
    GpuAttentionSchedule,
    GpuMachine,
    GpuMapSchedule,
    GpuMatmulSchedule,
    GpuRecurrenceSchedule,
    GpuRowsSchedule,
    GpuSchedule,
)
from ..gpu_schedule import (
    MOST_OWN_ROWS,
    computes_statistics,
    default_gpu_schedule,
    dots,
    float8_terms,
    power_of_two,
)
from ..program import Expr, Load, Program, Skeleton, dot_stage, postorder
from .descriptors import is_matrix
from .dots import dot_dtype
from .estimate import GpuProduct, fits, product_seconds
from .few_bits import bytes_of, few_bits, float8_bits_of, nibble, widened_half
from .matmul import product_of

Sizes = Mapping[sympy.Symbol, int]

MOST_FEW_ROWS = 16  # that are summed one by one
KEPT = 512  # schedules of a product: the best by the estimate


def gpu_space(program: Program, machine: GpuMachine, sizes: Sizes) -> tuple[GpuSchedule, ...]:
    """The schedules of a program at some sizes, each once: the default, then those that are worth trying first.

    Args:
        program: the program.
        machine: the GPU.
        sizes: of all its symbols.
    """
    default = default_gpu_schedule(program, machine)
    match default:
        case GpuMatmulSchedule():
            others = _matmul(program, machine, sizes)
        case GpuAttentionSchedule():
            others = _near(default, _attention(program, default, machine))
        case GpuRecurrenceSchedule():
            others = _near(default, _recurrence(default))
        case GpuRowsSchedule():
            others = _near(default, _rows(default))
        case GpuMapSchedule():
            others = _near(default, _map(program))
    return tuple(dict.fromkeys((default, *others)))


def _near(default: GpuSchedule, found: Iterable[GpuSchedule]) -> list[GpuSchedule]:
    """Schedules by how little they differ from the default."""

    def distance(schedule: GpuSchedule) -> float:
        pairs = ((getattr(schedule, f.name), getattr(default, f.name)) for f in fields(schedule))
        return sum(abs(log2(max(a, 0.5)) - log2(max(b, 0.5))) for a, b in pairs)

    return sorted(found, key=distance)


# --- products ---------------------------------------------------------------------------------------------------------


def gpu_product(program: Program, sizes: Sizes) -> GpuProduct:
    """The product of a matmul program as numbers."""
    whole = product_of(program)
    c = contraction(whole, dot_stage(whole))
    batch, rows, columns, terms = (
        max(concrete(product(a.size for a in axes), sizes), 1) for axes in (c.batch, c.rows, c.columns, c.reduced)
    )
    few = few_bits(c.right, c.reduced[0]) if len(c.reduced) == 1 else None
    if bytes_of(c.left, c.right) is not None:
        kind = "int8"
    elif dot_dtype(c.left, c.right) != torch.float32 or (few is not None and widened_half(c.left) is not None):
        kind = "half"
    elif float8_bits_of(c.left, c.right) is not None:
        kind = "half"  # or float8, which has the rate of int8: that is for the GPU to say
    else:
        kind = "single"
    stored = program.outputs[0].type.dtype.itemsize if program.outputs else 4
    return GpuProduct(batch, rows, columns, terms, _bytes_of(c.left), _bytes_of(c.right), stored, kind)


def _bytes_of(expr: Expr) -> float:
    """The bytes of memory that an element of an operand is read from: those of its largest part."""
    found = [0.0]
    for e in postorder([expr], lambda e: nibble(e) is not None):
        if nibble(e) is not None:
            found.append(4.0 / WORD)
        elif isinstance(e, Load) and not _is_shared(e):
            found.append(float(e.dtype.itemsize))
    return max(found) or float(expr.dtype.itemsize)


def _is_shared(load: Load) -> bool:
    """Whether several terms read the same element: a factor of a group."""
    return any(isinstance(i, sympy.Expr) and i.has(sympy.floor) for i in load.index)


def _matmul(program: Program, machine: GpuMachine, sizes: Sizes) -> list[GpuSchedule]:
    shape = gpu_product(program, sizes)
    if float8_terms(program, machine):
        shape = replace(shape, kind="int8")
    found = [s for s in _products(program, shape, machine) if fits(shape, s, machine)]
    return [*sorted(dict.fromkeys(found), key=lambda s: product_seconds(shape, s, machine))[:KEPT]]


def _products(program: Program, p: GpuProduct, machine: GpuMachine) -> Iterator[GpuMatmulSchedule]:
    stage, has_statistics = dot_stage(program), computes_statistics(program)
    if dots(stage.dtype) or p.kind == "int8":
        for tile in _tiles(program, p, machine):
            yield tile
            whole = p.rows <= min(tile.block_m, MOST_OWN_ROWS) and tile.splits == 1 and not tile.streams
            if whole and has_statistics:
                yield replace(tile, statistics=True)
    if p.rows <= MOST_FEW_ROWS or not dots(stage.dtype):
        yield from _sums(p, machine)


def _tiles(program: Program, p: GpuProduct, machine: GpuMachine) -> Iterator[GpuMatmulSchedule]:
    """Tiles on tensor cores or in FMAs."""
    least = 32 if p.kind == "int8" else 16
    heights = _powers(16, min(256, max(power_of_two(p.rows), 16)))
    widths = _powers(16, min(256, max(power_of_two(p.columns), 16)))
    depths = _powers(least, min(128 if p.kind != "single" else 64, max(power_of_two(p.terms), least)))
    tma = machine.capability >= 90 and can_use_descriptors(program)
    float8 = float8_terms(program, machine)
    for m, n, k, warps, stages in combinations(heights, widths, depths, (4, 8), (2, 3, 4)):
        made = GpuMatmulSchedule(m, n, k, float8=float8, warps=warps, stages=stages)
        tiles = p.batch * -(-p.rows // m) * -(-p.columns // n)
        for order in _orders(tiles, p.terms, k, machine):
            yield replace(made, **order)
            if tma:
                yield replace(made, tma=True, **order)
            if tma and machine.capability >= 100 and m >= 64 and warps == 4:
                yield replace(made, tma=True, specialize=True, **order)


def _orders(tiles: int, terms: int, block: int, machine: GpuMachine) -> list[dict[str, Any]]:
    """Who computes which tiles: one each; parts or even shares where there are few, in turns where there are many."""
    found: list[dict[str, Any]] = [{}]
    if tiles < machine.processors:
        found += [{"splits": n} for n in (2, 4, 8, 16) if terms >= n * block and tiles * n <= 4 * machine.processors]
        found += [{"streams": machine.processors}] if terms >= 2 * block else []
    elif tiles > machine.processors:
        found.append({"persistent": machine.processors})
    return found


def _sums(p: GpuProduct, machine: GpuMachine) -> Iterator[GpuMatmulSchedule]:
    """Products summed one by one."""
    height = min(power_of_two(p.rows), MOST_FEW_ROWS)
    widths = _powers(1, min(64, power_of_two(p.columns)))
    depths = _powers(min(32, power_of_two(p.terms)), min(1024, power_of_two(p.terms)))
    for n, k, warps in combinations(widths, depths, (1, 2, 4, 8)):
        made = GpuMatmulSchedule(height, n, k, dot=False, warps=warps, stages=1)
        if height * n * k < 64 * warps:
            continue
        tiles = p.batch * -(-p.rows // height) * -(-p.columns // n)
        for order in _orders(tiles, p.terms, k, machine):
            if "persistent" not in order:
                yield replace(made, **order)


def can_use_descriptors(program: Program) -> bool:
    """Whether both operands of a product are matrices that tensor descriptors take."""
    whole = product_of(program)
    c = contraction(whole, dot_stage(whole))
    if len(c.reduced) != 1:
        return False
    dtype = dot_dtype(c.left, c.right)
    pairs = ((c.left, c.rows), (c.right, c.columns))
    return all(is_matrix(whole, expr, axes, c.reduced[0], dtype) for expr, axes in pairs)


def _powers(least: int, most: int) -> list[int]:
    """The powers of two from one to another."""
    return [least << i for i in range(max(most // least, 1).bit_length())]


# --- others -----------------------------------------------------------------------------------------------------------


def _attention(program: Program, default: GpuAttentionSchedule, machine: GpuMachine) -> Iterator[GpuAttentionSchedule]:
    if default.few:
        for keys, splits, warps in combinations((16, 32, 64, 128, 256), (1, 2, 4, 8, 16, 32), (1, 2, 4, 8)):
            yield replace(default, keys=keys, splits=splits, warps=warps, alone=0)
        return
    for queries, keys, warps, stages in combinations((16, 32, 64, 128), (16, 32, 64, 128), (4, 8), (1, 2, 3)):
        yield replace(default, queries=queries, keys=keys, warps=warps, stages=stages)


def _recurrence(default: GpuRecurrenceSchedule) -> Iterator[GpuRecurrenceSchedule]:
    for units, terms, warps in combinations((16, 32, 64, 128), (16, 32, 64), (2, 4, 8)):
        yield replace(default, units=units, terms=terms, warps=warps)


def _rows(default: GpuRowsSchedule) -> Iterator[GpuRowsSchedule]:
    if default.at_once:
        for rows, warps in combinations((1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16)):
            if 1 <= rows * default.columns / (32 * warps) <= 64:
                yield replace(default, rows=rows, warps=warps)
        return
    for columns, warps in combinations((256, 512, 1024, 2048, 4096), (1, 2, 4, 8, 16)):
        if 1 <= default.rows * columns / (32 * warps) <= 64:
            yield replace(default, columns=columns, warps=warps)


def _map(program: Program) -> Iterator[GpuMapSchedule]:
    blocks = (128, 256, 512, 1024, 2048, 4096) if program.skeleton is Skeleton.MAP else (32, 64, 128, 256, 512, 1024)
    for block, warps in combinations(blocks, (1, 2, 4, 8)):
        if 1 <= block / (32 * warps) <= 32:
            yield GpuMapSchedule(block, warps)
