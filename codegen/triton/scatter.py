"""The scatter skeleton: copies as in a map, then stores to places that data chooses.

Points that may go to one element stay in order, so that the last writer wins and sums have one order: a program takes
them one after another, for elements that no other program writes. Stores that cannot meet (of different tensors, or of
parts of one that are told apart by their indices) are one launch, with programs of their own; a store that reads or
writes what another writes is in a later launch than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import sympy

from ...ir.types import Dim, canonical_dim, product
from ..bounds import Bounds
from ..contraction import axes_of
from ..gpu import GpuMapSchedule
from ..program import Affine, Axis, Checked, Expr, Load, Store, postorder, program_axes, store_roots
from .expression import checked_index, store, value_of
from .file import FileWriter, ceil_div, program_id
from .functions import functions_for
from .indexing import decode, dim_text
from .map import emit_groups, emit_stores, points
from .scope import Scope, Value, conjunction


def emit_scatter(file: FileWriter, schedule: GpuMapSchedule) -> None:
    """Write the functions of a scatter program."""
    bounds = Bounds(file.ranges)
    for axis in program_axes(file.program):
        bounds.add(axis)
    for number, stores in enumerate(launches_of(file.program.stores, bounds)):
        if any(_is_by_data(s) for s in stores):
            emit_together(file, f"{number}_write", stores, schedule)
        else:
            emit_groups(file, f"{number}_copy", stores, schedule)


# --- which stores are one launch --------------------------------------------------------------------------------------


def launches_of(stores: Sequence[Store], bounds: Bounds) -> list[list[Store]]:
    """Stores by launch: each in the first one after all those before it that it may meet.

    Args:
        stores: the stores of a program, in order.
        bounds: what is known of their axes.
    """
    found: list[list[Store]] = []
    for s in stores:
        after = [n for n, others in enumerate(found, 1) if any(_may_meet(before, s, bounds) for before in others)]
        at = max(after, default=0)
        if at == len(found):
            found.append([])
        found[at].append(s)
    return found


def _may_meet(first: Store, second: Store, bounds: Bounds) -> bool:
    """Whether one of two stores may read or write an element that the other writes."""
    if first.param in _read(second) or second.param in _read(first):
        return True
    if first.param != second.param:
        return False
    # stores without data are the parts of one copy
    return (_is_by_data(first) or _is_by_data(second)) and not _apart(first, second, bounds)


def _read(s: Store) -> set[str]:
    """The parameters that a store reads, but for the elements that it adds to."""
    return {e.param for e in postorder(store_roots(s)) if isinstance(e, Load)}


def _apart(first: Store, second: Store, bounds: Bounds) -> bool:
    """Whether no element is one of both stores: along some dim, the indices of one are all below those of the other."""
    return any(
        not isinstance(a, Expr)
        and not isinstance(b, Expr)
        and (_is_below(a, first, b, bounds) or _is_below(b, second, a, bounds))
        for a, b in zip(first.index, second.index, strict=True)
    )


def _is_below(low: Affine, below: Store, high: Affine, bounds: Bounds) -> bool:
    """Whether an index of one store is always less than one of another. Their axes are counted by themselves."""
    renamed = {a.symbol: bounds.add(Axis(f"{a.name} below", a.size)).symbol for a in below.axes}
    return bounds.never_negative(high - sympy.sympify(low).xreplace(renamed) - 1)


def _is_by_data(s: Store) -> bool:
    return s.accumulate or any(isinstance(i, Expr) for i in s.index)


# --- one launch -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Points:
    """The points of stores: programs for blocks of the ``own`` axes, which take those of ``ordered`` ones in turn."""

    stores: tuple[Store, ...]
    block: int

    @cached_property
    def own(self) -> tuple[Axis, ...]:
        """The axes whose points go to elements of their own."""
        (s, *others) = self.stores
        return s.axes if others or not _is_by_data(s) else tuple(a for a in s.axes if _is_own(s, a))

    @cached_property
    def ordered(self) -> tuple[Axis, ...]:
        """The others."""
        return tuple(a for a in self.stores[0].axes if a not in self.own)

    @property
    def programs(self) -> Dim:
        """How many programs there are."""
        if isinstance(count := product(a.size for a in self.stores[0].axes), int) and not count:
            return 0
        return ceil_div(product(a.size for a in self.own), self.block)


def emit_together(file: FileWriter, suffix: str, stores: Sequence[Store], schedule: GpuMapSchedule) -> None:
    """Write a function with stores that cannot meet, each for programs of its own."""
    parts = _parts(stores, schedule)
    roots, written = [x for s in stores for x in store_roots(s)], [s.param for s in stores]
    total = canonical_dim(sum((p.programs for p in parts), 0))
    with file.function(suffix, file.program, roots, written, total, warps=schedule.warps) as scope:
        block, number = scope.src.constant("BLOCK", schedule.block), scope.src.let("program", program_id(scope))
        first: Dim = 0
        for part in parts:
            if len(parts) == 1:
                _emit_points(part, number, block, schedule, scope)
                return
            last = canonical_dim(first + part.programs)
            low, high = dim_text(first, scope), dim_text(last, scope)
            with scope.src.block(f"if ({number} >= {low}) & ({number} < {high})"):
                start = number if first == 0 else f"({number} - {low})"
                _emit_points(part, start, block, schedule, scope.inner())
            first = last


def _parts(stores: Sequence[Store], schedule: GpuMapSchedule) -> list[_Points]:
    """Stores that share their programs: those of a copy with equal axes; others have their own."""
    found: list[_Points] = []
    for by_data, some in groupby(stores, key=_is_by_data):
        if by_data:
            found += [_Points((s,), schedule.block) for s in some]
        else:
            found += [_Points(tuple(same), schedule.block) for _, same in groupby(some, key=lambda s: s.axes)]
    return found


def _emit_points(part: _Points, number: str, block: str, schedule: GpuMapSchedule, scope: Scope) -> None:
    src, at = scope.src, points(part.own, number, block, schedule, scope)
    if not _is_by_data(part.stores[0]):
        emit_stores(part.stores, at)
        return
    (s,) = part.stores
    if not part.ordered:
        _element(s, at)
        return
    point = src.fresh("point")
    with src.block(f"for {point} in range(0, {dim_text(product(a.size for a in part.ordered), scope)})"):
        here = at.inner()
        _element(s, here.at(decode(Value(point), part.ordered, here)))
        # the next point may read what this one wrote
        src.line("tl.debug_barrier()")


def _is_own(s: Store, axis: Axis) -> bool:
    """Whether different points of an axis are stored to different elements: an index counts it, from anywhere."""
    by_data = [i for i in s.index if isinstance(i, Expr)]
    others = {a.symbol for a in s.axes}
    counts = [sympy.sympify(i) - axis.symbol for i in s.index if not isinstance(i, Expr)]
    return any(not c.free_symbols & others for c in counts) and not any(axis.symbol in axes_of(i) for i in by_data)


def _element(s: Store, scope: Scope) -> None:
    """Store one point of each lane where all its places are inside of the tensor."""
    known, insides = dict(scope.known), []
    for place in s.index:
        if isinstance(place, Checked):
            known[place], inside = checked_index(place, value_of(place.value, scope), scope)
            insides.append(inside)
    everywhere = conjunction(insides)
    if everywhere is not None:
        scope = scope.under(everywhere)
        scope.known.update(known)
    value = value_of(s.value, scope)
    if s.accumulate:
        param = scope.program.param(s.param)
        before = value_of(Load(s.param, s.index, param.type.dtype), scope.inner())
        add = functions_for(param.type.dtype)["add"]
        value = Value(add.format(before.typed, value.typed), before.dims | value.dims)
    store(scope.program.param(s.param), s.index, value, scope)
