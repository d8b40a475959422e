"""The map skeleton: a block of points in each program; nothing is combined."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from ...ir.types import Dim, canonical_dim, product
from ..gpu import GpuMapSchedule
from ..program import Axis, Store, store_roots
from .expression import store, values_of
from .file import FileWriter, ceil_div, program_id
from .indexing import decode, dim_text
from .scope import Scope, Value


def emit_map(file: FileWriter, schedule: GpuMapSchedule) -> None:
    """Write the function of a map program. Stores with axes of their own are for programs of their own."""
    emit_groups(file, "", file.program.stores, schedule)


def emit_groups(file: FileWriter, suffix: str, stores: Sequence[Store], schedule: GpuMapSchedule) -> None:
    """Write a function with stores none of which reads or writes what another writes."""
    groups = [(axes, list(found)) for axes, found in groupby(stores, key=lambda s: s.axes)]
    counts = [ceil_div(product(a.size for a in axes), schedule.block) for axes, _ in groups]
    roots, written = [x for s in stores for x in store_roots(s)], [s.param for s in stores]
    total = canonical_dim(sum(counts, 0))
    with file.function(suffix, file.program, roots, written, total, warps=schedule.warps) as scope:
        block = scope.src.constant("BLOCK", schedule.block)
        number = scope.src.let("program", program_id(scope))
        first: Dim = 0
        for (axes, found), count in zip(groups, counts, strict=True):
            if len(groups) == 1:
                emit_stores(found, points(axes, number, block, schedule, scope))
                return
            last = canonical_dim(first + count)
            low, high = dim_text(first, scope), dim_text(last, scope)
            with scope.src.block(f"if ({number} >= {low}) & ({number} < {high})"):
                start = number if first == 0 else f"({number} - {low})"
                emit_stores(found, points(axes, start, block, schedule, scope.inner()))
            first = last


def points(axes: tuple[Axis, ...], number: str, block: str, schedule: GpuMapSchedule, scope: Scope) -> Scope:
    """The scope of block ``number`` of the points of some axes."""
    if not axes:
        return scope
    src, count = scope.src, product(a.size for a in axes)
    flat = src.let("p" if len(axes) > 1 else "i", f"{number} * {block} + tl.arange(0, {block})")
    exact = isinstance(count, int) and count % schedule.block == 0
    mask = None if exact else src.let("inside", f"{flat} < {dim_text(count, scope)}")
    at = scope.block((block,), (mask,))
    return at.at(decode(Value(flat, frozenset({0})), axes, at))


def emit_stores(stores: Sequence[Store], scope: Scope) -> None:
    """Store the values at the points of a block; what they share is computed once."""
    for s, value in zip(stores, values_of([s.value for s in stores], scope), strict=True):
        store(scope.program.param(s.param), s.index, value, scope)
