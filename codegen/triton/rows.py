"""The rows skeleton: some rows in each program, their elements at once where they fit, else in a loop for each pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from ...ir.errors import UnsupportedError
from ...ir.types import Dim, product
from ..gpu import GpuRowsSchedule
from ..program import Axis, Combiner, Program, Ref, Stage, Store, postorder, program_roots, stage_roots, store_roots
from ..prologue import HELD_ROW
from .combine import PLACES, Accumulator, combined, masked, neutral, place_of
from .expression import value_of
from .file import FileWriter, ceil_div, program_id
from .indexing import decode, dim_text
from .map import emit_stores
from .scope import Dims, Scope, Value, counted
from .storage import compute_type

ROWS: Dims = frozenset({0})
ALL: Dims = frozenset({0, 1})


def emit_rows(file: FileWriter, schedule: GpuRowsSchedule) -> None:
    """Write the function of a rows program.

    Raises:
        UnsupportedError: its stages do not share their rows.
    """
    emit_row_function(file, "", file.program, schedule, rows_of(file.program))


def emit_row_function(
    file: FileWriter,
    suffix: str,
    program: Program,
    schedule: GpuRowsSchedule,
    rows: tuple[tuple[Axis, ...], tuple[Axis, ...]],
) -> None:
    """Write a function that computes and stores the rows of ``program``, told by their axes and those of elements."""
    count = product(a.size for a in rows[0])
    programs, written = ceil_div(count, schedule.rows), [s.param for s in program.stores]
    with file.function(suffix, program, program_roots(program), written, programs, warps=schedule.warps) as scope:
        writer = row_writer(program, schedule, rows, scope)
        writer.finish(writer.statistics())


def row_writer(
    program: Program,
    schedule: GpuRowsSchedule,
    rows: tuple[tuple[Axis, ...], tuple[Axis, ...]],
    scope: Scope,
    alone: bool = False,
) -> Rows:
    """What writes the rows of a program; with ``alone``, in one block, which every program of the launch has."""
    return (_AtOnce if schedule.at_once else _Passes)(program, schedule, *rows, scope, alone)


def rows_of(program: Program) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
    """The axes that tell the rows of a program apart, and those of their elements."""
    found = {_axes(stage) for stage in program.stages}
    if len(found) > 1:
        raise UnsupportedError("Triton: stages over different rows in one kernel")
    return found.pop()


def _axes(stage: Stage) -> tuple[tuple[Axis, ...], tuple[Axis, ...]]:
    combined_axes = stage.combine.axes if stage.combine else ()
    return tuple(a for a in stage.axes if a not in combined_axes), combined_axes


class Rows(ABC):
    """A block of [rows, elements], in either way."""

    def __init__(
        self,
        program: Program,
        schedule: GpuRowsSchedule,
        rows: tuple[Axis, ...],
        elements: tuple[Axis, ...],
        scope: Scope,
        alone: bool,
    ) -> None:
        self.program, self.schedule, self.src, self.alone = program, schedule, scope.src, alone
        self.rows, self.elements, self.outer = rows, elements, scope
        self.count: Dim = product(a.size for a in elements)
        self.row_stores = [s for s in program.stores if not self._is_whole(s)]
        self.stores = [s for s in program.stores if self._is_whole(s)]

    @abstractmethod
    def statistics(self) -> Scope:
        """Write the stages; where they are known."""

    @abstractmethod
    def finish(self, scope: Scope) -> None:
        """Write the stores, where the stages are known."""

    def _is_whole(self, store: Store) -> bool:
        """Whether a store is of every element of the rows."""
        return any(a in self.elements for a in store.axes)

    def begin(self) -> Scope:
        """The scope of the program's rows; no elements yet."""
        src, s = self.src, self.schedule
        rows, columns = src.constant("ROWS", s.rows), src.constant("COLUMNS", s.columns)
        total = product(a.size for a in self.rows)
        name = "row" if len(self.rows) != 1 else "i"
        line = counted(rows, 2, 0, self.outer.bits)
        at = src.let(name, line if self.alone else f"{program_id(self.outer)} * {rows} + {line}")
        exact = s.rows == 1 or (isinstance(total, int) and total % s.rows == 0)
        mask = None if exact else src.let("in_rows", f"{at} < {dim_text(total, self.outer)}")
        block = self.outer.block((rows, columns), (mask, None)).at({HELD_ROW: Value(at, ROWS)})
        return block.at(decode(Value(at, ROWS), self.rows, block))

    def elements_at(self, start: str, scope: Scope) -> Scope:
        """The scope of a block of elements."""
        src = self.src
        columns = scope.shape[1]
        line = counted(columns, 2, 1, scope.bits)
        at = src.let("column" if len(self.elements) > 1 else "j", f"{start} + {line}" if start else line)
        exact = isinstance(self.count, int) and self.count % self.schedule.columns == 0
        mask = None if exact else src.let("in_columns", f"{at} < {dim_text(self.count, scope)}")
        inner = Scope(**{**vars(scope), "masks": (scope.masks[0], mask)})
        self.position = f"{at}.to(tl.int64)"
        return inner.at(decode(Value(at, frozenset({1})), self.elements, inner))


