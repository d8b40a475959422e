"""Attention of many queries: a task is a block of them, which stand in vector lanes.

So the softmax statistics are vectors and neither keys nor values are rearranged. Scores and results are held
transposed, [key, query] and [value, query].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from ..program import Expr, postorder
from .contraction import flat_size
from .expression import compute_type, index_text, scalar
from .flash import Flash, split_score
from .prefill_ahead import Ahead
from .sweep import is_costly

SHORT = 12  # nodes of an expression that is written for each vector of a tile


class Prefill(Flash):
    """Queries in lanes for scores and softmax; values in lanes for the results."""

    def emit(self) -> None:
        """Write the loops."""
        s, p = self.schedule, self.p
        queries = self.queries
        outer = index_text(flat_size(p.outer), self.scope)
        blocks = self.let("blocks", f"({queries} + {s.queries - 1}) // {s.queries}")
        with self.loop("task", f"{outer} * {blocks}", "T.parallel") as task:
            self.name_offset()
            self.name_outer(f"({task} // {blocks})")
            self.var("first", f"{task} % {blocks} * {s.queries}")
            self.let("count", f"T.min({queries} - {self['first']}, {s.queries})")
            ahead = Ahead(self, task, blocks)
            self.declare()
            self.load_queries()
            limit = self.let("limit", self.key_limit(f"({self['first']} + {self['count']} - 1)"))
            with self.loop("block", f"({limit} + {s.keys - 1}) // {s.keys}") as block:
                start = self.let("start", f"{block} * {s.keys}")
                self.let("n", f"T.min({limit} - {start}, {s.keys})")
                ahead.plan(block)
                self.copies(p.head, self.pitch)
                self._scores(partial(ahead.ask, block))
                self.softmax()
                self._weigh()
            self._results()

    def declare(self) -> None:
        """Declare what a task keeps."""
        s, p = self.schedule, self.p
        self.pitch = self.padded(p.width)
        self.keep_rows("values", again=True)
        self.buffer("q", p.head * s.queries, self.kind)
        self.buffer("scores", s.keys * s.queries, self.kind)
        self.buffer("o", s.queries * self.pitch, self.kind)
        for name in ("top", "best", "total", "shift", "fix"):
            self.buffer(name, s.queries, self.kind)
        # what of a score is read along queries is read along keys, its order in memory, and turned
        self.score, self.masks = split_score(p)
        for name in self.masks:
            self.buffer(name, s.keys * s.queries, self.kind)
            self.fill(name, s.keys * s.queries, self.zero())
        self.declare_copies(p.head, self.pitch)
        self.fill("top", s.queries, self.low())
        self.fill("total", s.queries, self.zero())
        self.fill("o", s.queries * self.pitch, self.zero())

    def load_queries(self) -> None:
        """``q[d, query]``; lanes past the last query are zero."""
        s, p = self.schedule, self.p
        with self.src.block(f"if {self['count']} < {s.queries}"):
            self.fill("q", p.head * s.queries, self.zero())

        def element(r: str, d: str) -> str:
            scope = self.at_query(f"({self['first']} + {r})").at({p.inner.symbol: d})
            return scalar(p.scores.left, scope)

        self._turn("q", str(p.head), element)

    def _turn(self, name: str, columns: str, element: Callable[[str, str], str]) -> None:
        """``name[column, query] = element(query, column)`` for all queries of the task: squares, then what is left."""
        s, n = self.schedule, self.vector
        with self.loop("ra", f"{self['count']} // {n}") as ra, self.loop("ca", f"{columns} // {n}") as ca:
            self.transpose(
                self.kind,
                lambda i, v: element(f"({ra} * {n} + {i})", f"({ca} * {n} + {v})"),
                lambda i, v, x: self.line(f"{self[name]}[({ca} * {n} + {i}) * {s.queries} + {ra} * {n} + {v}] = {x}"),
            )
        for rows, skipped_rows, first in (
            (f"{self['count']} // {n} * {n}", "T.int64(0)", f"{columns} // {n} * {n}"),
            (f"{self['count']} % {n}", f"{self['count']} // {n} * {n}", "T.int64(0)"),
        ):
            with self.loop("r", rows) as r, self.loop("c", f"{columns} - {first}") as c:
                row, column = f"({skipped_rows} + {r})", f"({first} + {c})"
                self.line(f"{self[name]}[{column} * {s.queries} + {row}] = {element(row, column)}")

    # --- scores -------------------------------------------------------------------------------------------------------

    def _scores(self, ask: Callable[[str], None]) -> None:
        """``scores[key, query]``, scaled and masked, and the largest of each query: register tiles of ``tile`` keys.

        Keys past the last repeat it. ``ask`` is called in each tile.
        """
        s, tile, width = self.schedule, self.schedule.tile, self.schedule.queries // self.vector
        for name, expr in self.masks.items():
            self._turn(name, self["n"], partial(self._mask_text, expr))
        peak = self.registers("peak", s.queries, self.kind)
        with self.vectors(width) as e:
            self.line(f"{peak}[{e}] = {self['top']}[{e}]")
        with self.loop("tile", f"({self['n']} + {tile - 1}) // {tile}") as at:
            ask(at)
            self._key_bases(f"({at} * {tile}", tile)
            acc = self.registers("acc", tile * s.queries, self.kind)
            self.fill(acc, tile * s.queries, self.zero(), "T.unroll")
            terms = self.loop("d", self.score_terms())
            with terms as d, self.loop("r", tile, "T.unroll") as r, self.vectors(width) as e:
                to, key = f"{acc}[{r} * {s.queries} + {e}]", f"{self['bases']}[{r}]"
                self.line(f"{to} = {self.with_score(to, key, d, e)}")
            if self.is_short():
                with self.loop("r", tile, "T.unroll") as r:
                    t = self.var("t", f"T.min({at} * {tile} + {r}, {self['n']} - 1)")
                    with self.vectors(width) as e:
                        self._mask(f"{acc}[{r} * {s.queries} + {e}]", t, e, peak)
            with self.vectors(tile * width) as e:
                self.line(f"{self['scores']}[{at} * {tile * s.queries} + {e}] = {acc}[{e}]")
        if not self.is_short():
            with self.loop("t", self["n"]) as t, self.vectors(width) as e:
                self._mask(f"{self['scores']}[{t} * {s.queries} + {e}]", t, e, peak)
        with self.vectors(width) as e:
            self.line(f"{self['best']}[{e}] = {peak}[{e}]")

    def is_short(self) -> bool:
        """Whether scaling and masking takes so little code that it stands in a tile for each of its vectors."""
        exprs = list(postorder([self.score]))
        return len(exprs) <= SHORT and not is_costly([self.score])

    def _mask(self, score: str, t: str, e: str, peak: str) -> None:
        """Scale and mask a score in place, of key ``t`` of the block and query ``e``."""
        at = f"{t} * {self.schedule.queries} + {e}"
        known = {name: self._mask_value(name, at) for name in self.masks} | {self.p.scores.stage.name: score}
        scope = self.at_query(f"({self['first']} + {e})").at({self.p.key.symbol: f"({self['start']} + {t})"})
        self.line(f"{score} = {scalar(self.score, scope.knowing(known))}")
        self.line(f"{peak}[{e}] = T.Select({score} > {peak}[{e}], {score}, {peak}[{e}])")

    def score_terms(self) -> int:
        """How many steps the sum of a score takes."""
        return self.p.head

    def with_score(self, total: str, key: str, d: str, e: str) -> str:
        """A score with one more product, of the key at an offset and query ``e``."""
        return f"{total} + {self.key(key, d)} * {self['q']}[{d} * {self.schedule.queries} + {e}]"

    def _key_bases(self, first: str, tile: int) -> None:
        self.registers("bases", tile, "int64")
        with self.loop("i", tile, "T.unroll") as i:
            at = f"T.min({first} + {i}), {self['n']} - 1)"
            self.line(f"{self['bases']}[{i}] = {self.key_base(at, self.p.head)}")

    def _mask_text(self, expr: Expr, r: str, t: str) -> str:
        scope = self.at_query(f"({self['first']} + {r})").at({self.p.key.symbol: f"({self['start']} + {t})"})
        text = scalar(expr, scope)
        return f'T.Cast("{self.kind}", {text})' if compute_type(expr.dtype) != self.kind else text

    def _mask_value(self, name: str, at: str) -> str:
        kind = compute_type(self.masks[name].dtype)
        value = f"{self[name]}[{at}]"
        if kind == "bool":
            return f"({value} != {self.zero()})"
        return value if kind == self.kind else f'T.Cast("{kind}", {value})'

    # --- softmax ------------------------------------------------------------------------------------------------------

    def softmax(self) -> None:
        """Scores to weights exp(score - largest) in place; ``fix`` is what earlier weights are to be multiplied by."""
        s = self.schedule
        total = self.registers("sum", s.queries, self.kind)
        with self.vectors(s.queries // self.vector) as e:
            best, top, shift = (f"{self[name]}[{e}]" for name in ("best", "top", "shift"))
            # a query that has seen only -inf: its weights are exp(-inf - 0) = 0
            self.line(f"{shift} = T.Select({best} == {self.low()}, {self.zero()}, {best})")
            self.line(f"{self['fix']}[{e}] = vmath.exp_weight({top} - {shift})")
            self.line(f"{top} = {best}")
            self.line(f"{total}[{e}] = {self['total']}[{e}] * {self['fix']}[{e}]")
        with self.loop("t", self["n"]) as t, self.vectors(s.queries // self.vector) as e:
            at = f"{self['scores']}[{t} * {s.queries} + {e}]"
            self.line(f"{at} = vmath.exp_weight({at} - {self['shift']}[{e}])")
            self.line(f"{total}[{e}] = {total}[{e}] + {at}")
        with self.vectors(s.queries // self.vector) as e:
            self.line(f"{self['total']}[{e}] = {total}[{e}]")

    # --- values -------------------------------------------------------------------------------------------------------

    def _weigh(self) -> None:
        """``o[query, value]``: earlier sums times ``fix``, plus weights times values."""
        width = self.pitch // self.vector
        whole, rest = divmod(width, 4) if width % 3 else divmod(width, 3)
        chunk = 3 if width % 3 == 0 else 4
        if whole:
            with self.loop("part", whole) as part:
                self._weigh_chunk(f"{part} * {chunk * self.vector}", chunk)
        if rest:
            self._weigh_chunk(str(whole * chunk * self.vector), rest)

    def _weigh_chunk(self, first: str, width: int) -> None:
        s = self.schedule
        tile = max(s.tile // 2, 1) if width > 2 else s.tile  # queries in a register tile
        with self.loop("tile", s.queries // tile) as at:
            acc = self.registers("acc", tile * width * self.vector, self.kind)
            old = f"{self['o']}[({at} * {tile} + {{}}) * {self.pitch} + {first} + {{}}]"
            with self.loop("r", tile, "T.unroll") as r, self.vectors(width) as e:
                fix = f"{self['fix']}[{at} * {tile} + {r}]"
                self.line(f"{acc}[{r} * {width * self.vector} + {e}] = {old.format(r, e)} * {fix}")
            with self.loop("t", self.value_terms()) as t:
                base = self.let("base", self.value_base(t, self.pitch))
                with self.loop("r", tile, "T.unroll") as r, self.vectors(width) as e:
                    to = f"{acc}[{r} * {width * self.vector} + {e}]"
                    weight = f"{t} * {s.queries} + {at} * {tile} + {r}"
                    self.line(f"{to} = {self.with_value(to, weight, base, f'{first} + {e}')}")
            with self.loop("r", tile, "T.unroll") as r, self.vectors(width) as e:
                self.line(f"{old.format(r, e)} = {acc}[{r} * {width * self.vector} + {e}]")

    def value_terms(self) -> str:
        """How many steps the sum of values takes over a block of keys."""
        return self["n"]

    def with_value(self, total: str, weight: str, base: str, e: str) -> str:
        """A result with one more product, of the weight at an index and element ``e`` of the value at an offset."""
        return f"{total} + {self['scores']}[{weight}] * {self.value(base, e)}"

    def _results(self) -> None:
        s, p = self.schedule, self.p
        with self.vectors(s.queries // self.vector) as e:
            total, zero = f"{self['total']}[{e}]", self.zero()
            self.line(f"{self['fix']}[{e}] = T.Select({total} == {zero}, {zero}, T.{self.kind}(1) / {total})")
        with self.loop("r", self["count"]) as r:
            scope = self.at_query(self.let("query", f"{self['first']} + {r}"))
            for e in self.along(p.width):
                value = f"({self['o']}[{r} * {self.pitch} + {e}] * {self['fix']}[{r}])"
                self.finish(scope.at({p.value.symbol: e}), value)
