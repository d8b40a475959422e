"""Loops that skeletons share: parallel outer axes, and an inner axis in vectors with a scalar tail."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import sympy

from ...ir.types import Dim, product
from ..program import Apply, Axis, Checked, Expr, Guard, Index, IndexValue, Load, Param, Ref, Store, is_guard, postorder
from .expression import Scope, compute_type, index_text, scalar
from .names import is_call
from .source import Source

Body = Callable[[Scope, str], None]  # what is done at a point, in a lane

# below this many elements a parallel region costs more than it saves
SERIAL_ELEMENTS = 4096
TASKS = 32  # that points are dealt out to where a task has something to prepare
FIRST_LANE = "T.int64(0)"


@contextmanager
def parallel_axes(axes: Sequence[Axis], scope: Scope, work: Dim) -> Iterator[Scope]:
    """One loop over all points of the axes, in parallel unless ``work`` (elements in all) is known to be small."""
    if not axes:
        yield scope
        return
    src = scope.src
    kind = "serial" if isinstance(work, int) and work <= SERIAL_ELEMENTS else "parallel"
    point = src.fresh("p")
    with src.block(f"for {point} in T.{kind}({index_text(product(a.size for a in axes), scope)})"):
        yield scope.at(decode(point, axes, scope))


@contextmanager
def parallel_tasks(axes: Sequence[Axis], scope: Scope, work: Dim, prepare: Callable[[Scope], None]) -> Iterator[Scope]:
    """As :func:`parallel_axes`, in few tasks of many points each; ``prepare`` writes what a task does first."""
    src = scope.src
    if not axes or (isinstance(work, int) and work <= SERIAL_ELEMENTS):
        prepare(scope)
        with parallel_axes(axes, scope, work) as at:
            yield at
        return
    total = index_text(product(a.size for a in axes), scope)
    task, first, one = src.fresh("task"), src.fresh("first"), src.fresh("p")
    with src.block(f"for {task} in T.parallel(T.min({total}, T.int64({TASKS})))"):
        tasks = f"T.min({total}, T.int64({TASKS}))"
        prepare(scope)
        src.line(f"{first}: T.let = T.truncdiv({total} * {task}, {tasks})")
        count = f"T.truncdiv({total} * ({task} + T.int64(1)), {tasks}) - {first}"
        with src.block(f"for {one} in T.serial({count})"):
            yield scope.at(decode(f"({first} + {one})", axes, scope))


def decode(point: str, axes: Sequence[Axis], scope: Scope) -> dict[sympy.Symbol, str]:
    """Names for the axes of a point of their product; the divisions are written to the source."""
    src, names, rest = scope.src, {}, point
    for axis in reversed(axes[1:]):
        size = index_text(axis.size, scope)
        # none is negative, so that rounding toward zero will do and costs least
        names[axis.symbol] = _let(src, "i", f"T.truncmod({rest}, {size})")
        rest = _let(src, "q", f"T.truncdiv({rest}, {size})")
    names[axes[0].symbol] = rest
    return names


def _let(src: Source, prefix: str, text: str) -> str:
    name = src.fresh(prefix)
    src.line(f"{name}: T.let = {text}")
    return name


def vector_loop(axis: Axis, widths: Sequence[int], scope: Scope, body: Body) -> None:
    """All points of an axis: in vectors of the first width, what is left in those of the next, the rest one by one.

    What is left stands in the first lanes.
    """
    src, size = scope.src, axis.size
    start, left = FIRST_LANE, index_text(size, scope)
    for width in [w for w in widths if w > 1]:
        chunk, lane = src.fresh("c"), src.fresh("l")
        count = f"T.truncdiv({left}, T.int64({width}))"
        with src.block(f"for {chunk} in T.serial({count})"), src.vector_block(lane, width):
            body(scope.at({axis.symbol: f"({start} + {chunk} * T.int64({width}) + {lane})"}), lane)
        if isinstance(size, int) and size % width == 0:
            return
        start, left = f"{start} + {count} * T.int64({width})", f"T.truncmod({left}, T.int64({width}))"
    rest = src.fresh("j")
    with src.block(f"for {rest} in T.serial({left})"):
        body(scope.at({axis.symbol: f"({start} + {rest})"}), FIRST_LANE)


def serial_loop(axis: Axis, scope: Scope, body: Callable[[Scope], None]) -> None:
    """All points of an axis, one by one."""
    with serial_axes((axis,), scope) as at:
        body(at)


@contextmanager
def serial_axes(axes: Sequence[Axis], scope: Scope) -> Iterator[Scope]:
    """Nested serial loops over axes."""
    if not axes:
        yield scope
        return
    name = scope.src.fresh("j")
    with (
        scope.src.block(f"for {name} in T.serial({index_text(axes[0].size, scope)})"),
        serial_axes(axes[1:], scope.at({axes[0].symbol: name})) as inner,
    ):
        yield inner


# --- lanes ------------------------------------------------------------------------------------------------------------


def lanes_along(axis: Axis, lanes: int, exprs: Iterable[Expr]) -> int:
    """The lanes that a loop over an axis can have: as many as there are, one where they would take different paths."""
    if any(_is_scalar(expr, axis) for expr in postorder(exprs)):
        return 1
    while isinstance(axis.size, int) and lanes > max(axis.size, 1):
        lanes //= 2
    return lanes


def _is_scalar(expr: Expr, axis: Axis) -> bool:
    match expr:
        case Checked():
            return varies(expr, (axis,))
        case Guard():
            return _reads(expr, {axis.symbol})
        case Apply():
            operand = expr.args[0].dtype
            return operand.is_floating_point and is_call(expr.op, compute_type(operand))
        case _:
            return False


def varies(expr: Expr, axes: Sequence[Axis]) -> bool:
    """Whether an expression may have another value at another point of the axes."""
    symbols = {a.symbol for a in axes}
    return any(_reads(e, symbols) for e in postorder([expr]))


def _reads(expr: Expr, symbols: set[sympy.Symbol]) -> bool:
    indices: Sequence[Index] = ()
    if isinstance(expr, Load | Ref):
        indices = expr.index
    elif isinstance(expr, IndexValue | Guard):
        indices = (expr.index,)
    return any(isinstance(i, sympy.Expr) and symbols & i.free_symbols for i in indices)


def runs_along(param: Param, index: Sequence[Index], axis: Axis) -> bool:
    """Whether neighbours along an axis are neighbours in memory."""
    if not index or isinstance(index[-1], Expr) or param.strides[-1] != 1:
        return False
    rest = sympy.expand(index[-1] - axis.symbol)
    others = [i for i in index[:-1] if isinstance(i, sympy.Expr)]
    return axis.symbol not in rest.free_symbols.union(*(i.free_symbols for i in others))


def fastest_axis(param: Param, store: Store) -> Axis | None:
    """The axis along which a store is contiguous, if there is one."""
    return next((axis for axis in store.axes if runs_along(param, store.index, axis)), None)


def _is_known(expr: Expr, scope: Scope) -> bool:
    """Whether every stage that an expression reads has run."""
    return all(e.stage in scope.refs for e in postorder([expr]) if isinstance(e, Ref))


# --- values kept ------------------------------------------------------------------------------------------------------


def hoisted(exprs: Iterable[Expr], inner: Sequence[Axis], scope: Scope) -> Scope:
    """The scope with those indices from data looked up that do not vary along the axes of loops further in."""
    found = dict(scope.known)
    for expr in postorder(exprs, is_guard):
        if isinstance(expr, Checked) and expr not in found and not varies(expr, inner) and _is_known(expr, scope):
            cell = scope.src.cell("at", "int64")
            scope.src.line(f"{cell} = {scalar(expr, scope.having(found))}")
            found[expr] = cell
    return scope.having(found)
