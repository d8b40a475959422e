"""The map skeleton: one loop nest for each set of stores with the same axes; nothing is combined."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import sympy

from ...ir.types import product
from ..program import Axis, Program, Store
from ..schedule import MapSchedule
from .expression import Scope, index_text, scalars, store_line
from .loops import lanes_along, parallel_axes, vector_loop
from .source import Source

CHUNK = 2048  # elements that one parallel step of a flat loop handles


def emit_map(program: Program, schedule: MapSchedule, src: Source) -> None:
    """Write the loops of a map program."""
    scope = Scope(program, src)
    for axes, stores in groupby(program.stores, key=lambda s: s.axes):
        _emit_nest(axes, list(stores), schedule.vector, scope)


def _emit_nest(axes: tuple[Axis, ...], stores: list[Store], lanes: int, scope: Scope) -> None:
    work = product(a.size for a in axes)
    inner = fastest_axis(stores[0])
    if inner is not None:
        lanes = lanes_along(inner, lanes, [s.value for s in stores])
    if inner is None:
        with parallel_axes(axes, scope, work) as point:
            emit_stores(stores, point)
    elif len(axes) == 1:
        _emit_flat(inner, stores, lanes, scope)
    else:
        with parallel_axes([a for a in axes if a != inner], scope, work) as point:
            vector_loop(inner, lanes, point, lambda at: emit_stores(stores, at))


def _emit_flat(axis: Axis, stores: list[Store], lanes: int, scope: Scope) -> None:
    """A single axis, cut into chunks so that there is something to run in parallel."""
    size = axis.size
    if isinstance(size, int) and size <= CHUNK:
        vector_loop(axis, lanes, scope, lambda at: emit_stores(stores, at))
        return
    src = scope.src
    text = index_text(size, scope)
    chunk, start, count = src.fresh("p"), src.fresh("start"), src.fresh("count")
    with src.block(f"for {chunk} in T.parallel(T.floordiv({text} + T.int64({CHUNK - 1}), T.int64({CHUNK})))"):
        src.line(f"{start}: T.let = {chunk} * T.int64({CHUNK})")
        src.line(f"{count}: T.let = T.min(T.int64({CHUNK}), {text} - {start})")
        part = Axis(axis.name, sympy.Symbol(count, integer=True, nonnegative=True))

        def body(at: Scope) -> None:
            emit_stores(stores, at.at({axis.symbol: f"({start} + {at.axes[axis.symbol]})"}))

        vector_loop(part, lanes, scope, body)


def emit_stores(stores: Sequence[Store], scope: Scope) -> None:
    """Store the values at one point; what they share is computed once."""
    for store, value in zip(stores, scalars([s.value for s in stores], scope), strict=True):
        scope.src.line(store_line(scope.program.param(store.param), store.index, value, scope))


def fastest_axis(store: Store) -> Axis | None:
    """The axis along which a store is contiguous, if there is one."""
    for position, axis in enumerate(store.axes):
        if store.index and store.index[-1] == axis.symbol:
            return store.axes[position]
    return None
