"""The scatter skeleton: copies as in a map, then stores to places that data chooses, in launches of their own.

Points that may go to one element stay in order, so that the last writer wins and sums have one order: a program takes
them one after another, for elements that no other program writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from ...ir.types import Dim, product
from ..contraction import axes_of
from ..gpu import GpuMapSchedule
from ..program import Axis, Checked, Expr, Load, Store, store_roots
from .expression import checked_index, store, value_of
from .file import FileWriter, ceil_div, program_id
from .functions import functions_for
from .indexing import decode, dim_text
from .map import emit_groups, points
from .scope import Scope, Value, conjunction


def emit_scatter(file: FileWriter, schedule: GpuMapSchedule) -> None:
    """Write the functions of a scatter program."""
    for number, stores in enumerate(_groups(file.program.stores)):
        if _is_by_data(stores[0]):
            emit_ordered(file, f"{number}_write", stores[0], schedule)
        else:
            emit_groups(file, f"{number}_copy", stores, schedule)


def _groups(stores: tuple[Store, ...]) -> Iterator[list[Store]]:
    """Stores that one function may have, in order."""
    for by_data, found in groupby(stores, key=_is_by_data):
        if by_data:
            yield from ([s] for s in found)
        else:
            # what is copied to one tensor may be read by what is copied to the next
            yield from (list(same) for _, same in groupby(found, key=lambda s: s.param))


def _is_by_data(store: Store) -> bool:
    return store.accumulate or any(isinstance(i, Expr) for i in store.index)


def emit_ordered(file: FileWriter, suffix: str, s: Store, schedule: GpuMapSchedule) -> None:
    """Write a function for one store to places that data chooses."""
    own = tuple(a for a in s.axes if _is_own(s, a))
    ordered = tuple(a for a in s.axes if a not in own)
    roots: list[Expr] = [*store_roots(s)]
    programs: Dim = ceil_div(product(a.size for a in own), schedule.block)
    if isinstance(count := product(a.size for a in s.axes), int) and not count:
        programs = 0
    with file.function(suffix, file.program, roots, [s.param], programs, warps=schedule.warps) as scope:
        src = scope.src
        block, number = src.constant("BLOCK", schedule.block), src.let("program", program_id(scope))
        at = points(own, number, block, schedule, scope)
        if not ordered:
            _element(s, at)
            return
        point = src.fresh("point")
        with src.block(f"for {point} in range(0, {dim_text(product(a.size for a in ordered), scope)})"):
            here = at.inner()
            _element(s, here.at(decode(Value(point), ordered, here)))
            # the next point may read what this one wrote
            src.line("tl.debug_barrier()")


def _is_own(s: Store, axis: Axis) -> bool:
    """Whether different points of an axis are stored to different elements."""
    by_data = [i for i in s.index if isinstance(i, Expr)]
    return axis.symbol in s.index and not any(axis.symbol in axes_of(i) for i in by_data)


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
