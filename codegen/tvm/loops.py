"""Loops that skeletons share: parallel outer axes, and an inner axis in vectors with a scalar tail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import sympy

from ...ir.types import Dim, product
from ..program import Apply, Axis, Checked, Expr, Guard, Index, IndexValue, Load, Ref, postorder
from .expression import Scope, compute_type, index_text
from .floats import is_call
from .source import Source

Body = Callable[[Scope], None]

# below this many elements a parallel region costs more than it saves
SERIAL_ELEMENTS = 4096


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


def decode(point: str, axes: Sequence[Axis], scope: Scope) -> dict[sympy.Symbol, str]:
    """Names for the axes of a point of their product; the divisions are written to the source."""
    src, names, rest = scope.src, {}, point
    for axis in reversed(axes[1:]):
        name, size = src.fresh("i"), index_text(axis.size, scope)
        src.line(f"{name}: T.let = T.floormod({rest}, {size})")
        names[axis.symbol] = name
        quotient = src.fresh("q")
        src.line(f"{quotient}: T.let = T.floordiv({rest}, {size})")
        rest = quotient
    names[axes[0].symbol] = rest
    return names


def vector_loop(axis: Axis, lanes: int, scope: Scope, body: Body) -> None:
    """All points of an axis: full vectors, then what is left one by one."""
    size = axis.size
    if lanes == 1 or (isinstance(size, int) and size < lanes):
        serial_loop(axis, scope, body)
        return
    src = scope.src
    text = index_text(size, scope)
    chunk, lane = src.fresh("c"), src.fresh("l")
    with (
        src.block(f"for {chunk} in T.serial(T.floordiv({text}, T.int64({lanes})))"),
        src.vector_block(lane, lanes),
    ):
        body(scope.at({axis.symbol: f"({chunk} * T.int64({lanes}) + {lane})"}))
    if isinstance(size, int) and size % lanes == 0:
        return
    rest = src.fresh("j")
    with src.block(f"for {rest} in T.serial(T.floormod({text}, T.int64({lanes})))"):
        base = f"T.floordiv({text}, T.int64({lanes})) * T.int64({lanes})"
        body(scope.at({axis.symbol: f"({base} + {rest})"}))


def lanes_along(axis: Axis, lanes: int, exprs: Sequence[Expr]) -> int:
    """The lanes that a loop over an axis can have: one where lanes would take different paths, or call libm."""
    return 1 if any(_is_scalar(expr, axis) for expr in postorder(exprs)) else lanes


def _is_scalar(expr: Expr, axis: Axis) -> bool:
    match expr:
        case Checked():
            return any(_varies(x, axis) for x in postorder([expr]))
        case Guard():
            return _varies(expr, axis)
        case Apply():
            operand = expr.args[0].dtype
            return operand.is_floating_point and is_call(expr.op, compute_type(operand))
        case _:
            return False


def _varies(expr: Expr, axis: Axis) -> bool:
    indices: Sequence[Index] = ()
    if isinstance(expr, Load | Ref):
        indices = expr.index
    elif isinstance(expr, IndexValue | Guard):
        indices = (expr.index,)
    return any(isinstance(i, sympy.Expr) and axis.symbol in i.free_symbols for i in indices)


def serial_loop(axis: Axis, scope: Scope, body: Body) -> None:
    """All points of an axis, one by one."""
    name = scope.src.fresh("j")
    with scope.src.block(f"for {name} in T.serial({index_text(axis.size, scope)})"):
        body(scope.at({axis.symbol: name}))


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


def declare_local(src: Source, prefix: str, size: int, dtype: str) -> str:
    """A small buffer in registers or on the stack; returns its name."""
    return src.stack_buffer(prefix, size, dtype)
