"""Going over the combined axes of rows: once for each stage, then once for each set of stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...ir.types import product
from ..program import Apply, Axis, Combiner, Expr, Program, Stage, Store, is_guard, postorder, store_roots
from .combine import Accumulator, accumulator
from .expression import Scope, bound, index_text, scalars
from .loops import FIRST_LANE, Body, fastest_axis, hoisted, lanes_along, serial_axes, serial_loop, varies, vector_loop
from .map import emit_stores
from .names import COSTLY
from .storage import compute_type

STACK_BYTES = 16 << 10  # a row of more bytes is kept in memory that TVM allocates

Text = Callable[[Scope, str], str]  # how something is spelled at a point, in a lane


@dataclass(frozen=True)
class RowSet:
    """What a rows program combines: the axes that tell rows apart, those that are combined, its passes over them."""

    program: Program
    rows: tuple[Axis, ...]
    combined: tuple[Axis, ...]

    @property
    def stores(self) -> dict[tuple[Axis, ...], list[Store]]:
        """The stores by the axes that they have beside those of the rows."""
        found: dict[tuple[Axis, ...], list[Store]] = {}
        for store in self.program.stores:
            found.setdefault(tuple(a for a in store.axes if a not in self.rows), []).append(store)
        return found

    def passes(self) -> list[list[Expr]]:
        """What each pass evaluates: the stages in order, then each set of stores."""
        stages = [[s.value] for s in self.program.stages]
        return stages + [[x for s in stores for x in store_roots(s)] for stores in self.stores.values()]

    def kept(self) -> dict[Expr, int]:
        """Costly values that several passes need, and the pass that computes them for the others."""
        seen: dict[Expr, list[int]] = {}
        for number, roots in enumerate(self.passes()):
            for expr in postorder(roots, is_guard):
                seen.setdefault(expr, []).append(number)
        worth = {e: at[0] for e, at in seen.items() if len(at) > 1 and self._is_worth_keeping(e)}
        inside = {x for e in worth for x in postorder([e], is_guard) if x is not e}
        return {e: number for e, number in worth.items() if e not in inside}

    def _is_worth_keeping(self, expr: Expr) -> bool:
        return is_costly([expr]) and expr.dtype.is_floating_point and varies(expr, self.combined)

    def kept_scans(self) -> tuple[Stage, ...]:
        """The running sums whose values are needed after they have run to their end."""
        scans = (s for s in self.program.stages if s.combine and s.combine.kind is Combiner.CUMSUM)
        return tuple(s for s in scans if not self.is_stored_at_once(s))

    def is_stored_at_once(self, stage: Stage) -> bool:
        """Whether a running sum comes last, so that everything can be stored as it runs."""
        return stage is self.program.stages[-1] and set(self.stores) == {self.combined}


class Sweep:
    """The passes over one row, or over several rows side by side."""

    def __init__(self, rows: RowSet) -> None:
        self.of = rows
        self.kept = rows.kept()
        self.buffers: dict[Expr | str, str] = {}
        self.stages: dict[str, Text] = {}

    @property
    def keeps_values(self) -> bool:
        """Whether a pass leaves values for later ones."""
        return bool(self.kept or self.of.kept_scans())

    def allocate(self, scope: Scope) -> None:
        """Declare the memory for values that are kept."""
        names: list[tuple[Expr | str, str]] = [(e, compute_type(e.dtype)) for e in self.kept]
        names += [(scan.name, compute_type(scan.dtype)) for scan in self.of.kept_scans()]
        for key, dtype in names:
            self.buffers[key] = self._buffer(dtype, scope)

    def _buffer(self, dtype: str, scope: Scope) -> str:
        count = product((*(a.size for a in self.of.combined), self.side_by_side))
        if isinstance(count, int) and count * 8 <= STACK_BYTES:
            return scope.src.stack_buffer("kept", max(count, 1), dtype)
        name = scope.src.fresh("kept")
        scope.src.line(f'{name} = T.alloc_buffer(({index_text(count, scope)},), "{dtype}")')
        return name

    def run(self, row: Scope) -> None:
        """Write the passes."""
        for number, stage in enumerate(self.of.program.stages):
            assert stage.combine is not None
            if stage.combine.kind is Combiner.CUMSUM:
                self._scan(number, stage, row)
                if self.of.is_stored_at_once(stage):
                    return
            else:
                self._combine(number, stage, row)
        for number, (axes, stores) in enumerate(self.of.stores.items(), len(self.of.program.stages)):
            self._store(number, axes, stores, row)

    # --- passes -------------------------------------------------------------------------------------------------------

    def _combine(self, number: int, stage: Stage, row: Scope) -> None:
        assert stage.combine is not None
        axes, kind = stage.combine.axes, stage.combine.kind
        result = accumulator(row.src, kind, stage.value.dtype, self.width(axes, [stage.value]))
        result.start()

        def body(at: Scope, lane: str) -> None:
            here = self._scope(number, at, lane)
            (value,) = self._values(number, [stage.value], here, lane)
            result.add(lane, bound(value, stage.value.dtype, here), at.axes[axes[-1].symbol])

        self.each(axes, [stage.value], row, body)
        self.stages[stage.name] = self.finished(result)

    def _scan(self, number: int, stage: Stage, row: Scope) -> None:
        """A running sum: stored as it goes where nothing comes after it, kept otherwise."""
        total = accumulator(row.src, Combiner.CUMSUM, stage.value.dtype, self.side_by_side)
        total.start()

        def body(at: Scope, lane: str) -> None:
            here = self._scope(number, at, lane)
            (value,) = self._values(number, [stage.value], here, lane)
            total.add(lane, value, "")
            if self.of.is_stored_at_once(stage):
                emit_stores(self.of.program.stores, here.knowing({stage.name: total.at(lane)}))
            else:
                at.src.line(f"{self._kept_at(stage.name, at, lane)} = {total.at(lane)}")

        self.in_order(row, body)
        self.stages[stage.name] = lambda at, lane: self._kept_at(stage.name, at, lane)

    def _store(self, number: int, axes: tuple[Axis, ...], stores: Sequence[Store], row: Scope) -> None:
        exprs = [x for s in stores for x in store_roots(s)]
        self.each(axes, exprs, row, lambda at, lane: emit_stores(stores, self._scope(number, at, lane)), stores)

    # --- values -------------------------------------------------------------------------------------------------------

    def _scope(self, number: int, at: Scope, lane: str) -> Scope:
        """What is known at a point of a pass: results of stages, and values that earlier passes kept."""
        refs = {name: text(at, lane) for name, text in self.stages.items() if self._is_named(name, at)}
        if not self._is_inside(at):  # at a row's result there is no one place in the row
            return at.knowing(refs)
        return at.knowing(refs).having(
            {e: self._kept_at(e, at, lane) for e, first in self.kept.items() if first < number}
        )

    def _is_named(self, name: str, at: Scope) -> bool:
        return name not in self.buffers or self._is_inside(at)

    def _is_inside(self, at: Scope) -> bool:
        return all(a.symbol in at.axes for a in self.of.combined)

    def _values(self, number: int, exprs: list[Expr], at: Scope, lane: str) -> list[str]:
        """The values of expressions; those that this pass computes for later ones are kept."""
        new = [e for e, first in self.kept.items() if first == number]
        texts = scalars([*exprs, *new], at)
        for expr, text in zip(new, texts[len(exprs) :], strict=True):
            at.src.line(f"{self._kept_at(expr, at, lane)} = {text}")
        return texts[: len(exprs)]

    def _kept_at(self, key: Expr | str, at: Scope, lane: str) -> str:
        place = "T.int64(0)"
        for axis in self.of.combined:
            place = f"({place} * {index_text(axis.size, at)} + {at.axes[axis.symbol]})"
        place = place.replace(f"T.int64(0) * {index_text(self.of.combined[0].size, at)} + ", "", 1)
        return f"{self.buffers[key]}[{place if self.side_by_side == 1 else f'{place} * {self.side_by_side} + {lane}'}]"

    # --- what rows and columns do differently -------------------------------------------------------------------------

    side_by_side = 1  # rows in one sweep

    def width(self, axes: Sequence[Axis], exprs: Sequence[Expr]) -> int:
        """The lanes of a pass over some axes."""
        raise NotImplementedError

    def each(
        self, axes: Sequence[Axis], exprs: Sequence[Expr], row: Scope, body: Body, stores: Sequence[Store] = ()
    ) -> None:
        """Every point of the axes, in any order."""
        raise NotImplementedError

    def in_order(self, row: Scope, body: Body) -> None:
        """Every point of the combined axes, one after another."""
        raise NotImplementedError

    def finished(self, result: Accumulator) -> Text:
        """What the passes after a combination read."""
        raise NotImplementedError


class RowSweep(Sweep):
    """One row, lanes along an axis that is combined: at the end they are combined too."""

    def __init__(self, rows: RowSet, inner: Axis, lanes: int) -> None:
        super().__init__(rows)
        self.inner, self.lanes = inner, lanes

    def width(self, axes: Sequence[Axis], exprs: Sequence[Expr]) -> int:
        """The widest vectors of a pass."""
        return self._widths(self._inner(axes), exprs)[0]

    def _widths(self, inner: Axis, exprs: Sequence[Expr]) -> tuple[int, ...]:
        """Several vectors at once hide the latency of a combination; a costly value hides it too."""
        lanes, several = lanes_along(inner, self.lanes, exprs), wide(inner, self.lanes)
        if lanes == self.lanes and several == lanes and not is_costly(exprs) and _is_long(inner, 4 * lanes):
            return 4 * lanes, lanes
        return (lanes_along(inner, several, exprs),)

    def _inner(self, axes: Sequence[Axis], stores: Sequence[Store] = ()) -> Axis:
        fastest = fastest_axis(self.of.program.param(stores[0].param), stores[0]) if stores else None
        if fastest is not None and fastest in axes:
            return fastest
        return self.inner if self.inner in axes else axes[-1]

    def each(
        self, axes: Sequence[Axis], exprs: Sequence[Expr], row: Scope, body: Body, stores: Sequence[Store] = ()
    ) -> None:
        """Vectors along the inner axis, the others around it."""
        if not axes:
            body(row, FIRST_LANE)
            return
        inner = self._inner(axes, stores)
        widths = (lanes_along(inner, self.lanes, exprs),) if stores else self._widths(inner, exprs)
        with serial_axes([a for a in axes if a != inner], row) as at:
            vector_loop(inner, widths, at, body)

    def in_order(self, row: Scope, body: Body) -> None:
        """One by one."""
        serial_loop(self.of.combined[-1], row, lambda at: body(at, FIRST_LANE))

    def finished(self, result: Accumulator) -> Text:
        """The one result of the row."""
        text = result.reduce()
        return lambda at, lane: text


class ColumnSweep(Sweep):
    """Several rows side by side along ``inner``, from ``base`` on: one in each lane."""

    def __init__(self, rows: RowSet, inner: Axis, base: str, count: int) -> None:
        super().__init__(rows)
        self.inner, self.base, self.side_by_side = inner, base, count

    def width(self, axes: Sequence[Axis], exprs: Sequence[Expr]) -> int:
        """As many lanes as rows."""
        return self.side_by_side

    def each(
        self, axes: Sequence[Axis], exprs: Sequence[Expr], row: Scope, body: Body, stores: Sequence[Store] = ()
    ) -> None:
        """One vector of rows at each point of the axes."""
        with serial_axes(axes, row) as at:
            if self.side_by_side == 1:
                body(at.at({self.inner.symbol: self.base}), FIRST_LANE)
                return
            at = hoisted(exprs, (self.inner,), at)
            lane = row.src.fresh("l")
            with row.src.vector_block(lane, self.side_by_side):
                body(at.at({self.inner.symbol: f"({self.base} + {lane})"}), lane)

    def in_order(self, row: Scope, body: Body) -> None:
        """As ever: lanes are rows."""
        self.each(self.of.combined, (), row, body)

    def finished(self, result: Accumulator) -> Text:
        """Each row's own result."""
        return lambda at, lane: result.at(lane)


def is_costly(exprs: Sequence[Expr]) -> bool:
    """Whether expressions take more time than storing their values and loading them again."""
    return any(isinstance(e, Apply) and e.op in COSTLY for e in postorder(exprs, is_guard))


def _is_long(axis: Axis, count: int) -> bool:
    return not isinstance(axis.size, int) or axis.size >= count


def wide(axis: Axis, lanes: int) -> int:
    """Four or two vectors at once where an axis is known to fill them, else one."""
    return next((n * lanes for n in (4, 2) if isinstance(axis.size, int) and axis.size % (n * lanes) == 0), lanes)
