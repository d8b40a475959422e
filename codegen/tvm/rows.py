"""The rows skeleton: rows in parallel; within a row each stage combines in vectors, then the results are stored.

Where the combined axis is the contiguous one, lanes run along it and are combined at the end. Where an axis of the rows
is contiguous instead (a mean over the sequence of [B, S, D]), lanes run along that axis and never meet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import sympy

from ...ir.errors import UnsupportedError
from ...ir.types import Dim, product
from ..program import Axis, Combiner, Expr, Load, Program, Stage, Store, postorder
from ..schedule import RowsSchedule
from .expression import Scope, compute_type, index_text, scalar
from .loops import declare_local, lanes_along, parallel_axes, serial_axes, serial_loop, vector_loop
from .map import emit_stores, fastest_axis
from .source import Source

_START = {
    Combiner.SUM: "{zero}",
    Combiner.PROD: "{one}",
    Combiner.MAX: "{low}",
    Combiner.MIN: "{high}",
    Combiner.ANY: "T.bool(False)",
    Combiner.ALL: "T.bool(True)",
}
_STEP = {
    Combiner.SUM: "{0} + {1}",
    Combiner.PROD: "{0} * {1}",
    Combiner.MAX: "helpers.maximum({0}, {1})",
    Combiner.MIN: "helpers.minimum({0}, {1})",
    Combiner.ANY: "T.Or({0}, {1})",
    Combiner.ALL: "T.And({0}, {1})",
}


def emit_rows(program: Program, schedule: RowsSchedule, src: Source) -> None:
    """Write the loops of a rows program.

    Raises:
        UnsupportedError: its stages do not share their rows.
    """
    rows = _rows(program)
    lane_axis = _contiguous_row_axis(program, rows)
    scope = Scope(program, src)
    work = product(a.size for a in rows) * product(a.size for s in program.stages for a in _reduced(s))
    if lane_axis is None:
        with parallel_axes(rows, scope, work) as row:
            _emit_row(program, schedule.vector, row)
        return
    _emit_side_by_side(program, rows, lane_axis, schedule.vector, scope, work)


def _reduced(stage: Stage) -> tuple[Axis, ...]:
    return stage.combine.axes if stage.combine else ()


def _rows(program: Program) -> tuple[Axis, ...]:
    """The axes that every stage keeps."""
    first = program.stages[0]
    rows = tuple(a for a in first.axes if a not in _reduced(first))
    for stage in program.stages:
        if tuple(a for a in stage.axes if a not in _reduced(stage)) != rows:
            raise UnsupportedError("TVM: stages over different rows in one kernel")
    return rows


def _contiguous_row_axis(program: Program, rows: tuple[Axis, ...]) -> Axis | None:
    """The row axis along which most loads are contiguous, where no combined axis is."""
    votes: Counter[sympy.Symbol] = Counter()
    for stage in program.stages:
        for expr in postorder([stage.value]):
            if isinstance(expr, Load) and expr.index and isinstance(expr.index[-1], sympy.Symbol):
                votes[expr.index[-1]] += 1
    if not votes:
        return None
    winner = votes.most_common(1)[0][0]
    scanned = any(s.combine and s.combine.kind is Combiner.CUMSUM for s in program.stages)
    return None if scanned else next((a for a in rows if a.symbol == winner), None)


# --- lanes along the combined axis ------------------------------------------------------------------------------------


def _emit_row(program: Program, lanes: int, row: Scope) -> None:
    scope = row
    for stage in program.stages:
        assert stage.combine is not None
        if stage.combine.kind is Combiner.CUMSUM:
            _emit_scan(program, stage, scope)
            return
        scope = scope.knowing({stage.name: _emit_stage(stage, lanes, scope)})
    _emit_row_stores(program.stores, _rows(program), lanes, scope)


def _emit_row_stores(stores: Sequence[Store], rows: tuple[Axis, ...], lanes: int, scope: Scope) -> None:
    by_axes: dict[tuple[Axis, ...], list[Store]] = {}
    for store in stores:
        by_axes.setdefault(tuple(a for a in store.axes if a not in rows), []).append(store)
    for inner, group in by_axes.items():
        last = fastest_axis(group[0])
        if last not in inner:
            last = inner[-1] if inner else None
        with serial_axes([a for a in inner if a != last], scope) as at:
            if last is None:
                emit_stores(group, at)
            else:
                width = lanes_along(last, lanes, [s.value for s in group])
                vector_loop(last, width, at, lambda point, group=group: emit_stores(group, point))  # type: ignore[misc]


def _emit_stage(stage: Stage, lanes: int, scope: Scope) -> str:
    """Combine one stage over a row; returns the text of its value."""
    assert stage.combine is not None
    kind, axes = stage.combine.kind, stage.combine.axes
    if kind in (Combiner.ARGMAX, Combiner.ARGMIN):
        return _emit_arg(stage, scope)
    if kind not in _STEP:
        raise UnsupportedError(f"TVM: {kind.value} in a row")
    width = lanes_along(axes[-1], _accumulators(axes[-1].size, lanes), [stage.value])
    dtype = compute_type(stage.value.dtype)
    acc = _Accumulator(scope, kind, width, dtype)
    acc.start()
    with serial_axes(axes[:-1], scope) as at:
        vector_loop(axes[-1], width, at, acc.step(stage.value, axes[-1], width))
    return acc.finish(f"{stage.name}_")


def _accumulators(size: Dim, lanes: int) -> int:
    """Several vectors at once hide the latency of the combination, where the row is known to fill them."""
    if isinstance(size, int):
        for width in (4 * lanes, 2 * lanes, lanes):
            if size % width == 0:
                return width
    return lanes


class _Accumulator:
    """A vector of partial results."""

    def __init__(self, scope: Scope, kind: Combiner, width: int, dtype: str) -> None:
        self.scope, self.kind, self.width, self.dtype = scope, kind, width, dtype
        self.name = declare_local(scope.src, "acc", width, dtype)

    def start(self) -> None:
        """Set every lane to the neutral element."""
        lane = self.scope.src.fresh("l")
        kind = "vectorized" if self.width > 1 else "serial"
        with self.scope.src.block(f"for {lane} in T.{kind}(T.int64({self.width}))"):
            self.scope.src.line(f"{self.name}[{lane}] = {neutral(self.kind, self.dtype)}")

    def step(self, value: Expr, axis: Axis, width: int) -> Callable[[Scope], None]:
        """The body that combines one more value into its lane; tails all go to lane 0."""

        def body(at: Scope) -> None:
            position = at.axes[axis.symbol]
            in_vector = " + l" in position
            lane = position.rsplit(" + ", 1)[1].rstrip(")") if in_vector else "T.int64(0)"
            text = _STEP[self.kind].format(f"{self.name}[{lane}]", scalar(value, at))
            at.src.line(f"{self.name}[{lane}] = {text}")

        return body

    def finish(self, prefix: str) -> str:
        """Combine the lanes by halves; returns the name of the result."""
        src, half = self.scope.src, self.width
        while half % 2 == 0 and half > 1:
            half //= 2
            lane = src.fresh("l")
            kind = "vectorized" if half > 1 else "serial"
            with src.block(f"for {lane} in T.{kind}(T.int64({half}))"):
                text = _STEP[self.kind].format(f"{self.name}[{lane}]", f"{self.name}[{lane} + T.int64({half})]")
                src.line(f"{self.name}[{lane}] = {text}")
        # kept in memory: a name bound to a load may be read after the storage has another use
        result = declare_local(src, prefix, 1, self.dtype)
        src.line(f"{result}[0] = {self.name}[0]")
        return f"{result}[0]"


def neutral(kind: Combiner, dtype: str) -> str:
    """The neutral element of a combination, as TIR text."""
    is_float = dtype.startswith("float")
    return _START[kind].format(
        zero=f"T.{dtype}(0)",
        one=f"T.{dtype}(1)",
        low=f'T.{dtype}("-inf")' if is_float else f'T.min_value("{dtype}")',
        high=f'T.{dtype}("inf")' if is_float else f'T.max_value("{dtype}")',
    )


def _emit_arg(stage: Stage, scope: Scope) -> str:
    """The position of the first largest (smallest) value; NaN counts as largest and as smallest."""
    assert stage.combine is not None
    (axis,) = stage.combine.axes
    src, dtype = scope.src, compute_type(stage.value.dtype)
    best, where = declare_local(src, "best", 1, dtype), declare_local(src, "where", 1, "int64")
    src.line(f"{where}[0] = T.int64(-1)")
    src.line(f"{best}[0] = {neutral(Combiner.SUM, dtype)}")
    better = "more" if stage.combine.kind is Combiner.ARGMAX else "less"

    def body(at: Scope) -> None:
        value = src.fresh("v")
        src.line(f"{value}: T.let = {scalar(stage.value, at)}")
        with src.block(f"if T.Or({where}[0] < T.int64(0), helpers.{better}({value}, {best}[0]))"):
            src.line(f"{best}[0] = {value}")
            src.line(f"{where}[0] = {at.axes[axis.symbol]}")

    serial_loop(axis, scope, body)
    return f"{where}[0]"


def _emit_scan(program: Program, stage: Stage, scope: Scope) -> None:
    """A running sum; everything after it is stored as it goes."""
    assert stage.combine is not None
    (axis,) = stage.combine.axes
    if stage is not program.stages[-1] or any(axis not in s.axes for s in program.stores):
        raise UnsupportedError("TVM: a running sum that is read again along its axis")
    dtype = compute_type(stage.value.dtype)
    total = declare_local(scope.src, "total", 1, dtype)
    scope.src.line(f"{total}[0] = {neutral(Combiner.SUM, dtype)}")

    def body(at: Scope) -> None:
        at.src.line(f"{total}[0] = {total}[0] + {scalar(stage.value, at)}")
        emit_stores(program.stores, at.knowing({stage.name: f"{total}[0]"}))

    serial_loop(axis, scope, body)


# --- lanes along an axis of the rows ----------------------------------------------------------------------------------


def _emit_side_by_side(
    program: Program, rows: tuple[Axis, ...], lane_axis: Axis, lanes: int, scope: Scope, work: Dim
) -> None:
    outer = [a for a in rows if a != lane_axis]
    size = lane_axis.size
    width = lanes if isinstance(size, int) and size % lanes == 0 else 1
    blocks = Axis("block", size // lanes) if width > 1 else Axis("block", size)
    with parallel_axes([*outer, blocks], scope, work) as point:
        base = point.axes[blocks.symbol]
        src, accumulators = scope.src, {}
        for stage in program.stages:
            assert stage.combine is not None
            if stage.combine.kind not in _STEP:
                raise UnsupportedError(f"TVM: {stage.combine.kind.value} across rows")
            acc = _Accumulator(point, stage.combine.kind, width, compute_type(stage.value.dtype))
            acc.start()
            with serial_axes(stage.combine.axes, point) as at, _lane_loop(src, width) as lane:
                here = at.at({lane_axis.symbol: f"({base} * T.int64({width}) + {lane})"})
                here = here.knowing({name: f"{a}[{lane}]" for name, a in accumulators.items()})
                text = _STEP[acc.kind].format(f"{acc.name}[{lane}]", scalar(stage.value, here))
                src.line(f"{acc.name}[{lane}] = {text}")
            accumulators[stage.name] = acc.name
        for store in program.stores:
            inner = [a for a in store.axes if a not in rows]
            with serial_axes(inner, point) as at, _lane_loop(src, width) as lane:
                here = at.at({lane_axis.symbol: f"({base} * T.int64({width}) + {lane})"})
                emit_stores([store], here.knowing({name: f"{a}[{lane}]" for name, a in accumulators.items()}))


def _lane_loop(src: Source, width: int) -> _LaneLoop:
    return _LaneLoop(src, width)


class _LaneLoop:
    """``with`` block of one vectorised loop; gives the lane's name."""

    def __init__(self, src: Source, width: int) -> None:
        self.name = src.fresh("l")
        self.block = (
            src.vector_block(self.name, width) if width > 1 else src.block(f"for {self.name} in T.serial(T.int64(1))")
        )

    def __enter__(self) -> str:
        self.block.__enter__()
        return self.name

    def __exit__(self, *exc: object) -> None:
        self.block.__exit__(None, None, None)
