"""Attention of a few queries: one in each program, as sums of products; keys in parts that programs of their own take.

Of each part there is the largest score, the sum of weights and the weighted sum of values; a second function puts the
parts together, in a fixed order.
"""

from __future__ import annotations

from dataclasses import replace

from ...ir.types import TensorType, canonical_dim, contiguous_strides
from ..attention import AttentionProblem
from ..gpu import GpuAttentionSchedule
from ..gpu_schedule import power_of_two
from ..program import Param, Role, program_roots, stage_roots, store_roots
from .attention_blocks import Attention
from .expression import value_of
from .file import FileWriter, program_id
from .indexing import decode
from .scope import Scope, Value, counted, lanes
from .storage import compute_dtype

PARTS, WEIGHTS = "parts", "weights"  # the scratch memory: weighted sums, and [largest score, sum of weights]
DOWN, ACROSS = frozenset({0}), frozenset({1})


def emit_decode(file: FileWriter, problem: AttentionProblem, schedule: GpuAttentionSchedule) -> None:
    """Write the functions for a few queries."""
    program = file.program
    written = [s.param for s in program.stores]
    points = canonical_dim(problem.heads * problem.queries)
    if schedule.splits == 1:
        with file.function("", program, program_roots(program), written, points, warps=schedule.warps) as scope:
            Decode(problem, schedule, scope).emit(None)
        return
    parts = _scratch(problem, schedule)
    for param in parts:
        file.lend(param)
    lent = replace(program, params=(*program.params, *parts))
    roots = [x for s in program.stages for x in stage_roots(s)]
    names = [p.name for p in parts]
    programs = canonical_dim(points * schedule.splits)
    with file.function("parts", lent, roots, names, programs, warps=schedule.warps) as scope:
        Decode(problem, schedule, scope).emit(parts)
    roots = [x for s in program.stores for x in store_roots(s)]
    with file.function("whole", lent, roots, [*names, *written], points, warps=1) as scope:
        Decode(problem, schedule, scope).put_together()


def _scratch(problem: AttentionProblem, schedule: GpuAttentionSchedule) -> tuple[Param, Param]:
    points = canonical_dim(problem.heads * problem.queries)
    dtype = compute_dtype(problem.score.dtype)

    def lent(name: str, size: int) -> Param:
        shape = (points, schedule.splits, size)
        return Param(name, TensorType(shape, dtype), contiguous_strides(shape), Role.OUT)

    return lent(PARTS, problem.width), lent(WEIGHTS, 2)


