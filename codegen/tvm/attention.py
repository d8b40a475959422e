"""Attention: softmax over keys of scores, times values, block of keys by block of keys; scores never leave the cache.

Many queries (this file): a task is a block of queries, which stand in vector lanes, so that the softmax statistics are
vectors and neither keys nor values are rearranged. Scores and results are held transposed, [key, query] and
[value, query]. A few queries (``decode.py``): lanes run along the head, and grouped heads share what is read.

The online softmax follows M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax" (2018), and
T. Dao et al., "FlashAttention" (2022).
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy

from ...ir.errors import UnsupportedError
from ..program import Axis, Combiner, Expr, Load, Program, Stage, postorder
from ..schedule import AttentionSchedule
from .contraction import Contraction, Strided, axes_of, contraction, dot_stage, flat_size, strided_load, unflatten
from .expression import Scope, compute_type, index_text, scalar, store_line
from .nest import Nest
from .source import Source


@dataclass(frozen=True)
class Problem:
    """An attention program: what its axes are, and its operands.

    ``outer`` are the axes of independent tasks, ``query`` the rows of a task (None for a single one), ``key`` the axis
    of the softmax, ``inner`` the axis that scores sum over, ``value`` the one of the result.
    """

    program: Program
    scores: Contraction
    out: Stage
    outer: tuple[Axis, ...]
    query: Axis | None
    key: Axis
    inner: Axis
    value: Axis

    @property
    def head(self) -> int:
        return int(self.inner.size)

    @property
    def width(self) -> int:
        return int(self.value.size)

    @property
    def score(self) -> Expr:
        assert self.out.combine is not None and self.out.combine.score is not None
        return self.out.combine.score


def attention_problem(program: Program) -> Problem:
    """Sort out an ATTENTION program.

    Raises:
        UnsupportedError: the head size is not a number.
    """
    dot = dot_stage(program)
    out = next(s for s in program.stages if s.combine is not None and s.combine.kind is Combiner.SOFTMAX_SUM)
    assert out.combine is not None
    key = out.combine.axes[0]
    others = tuple(a for a in out.axes if a.symbol in {x.symbol for x in dot.axes})
    value = next((a for a in out.axes if a not in others), Axis("value", 1))
    scores = contraction(program, dot)
    if key.symbol in axes_of(scores.left):
        scores = _swapped(scores)
    shared = axes_of(scores.right) | axes_of(out.value)
    query = others[-1] if others and others[-1].symbol not in shared else None
    outer = tuple(a for a in others if a is not query)
    inner = scores.reduced[0]
    if not (isinstance(inner.size, int) and isinstance(value.size, int)):
        raise UnsupportedError(f"attention with a head size of {inner.size} and {value.size}: they must be numbers")
    return Problem(program, scores, out, outer, query, key, inner, value)


def _swapped(c: Contraction) -> Contraction:
    return Contraction(c.stage, c.right, c.left, c.batch, c.columns, c.rows, c.reduced)


def emit_attention(program: Program, schedule: AttentionSchedule, src: Source) -> None:
    """Write the loops of an ATTENTION kernel."""
    Prefill(attention_problem(program), schedule, src).emit()


class Flash(Nest):
    """What both ways of running attention share: operands, their copies, and the order of the passes over a block."""

    def __init__(self, problem: Problem, schedule: AttentionSchedule, src: Source) -> None:
        super().__init__(src, schedule.vector)
        self.p = problem
        self.schedule = schedule
        self.scope = Scope(problem.program, src)
        self.kind = compute_type(problem.out.dtype)
        self.keys: Strided | None = strided_load(problem.program, problem.scores.right, problem.inner)
        self.values: Strided | None = strided_load(problem.program, problem.out.value, problem.value)

    def zero(self) -> str:
        return f"T.{self.kind}(0)"

    def low(self) -> str:
        return f'T.{self.kind}("-inf")'

    def size_of(self, axis: Axis | None) -> str:
        return "T.int64(1)" if axis is None else index_text(axis.size, self.scope)

    def name_outer(self, flat: str) -> None:
        """Name the axes of independent tasks from their flat index."""
        texts = unflatten(self.p.outer, flat, self.scope)
        self.scope = self.scope.at({s: self.var(f"o{i}_", text) for i, (s, text) in enumerate(texts.items())})

    def at_query(self, text: str, scope: Scope | None = None) -> Scope:
        scope = scope or self.scope
        return scope.at({self.p.query.symbol: text}) if self.p.query is not None else scope

    def key_limit(self, last_query: str) -> str:
        """How many keys the queries up to ``last_query`` may see."""
        total = self.size_of(self.p.key)
        assert self.p.out.combine is not None
        bound = self.p.out.combine.bound
        if bound is None:
            return total
        return f"T.max(T.min({total}, {index_text(bound, self.at_query(last_query))}), T.int64(0))"

    def copy_block(self, name: str, expr: Expr, axis: Axis) -> None:
        """``name[key, axis]``: a block of keys or values that cannot be read in place."""
        width = int(axis.size)
        with self.loop("t", self["n"]) as t:
            scope = self.scope.at({self.p.key.symbol: f"({self['start']} + {t})"})
            for extent, first in ((width // self.vector, 0), (0, width // self.vector * self.vector)):
                if extent:
                    with self.vectors(extent, "range") as e:
                        self._copy_element(name, t, e, expr, axis, scope)
                elif first < width and first >= 0 and (first or width < self.vector):
                    with self.loop("e", width - first) as e:
                        self._copy_element(name, t, f"({first} + {e})", expr, axis, scope)

    def _copy_element(self, name: str, t: str, e: str, expr: Expr, axis: Axis, scope: Scope) -> None:
        value = scalar(expr, scope.at({axis.symbol: e}))
        self.line(f"{self[name]}[{t} * {int(axis.size)} + {e}] = {value}")

    def finish(self, scope: Scope, value: str) -> None:
        """Stages and stores after the softmax, at one point."""
        scope = scope.knowing({self.p.out.name: value})
        for stage in self.p.program.stages:
            if stage.combine is None:
                name = self.src.fresh("s")
                self.line(f"{name}: T.let = {scalar(stage.value, scope)}")
                scope = scope.knowing({stage.name: name})
        for store in self.p.program.stores:
            param = self.p.program.param(store.param)
            self.line(store_line(param, store.index, scalar(store.value, scope), scope))


class Prefill(Flash):
    """Queries in lanes."""

    key_tile = 8  # keys in a register tile
    value_tile = 8

    def emit(self) -> None:
        s, p = self.schedule, self.p
        queries = self.size_of(p.query)
        outer = index_text(flat_size(p.outer), self.scope)
        blocks = self.let("blocks", f"({queries} + {s.queries - 1}) // {s.queries}")
        with self.loop("task", f"{outer} * {blocks}", "T.parallel") as task:
            self.name_outer(f"({task} // {blocks})")
            # the last blocks see most keys of a causal mask: first and last alternate
            self.var("first", f"{task} % {blocks} * {s.queries}")
            self.var("count", f"T.min({queries} - {self['first']}, {s.queries})")
            self._declare()
            self._load_queries()
            limit = self.var("limit", self.key_limit(f"({self['first']} + {self['count']} - 1)"))
            with self.loop("block", f"({limit} + {s.keys - 1}) // {s.keys}") as block:
                start = self.var("start", f"{block} * {s.keys}")
                self.var("n", f"T.min({limit} - {start}, {s.keys})")
                self._copies()
                self._scores()
                self._masks()
                self._softmax()
                self._weigh()
            self._results()

    def _declare(self) -> None:
        s, p = self.schedule, self.p
        self.rows = -(-p.width // self.value_tile) * self.value_tile
        self.buffer("q", p.head * s.queries, self.kind)
        self.buffer("scores", s.keys * s.queries, self.kind)
        self.buffer("o", self.rows * s.queries, self.kind)
        for name in ("top", "total", "shift", "fix"):
            self.buffer(name, s.queries, self.kind)
        if self.keys is None:
            self.buffer("keys", s.keys * p.head, self.kind)
        if self.values is None:
            self.buffer("values", s.keys * p.width, self.kind)
        with self.vectors(s.queries // self.vector) as e:
            self.line(f"{self['top']}[{e}] = {self.low()}")
            self.line(f"{self['total']}[{e}] = {self.zero()}")
        with self.vectors(self.rows * s.queries // self.vector, "range") as e:
            self.line(f"{self['o']}[{e}] = {self.zero()}")

    def _load_queries(self) -> None:
        """``q[d, query]``; lanes past the last query are zero."""
        s, p = self.schedule, self.p
        with self.src.block(f"if {self['count']} < {s.queries}"):
            with self.vectors(p.head * s.queries // self.vector, "range") as e:
                self.line(f"{self['q']}[{e}] = {self.zero()}")
        with self.loop("r", self["count"]) as r, self.loop("d", p.head) as d:
            scope = self.at_query(f"({self['first']} + {r})").at({p.inner.symbol: d})
            self.line(f"{self['q']}[{d} * {s.queries} + {r}] = {scalar(p.scores.left, scope)}")

    def _copies(self) -> None:
        if self.keys is None:
            self.copy_block("keys", self.p.scores.right, self.p.inner)
        if self.values is None:
            self.copy_block("values", self.p.out.value, self.p.value)

    # --- scores -------------------------------------------------------------------------------------------------------

    def _scores(self) -> None:
        """``scores[key, query]``: register tiles of ``key_tile`` keys; keys past the last repeat it."""
        s, tile = self.schedule, self.key_tile
        with self.loop("tile", f"({self['n']} + {tile - 1}) // {tile}") as at:
            self._key_bases(f"({at} * {tile}", tile)
            accs = self._accumulators(tile)
            with self.loop("d", self.p.head) as d, self.vectors(tile) as e:
                for j, acc in enumerate(accs):
                    q = f"{self['q']}[{d} * {s.queries} + {j * self.vector} + {self['v']}]"
                    self.line(f"{acc}[{e}] = {acc}[{e}] + {self._key(self['i'], d)} * {q}")
            with self.vectors(tile):
                for j, acc in enumerate(accs):
                    to = f"({at} * {tile} + {self['i']}) * {s.queries} + {j * self.vector} + {self['v']}"
                    self.line(f"{self['scores']}[{to}] = {acc}[{self['i']} * {self.vector} + {self['v']}]")

    def _accumulators(self, rows: int) -> list[str]:
        accs = [self.buffer("acc", rows * self.vector, self.kind) for _ in range(self.schedule.queries // self.vector)]
        with self.vectors(rows) as e:
            for acc in accs:
                self.line(f"{acc}[{e}] = {self.zero()}")
        return accs

    def _key_bases(self, first: str, tile: int) -> None:
        self.buffer("bases", tile, "int64")
        with self.loop("i", tile, "T.unroll") as i:
            at = f"T.min({first} + {i}), {self['n']} - 1)"
            if self.keys is None:
                self.line(f"{self['bases']}[{i}] = {at} * {self.p.head}")
            else:
                scope = self.scope.at({self.p.key.symbol: f"({self['start']} + {at})"})
                self.line(f"{self['bases']}[{i}] = {index_text(self.keys.base, scope)}")

    def _key(self, i: str, d: str) -> str:
        if self.keys is None:
            return f"{self['keys']}[{self['bases']}[{i}] + {d}]"
        return f"{self.keys.param.name}[{self['bases']}[{i}] + {d} * {index_text(self.keys.step, self.scope)}]"

    def _masks(self) -> None:
        """Scale and mask the scores in place, and find the largest of each query."""
        s = self.schedule
        self.buffer("best", s.queries, self.kind)
        with self.vectors(s.queries // self.vector) as e:
            self.line(f"{self['best']}[{e}] = {self['top']}[{e}]")
        if self._mask_reads_queries():
            with self.src.block(f"if {self['count']} < {s.queries}"):
                with self.loop("t", self["n"]) as t, self.loop("e", self["count"]) as e:
                    self._mask_element(t, e)
            with self.src.block("else"):
                self._mask_vectors()
        else:
            self._mask_vectors()
        with self.loop("t", self["n"]) as t, self.vectors(s.queries // self.vector) as e:
            score = f"{self['scores']}[{t} * {s.queries} + {e}]"
            self.line(f"{self['best']}[{e}] = T.Select({score} > {self['best']}[{e}], {score}, {self['best']}[{e}])")

    def _mask_reads_queries(self) -> bool:
        loads = [e for e in postorder([self.p.score]) if isinstance(e, Load)]
        return self.p.query is not None and any(self.p.query.symbol in axes_of(e) for e in loads)

    def _mask_vectors(self) -> None:
        with self.loop("t", self["n"]) as t, self.vectors(self.schedule.queries // self.vector) as e:
            self._mask_element(t, e)

    def _mask_element(self, t: str, e: str) -> None:
        at = f"{self['scores']}[{t} * {self.schedule.queries} + {e}]"
        scope = self.at_query(f"({self['first']} + {e})").at({self.p.key.symbol: f"({self['start']} + {t})"})
        scope = scope.knowing({self.p.scores.stage.name: at})
        self.line(f"{at} = {scalar(self.p.score, scope)}")

    # --- softmax ------------------------------------------------------------------------------------------------------

    def _softmax(self) -> None:
        """Scores to weights exp(score - largest) in place; ``fix`` is what earlier weights are to be multiplied by."""
        s = self.schedule
        with self.vectors(s.queries // self.vector) as e:
            best, top, shift = (f"{self[name]}[{e}]" for name in ("best", "top", "shift"))
            # a query that has seen only -inf: its weights are exp(-inf - 0) = 0
            self.line(f"{shift} = T.Select({best} == {self.low()}, {self.zero()}, {best})")
            self.line(f"{self['fix']}[{e}] = vmath.exp({top} - {shift})")
            self.line(f"{top} = {best}")
            self.line(f"{self['total']}[{e}] = {self['total']}[{e}] * {self['fix']}[{e}]")
        with self.loop("t", self["n"]) as t, self.vectors(s.queries // self.vector) as e:
            at = f"{self['scores']}[{t} * {s.queries} + {e}]"
            self.line(f"{at} = vmath.exp({at} - {self['shift']}[{e}])")
            self.line(f"{self['total']}[{e}] = {self['total']}[{e}] + {at}")

    # --- values -------------------------------------------------------------------------------------------------------

    def _weigh(self) -> None:
        """``o[value, query]``: earlier sums times ``fix``, plus values times weights."""
        s, tile = self.schedule, self.value_tile
        with self.loop("tile", self.rows // tile) as at:
            accs = [self.buffer("acc", tile * self.vector, self.kind) for _ in range(s.queries // self.vector)]
            with self.vectors(tile) as e:
                for j, acc in enumerate(accs):
                    lane = f"{j * self.vector} + {self['v']}"
                    old = f"{self['o']}[({at} * {tile} + {self['i']}) * {s.queries} + {lane}]"
                    self.line(f"{acc}[{e}] = {old} * {self['fix']}[{lane}]")
            with self.loop("t", self["n"]) as t:
                base = self.var("base", self._value_base(t))
                with self.vectors(tile) as e:
                    for j, acc in enumerate(accs):
                        weight = f"{self['scores']}[{t} * {s.queries} + {j * self.vector} + {self['v']}]"
                        self.line(f"{acc}[{e}] = {acc}[{e}] + {self._value(base, at, self['i'])} * {weight}")
            with self.vectors(tile) as e:
                for j, acc in enumerate(accs):
                    to = f"({at} * {tile} + {self['i']}) * {s.queries} + {j * self.vector} + {self['v']}"
                    self.line(f"{self['o']}[{to}] = {acc}[{e}]")

    def _value_base(self, t: str) -> str:
        if self.values is None:
            return f"{t} * {self.p.width}"
        return index_text(self.values.base, self.scope.at({self.p.key.symbol: f"({self['start']} + {t})"}))

    def _value(self, base: str, at: str, i: str) -> str:
        column = f"({at} * {self.value_tile} + {i})"
        if self.p.width % self.value_tile:
            column = f"T.min({column}, {self.p.width - 1})"
        if self.values is None:
            return f"{self['values']}[{base} + {column}]"
        return f"{self.values.param.name}[{base} + {column} * {index_text(self.values.step, self.scope)}]"

    def _results(self) -> None:
        s, p = self.schedule, self.p
        with self.vectors(s.queries // self.vector) as e:
            total = f"{self['total']}[{e}]"
            self.line(f"{self['fix']}[{e}] = T.Select({total} == {self.zero()}, {self.zero()}, T.{self.kind}(1) / {total})")
        with self.loop("r", self["count"]) as r:
            scope = self.at_query(self.var("query", f"{self['first']} + {r}"))
            with self.loop("e", p.width) as e:
                value = f"({self['o']}[{e} * {s.queries} + {r}] * {self['fix']}[{r}])"
                self.finish(scope.at({p.value.symbol: e}), value)
