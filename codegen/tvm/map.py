"""The map skeleton: one loop nest for each set of stores with the same axes; nothing is combined."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import sympy

from ...ir.types import product
from ..program import Axis, Program, Store, store_roots
from ..schedule import MapSchedule
from .expression import Scope, index_text, scalars, store_line
from .loops import fastest_axis, hoisted, lanes_along, parallel_axes, serial_axes, vector_loop
from .source import Source

CHUNK = 2048  # elements that one parallel step of a flat loop handles
ENOUGH = 8  # parallel steps, where their number is known


def emit_map(program: Program, schedule: MapSchedule, src: Source) -> None:
    """Write the loops of a map program."""
    scope = Scope(program, src)
    for axes, stores in groupby(program.stores, key=lambda s: s.axes):
        emit_nest(axes, list(stores), schedule.vector, scope)


def emit_nest(axes: tuple[Axis, ...], stores: Sequence[Store], lanes: int, scope: Scope) -> None:
    """The loops over some axes, with stores at each point."""
    work = product(a.size for a in axes)
    exprs = [x for s in stores for x in store_roots(s)]
    inner = fastest_axis(scope.program.param(stores[0].param), stores[0])
    if inner is None:
        with parallel_axes(axes, scope, work) as point:
            emit_stores(stores, point)
        return
    width = lanes_along(inner, lanes, exprs)
    if len(axes) == 1:
        _emit_flat(inner, stores, width, scope)
        return
    parallel, serial = _split([a for a in axes if a != inner])
    with parallel_axes(parallel, scope, work) as point, serial_axes(serial, point) as row:
        at = hoisted(exprs, (inner,), row)
        vector_loop(inner, (width,), at, lambda here, _: emit_stores(stores, here))


def _split(axes: list[Axis]) -> tuple[list[Axis], list[Axis]]:
    """Axes for the parallel loop, and those inside it: finding a point of few axes takes fewer divisions."""
    for count in range(1, len(axes)):
        known = product(a.size for a in axes[:count] if isinstance(a.size, int))
        symbols = {s for a in axes[:count] if isinstance(a.size, sympy.Expr) for s in a.size.free_symbols}
        if (isinstance(known, int) and known >= ENOUGH) or len(symbols) > 1:
            return axes[:count], axes[count:]
    return axes, []


def _emit_flat(axis: Axis, stores: Sequence[Store], lanes: int, scope: Scope) -> None:
    """A single axis, cut into chunks so that there is something to run in parallel."""
    scope = hoisted([x for s in stores for x in store_roots(s)], (axis,), scope)
    size = axis.size
    if isinstance(size, int) and size <= CHUNK:
        vector_loop(axis, (lanes,), scope, lambda at, _: emit_stores(stores, at))
        return
    src = scope.src
    text = index_text(size, scope)
    chunk, start, count = src.fresh("p"), src.fresh("start"), src.fresh("count")
    with src.block(f"for {chunk} in T.parallel(T.truncdiv({text} + T.int64({CHUNK - 1}), T.int64({CHUNK})))"):
        src.line(f"{start}: T.let = {chunk} * T.int64({CHUNK})")
        src.line(f"{count}: T.let = T.min(T.int64({CHUNK}), {text} - {start})")
        part = Axis(axis.name, sympy.Symbol(count, integer=True, nonnegative=True))
        vector_loop(
            part,
            (lanes,),
            scope,
            lambda at, _: emit_stores(stores, at.at({axis.symbol: f"({start} + {at.axes[axis.symbol]})"})),
        )


def emit_stores(stores: Sequence[Store], scope: Scope) -> None:
    """Store the values at one point; what they share is computed once."""
    for store, value in zip(stores, scalars([s.value for s in stores], scope), strict=True):
        scope.src.line(store_line(scope.program.param(store.param), store.index, value, scope))