class _AtOnce(Rows):
    """Every element of the rows is in registers."""

    def statistics(self) -> Scope:
        """See :class:`Rows`."""
        scope = self.elements_at("", self.begin())
        for stage in self.program.stages:
            scope = scope.knowing({stage.name: self._stage(stage, scope)})
        return scope

    def finish(self, scope: Scope) -> None:
        """See :class:`Rows`."""
        emit_stores(self.row_stores, scope)
        emit_stores(self.stores, scope)

    def _stage(self, stage: Stage, scope: Scope) -> Value:
        value, src = value_of(stage.value, scope), self.src
        if stage.combine is None:
            return value
        kind, dtype = stage.combine.kind, stage.value.dtype
        if kind in PLACES:
            text = src.let("v", scope.widened(value, ALL).typed)
            if scope.masks[1] is None:
                return place_of(src, kind, text, scope.widened(Value(self.position, frozenset({1})), ALL).text, 1, ROWS)
            text = src.let("v", masked(Value(text, ALL), kind, dtype, scope).text)
            position = f"tl.where({scope.masks[1]}, {self.position}, -1)"
            whole = scope.widened(Value(position, frozenset({1})), ALL).text
            return place_of(src, kind, text, whole, 1, ROWS)
        block = masked(value, kind, dtype, scope).typed
        if kind is Combiner.CUMSUM:
            return Value(src.let(stage.name, f"tl.cumsum({block}, axis=1)"), ALL)
        return Value(src.let(stage.name, combined(kind, block, dtype, 1)), ROWS)


class _Passes(Rows):
    """A loop over the elements for each set of stages that do not need one another, and one for the stores."""

    def statistics(self) -> Scope:
        """See :class:`Rows`."""
        scope = self.begin()
        for stages in self._passes():
            scope = self._combine(stages, scope)
        return scope

    def finish(self, scope: Scope) -> None:
        """See :class:`Rows`."""
        emit_stores(self.row_stores, scope)
        if self.stores:
            with self._loop(scope, self._scans([x for s in self.stores for x in store_roots(s)])) as (here, _):
                emit_stores(self.stores, here)

    def _passes(self) -> list[list[Stage]]:
        """Stages in order, those together that need no result of one another."""
        found: list[list[Stage]] = []
        for stage in self.program.stages:
            if _is_scan(stage):
                continue
            needs = self._needs(stage_roots(stage))
            if found and not needs & {s.name for s in found[-1]}:
                found[-1].append(stage)
            else:
                found.append([stage])
        return found

    def _needs(self, roots: Sequence[object]) -> set[str]:
        """The names of the stages that expressions need, directly or not."""
        found: set[str] = set()
        names = [e.stage for e in postorder(roots) if isinstance(e, Ref)]  # type: ignore[arg-type]
        while names:
            name = names.pop()
            if name not in found:
                found.add(name)
                names += [e.stage for e in postorder(stage_roots(self.program.stage(name))) if isinstance(e, Ref)]
        return found

    def _scans(self, roots: Sequence[object]) -> list[Stage]:
        """The running sums that expressions need, which run along in the same loop."""
        needed, found = self._needs(roots), []
        for stage in self.program.stages:
            if _is_scan(stage) and stage.name in needed:
                found.append(stage)
        return found

    def _combine(self, stages: list[Stage], scope: Scope) -> Scope:
        results = [Accumulator(self.src, s.combine.kind, s.value.dtype, scope) for s in stages if s.combine is not None]
        with self._loop(scope, self._scans([x for s in stages for x in stage_roots(s)])) as (here, position):
            for stage, result in zip(stages, results, strict=True):
                result.add(value_of(stage.value, here), position, here)
        return scope.knowing({s.name: r.result(ROWS) for s, r in zip(stages, results, strict=True)})

    def _loop(self, scope: Scope, scans: list[Stage]) -> _Loop:
        return _Loop(self, scope, scans)


def _is_scan(stage: Stage) -> bool:
    return stage.combine is not None and stage.combine.kind is Combiner.CUMSUM


class _Loop:
    """A loop over the elements of the rows, with running sums."""

    def __init__(self, rows: _Passes, scope: Scope, scans: list[Stage]) -> None:
        self.rows, self.scope, self.scans, self.src = rows, scope, scans, rows.src
        self.carries: list[str] = []

    def __enter__(self) -> tuple[Scope, str]:
        src, scope = self.src, self.scope
        for scan in self.scans:
            shape, wide = scope.extents(ROWS), compute_type(scan.value.dtype)
            self.carries.append(
                src.let("carry", f"tl.full({shape}, {neutral(Combiner.SUM, scan.value.dtype)}, {wide})")
            )
        start = src.fresh("start")
        size = dim_text(self.rows.count, scope)
        self._block = src.block(f"for {start} in range(0, {size}, {scope.shape[1]})")
        self._block.__enter__()
        here = self.rows.elements_at(start, scope.inner())
        for scan, carry in zip(self.scans, self.carries, strict=True):
            value = src.let("v", masked(value_of(scan.value, here), Combiner.SUM, scan.value.dtype, here).typed)
            running = src.let(scan.name, f"{carry} + tl.cumsum({value}, axis=1)")
            src.line(f"{carry} = {carry} + {combined(Combiner.SUM, value, scan.value.dtype, 1)}")
            here = here.knowing({scan.name: Value(running, ALL)})
        return here, self.rows.position

    def __exit__(self, *error: object) -> None:
        self._block.__exit__(None, None, None)
