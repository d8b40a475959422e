"""The scatter skeleton: copies as in a map, then stores to places that data chooses, in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ...ir.types import product
from ..program import Axis, Checked, Expr, Program, Store, store_roots
from ..schedule import MapSchedule
from .expression import Scope, checked_index, functions_for, load_text, scalar, store_line
from .loops import fastest_axis, hoisted, lanes_along, parallel_axes, serial_axes, varies, vector_loop
from .map import emit_nest
from .source import Source


def emit_scatter(program: Program, schedule: MapSchedule, src: Source) -> None:
    """Write the loops of a scatter program."""
    scope = Scope(program, src)
    for store in program.stores:
        if any(isinstance(i, Expr) for i in store.index) or store.accumulate:
            _emit_scattered(store, schedule.vector, scope)
        else:
            emit_nest(store.axes, [store], schedule.vector, scope)


def _emit_scattered(store: Store, lanes: int, scope: Scope) -> None:
    """Points that may go to one element stay in order: parallel are only axes that lead to elements of their own."""
    own = [a for a in store.axes if _is_own(store, a)]
    inner = fastest_axis(scope.program.param(store.param), store)
    inner = inner if inner in own else None
    outer = [a for a in own if a != inner]
    ordered = [a for a in store.axes if a not in own]
    with (
        parallel_axes(outer, scope, product(a.size for a in store.axes)) as point,
        serial_axes(ordered, point) as row,
        _places_inside(store, row) as at,
    ):
        if inner is None:
            _emit_element(store, at)
            return
        roots = store_roots(store)
        vector_loop(
            inner,
            (lanes_along(inner, lanes, roots),),
            hoisted(roots, (inner,), at),
            lambda here, _: _emit_element(store, here),
        )


def _is_own(store: Store, axis: Axis) -> bool:
    """Whether different points of an axis are stored to different elements."""
    by_data = [i for i in store.index if isinstance(i, Expr)]
    return axis.symbol in store.index and not any(varies(i, (axis,)) for i in by_data)


@contextmanager
def _places_inside(store: Store, scope: Scope) -> Iterator[Scope]:
    """What is written in the block runs only where every index from data is inside the tensor."""
    known, conditions = dict(scope.known), []
    for place in store.index:
        if isinstance(place, Checked):
            at = scope.having(known)
            known[place], inside = checked_index(place, scalar(place.value, at), at)
            conditions.append(inside)
    with scope.src.block(f"if {' and '.join(conditions) or 'T.bool(True)'}"):
        yield scope.having(known)


def _emit_element(store: Store, scope: Scope) -> None:
    param, value = scope.program.param(store.param), scalar(store.value, scope)
    if store.accumulate:
        table, _ = functions_for(param.type.dtype)
        value = f"{table}.add({load_text(param, store.index, scope)}, {value})"
    scope.src.line(store_line(param, store.index, value, scope))