class Decode(Attention):
    """One query in each program: keys down, the head across."""

    def _point(self, program: str, scope: Scope) -> Scope:
        """The scope of a program's query and head."""
        p = self.p
        if p.query is None:
            return scope.at(decode(Value(program), p.outer, scope))
        axes = (*p.outer, p.query)
        return scope.at(decode(Value(program), axes, scope))

    def emit(self, parts: tuple[Param, Param] | None) -> None:
        """Write the body of the function that reads keys and values; ``parts`` is where it leaves its part."""
        src, p, s = self.src, self.p, self.schedule
        program = src.let("program", program_id(self.outer))
        point = program
        if parts is not None:
            part = src.let("part", f"{program} % {s.splits}")
            point = src.let("point", f"{program} // {s.splits}")
        scope = self._point(point, self.outer)
        query = scope.axes[p.query.symbol] if p.query is not None else Value("0")
        d, in_d = self.along_head(1)
        e, in_e = self.along_value(1)
        left = scope.block((self.keys, self.head), (None, in_d)).at({p.inner.symbol: d})
        queries = src.let("queries", _zeroed(value_of(p.scores.left, left).typed, in_d))
        top = src.let("top", f'tl.full((1, 1), float("-inf"), {self.wide})')
        total = src.let("total", f"tl.zeros((1, 1), {self.wide})")
        acc = src.let("acc", f"tl.zeros((1, {self.width}), {self.wide})")
        low, limit = "0", self.limit(query, scope)
        if parts is not None:
            size = src.let("size", f"(({limit} + {s.keys * s.splits - 1}) // {s.keys * s.splits}) * {self.keys}")
            low = src.let("low", f"{part} * {size}")
            limit = src.let("high", f"tl.minimum({low} + {size}, {limit})")
        start = src.fresh("start")
        with src.block(f"for {start} in range({low}, {limit}, {self.keys})"):
            t = Value(src.let("t", f"{start} + {counted(self.keys, 2, 0, scope.bits)}"), DOWN)
            in_t = src.let("in_t", f"{t.text} < {limit}")
            here = scope.inner().at({p.key.symbol: t})
            keys = here.block((self.keys, self.head), (in_t, in_d)).at({p.inner.symbol: d})
            right = src.let("keys", _zeroed(value_of(p.scores.right, keys).typed, in_d))
            found = src.let("s", f"tl.sum({queries} * {right}, axis=1, keep_dims=True)")
            if p.head == 1:
                found = src.let("s", f"{queries} * {right}")
            scores = here.block((self.keys, "1"), (in_t, None))
            scores = scores.knowing({p.scores.stage.name: Value(found, DOWN)})
            value = scores.widened(value_of(p.score, scores), DOWN).typed
            score = src.let("score", f'tl.where({in_t}, {value}, float("-inf"))')
            weights, scale = self.update(score, top, 0)
            src.line(f"{total} = {total} * {scale} + tl.sum({weights}, axis=0, keep_dims=True)")
            values = here.block((self.keys, self.width), (in_t, in_e)).at({p.value.symbol: e})
            value = values.widened(value_of(p.result.value, values), values.everywhere).typed
            added = f"tl.sum({weights} * tl.where({in_t}, {value}, 0), axis=0, keep_dims=True)"
            src.line(f"{acc} = {acc} * {scale} + {added}")
        out = scope.block(("1", self.width), (None, in_e)).at({p.value.symbol: e})
        if parts is None:
            self.store(acc, total, out, ACROSS)
            return
        place = f"{point} * {s.splits} + {part}"
        mask = "" if in_e is None else f", mask={in_e}"
        src.line(f"tl.store({PARTS} + ({place}) * {p.width} + {e.text}, {acc}{mask})")
        src.line(f"tl.store({WEIGHTS} + ({place}) * 2 + tl.zeros((1, 1), tl.int32), {top})")
        src.line(f"tl.store({WEIGHTS} + ({place}) * 2 + 1 + tl.zeros((1, 1), tl.int32), {total})")

    def put_together(self) -> None:
        """Write the body of the function that adds the parts of a query up."""
        src, p, s = self.src, self.p, self.schedule
        point = src.let("program", program_id(self.outer))
        scope = self._point(point, self.outer)
        block = src.constant("PARTS_OF_KEYS", power_of_two(s.splits))
        part = src.let("part", f"{point} * {s.splits} + tl.arange(0, {block}){lanes(2, 0)}")
        inside = "" if power_of_two(s.splits) == s.splits else f", mask=tl.arange(0, {block}){lanes(2, 0)} < {s.splits}"
        low = f'{inside}, other=float("-inf")' if inside else ""
        zero = f"{inside}, other=0" if inside else ""
        e, in_e = self.along_value(1)
        tops = src.let("tops", f"tl.load({WEIGHTS} + {part} * 2{low})")
        best = src.let("best", f"tl.max({tops}, axis=0, keep_dims=True)")
        shift = src.let("shift", f'tl.where({best} == float("-inf"), 0.0, {best})')
        scale = src.let("scale", f"tl.exp({tops} - {shift})")
        totals = src.let("totals", f"tl.load({WEIGHTS} + {part} * 2 + 1{zero})")
        total = src.let("total", f"tl.sum({totals} * {scale}, axis=0, keep_dims=True)")
        masks = [m for m in (inside.removeprefix(", mask="), in_e) if m]
        mask = f", mask={' & '.join(f'({m})' for m in masks)}, other=0" if masks else ""
        found = src.let("found", f"tl.load({PARTS} + {part} * {p.width} + {e.text}{mask})")
        acc = src.let("acc", f"tl.sum({found} * {scale}, axis=0, keep_dims=True)")
        out = scope.block(("1", self.width), (None, in_e)).at({p.value.symbol: e})
        self.store(acc, total, out, ACROSS)


def _zeroed(value: str, inside: str | None) -> str:
    return value if inside is None else f"tl.where({inside}, {value}, 0)"
