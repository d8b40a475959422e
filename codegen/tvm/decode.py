"""Attention of a few queries to many keys: lanes run along the head, and the heads of a group share what is read.

A task is one head of keys and values. Its rows are the queries of all heads in the group; each block of keys and values
is read once from memory and stays in cache for all rows. Bytes: keys and values once.
"""

from __future__ import annotations

from ..attention import AttentionProblem
from ..schedule import AttentionSchedule
from .contraction import flat_size, unflatten
from .expression import Scope, index_text, scalar
from .flash import Flash
from .source import Source


class Decode(Flash):
    """Lanes along the head."""

    HALVES_IN_PLACE = True

    def __init__(self, problem: AttentionProblem, schedule: AttentionSchedule, src: Source) -> None:
        super().__init__(problem, schedule, src)
        self.group = problem.group
        self.tile = next(t for t in (4, 3, 2, 1) if self.group % t == 0)  # rows in a register tile

    @property
    def most_queries(self) -> int:
        """How many queries there may be."""
        queries = self.p.query.size if self.p.query is not None else 1
        return min(queries, self.schedule.few) if isinstance(queries, int) else self.schedule.few

    def emit(self) -> None:
        """Write the loops."""
        s, p = self.schedule, self.p
        outer = index_text(flat_size(p.outer), self.scope)
        with self.loop("task", f"{outer} // {self.group}", "T.parallel") as task:
            self.task = task
            self.let("count", f"{self.queries} * {self.group}")
            limit = self._begin()
            with self.loop("block", f"({limit} + {s.keys - 1}) // {s.keys}") as block:
                self._block(block, limit)
            self._results()

    def _begin(self) -> str:
        """Write what comes before the keys; how many of them the task sees."""
        self.name_offset()
        self._declare()
        self.scope = self._at_row("T.int64(0)")
        self._load_queries()
        return self.let("limit", self.key_limit(self._query(f"{self.queries} - 1")))

    def _block(self, block: str, limit: str) -> None:
        """Write what is done with one block of keys."""
        s = self.schedule
        start = self.let("start", f"{block} * {s.keys}")
        self.let("n", f"T.min({limit} - {start}, {s.keys})")
        self.copies(self.head_pitch, self.width_pitch)
        with self.loop("tile", f"{self['count']} // {self.tile}") as at:
            self._scores(f"{at} * {self.tile}")
        with self.loop("r", self["count"]) as r:
            self._name_row(r)
            self._masks(r)
            self._softmax(r)
            self._scale_values(r)
        with self.loop("tile", f"{self['count']} // {self.tile}") as at:
            self._weigh(f"{at} * {self.tile}")

    def _declare(self) -> None:
        s, p = self.schedule, self.p
        most = self.most_queries * self.group
        self.head_pitch, self.width_pitch = self.padded(p.head), self.padded(p.width)
        self.keep_rows("keys")
        self.keep_rows("values")
        self.buffer("q", most * self.head_pitch, self.kind)
        self.buffer("o", most * self.width_pitch, self.kind)
        self.buffer("scores", most * s.keys, self.kind)
        self.buffer("total", most * self.vector, self.kind)
        self.buffer("top", most, self.kind)
        self.buffer("fix", most, self.kind)
        self.var("best", self.zero(), self.kind)
        self.var("shift", self.zero(), self.kind)
        self.declare_copies(self.head_pitch, self.width_pitch)
        if p.head != self.head_pitch:
            self.fill("q", most * self.head_pitch, self.zero())
        with self.loop("r", self["count"]) as r:
            self.line(f"{self['top']}[{r}] = {self.low()}")
            for name, pitch in (("total", self.vector), ("o", self.width_pitch)):
                with self.vectors(pitch // self.vector, "range") as e:
                    self.line(f"{self[name]}[{r} * {pitch} + {e}] = {self.zero()}")

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _at_row(self, row: str) -> Scope:
        """The axes of a row: the outer ones, the group's last axis among them, and the query."""
        p, queries = self.p, self.queries
        member = f"({row} // {queries})" if self.group > 1 else "T.int64(0)"
        flat = f"({self.task} * {self.group} + {member})" if self.group > 1 else self.task
        return self.at_query(self._query(f"{row} % {queries}"), self.scope.at(unflatten(p.outer, flat, self.scope)))

    def _query(self, text: str) -> str:
        return f"({self.skipped} + {text})" if self.skipped else f"({text})"

    def _name_row(self, r: str) -> None:
        scope = self._at_row(r)
        names = {a.symbol: self.var(f"x{i}_", scope.axes[a.symbol]) for i, a in enumerate(self.p.outer)}
        if self.p.query is not None:
            names[self.p.query.symbol] = self.let("query", scope.axes[self.p.query.symbol])
        self.row = self.scope.at(names)

    def _load_queries(self) -> None:
        p = self.p
        with self.loop("r", self["count"]) as r:
            self._name_row(r)
            with self.loop("d", p.head) as d:
                value = scalar(p.scores.left, self.row.at({p.inner.symbol: d}))
                self.line(f"{self['q']}[{r} * {self.head_pitch} + {d}] = {value}")

    # --- scores -------------------------------------------------------------------------------------------------------

    def _scores(self, row: str) -> None:
        """``scores[row, key]`` for a tile of rows; keys past the last repeat it.

        As many sums as a vector has lanes run side by side, each in the lanes of a vector of its own.
        """
        s, n, rows = self.schedule, self.vector, self.tile
        keys = n // (4 if rows == 3 else rows)
        with self.loop("block", f"({self['n']} + {keys - 1}) // {keys}") as at:
            bases = self.registers("bases", keys, "int64")
            with self.loop("i", keys, "T.unroll") as i:
                t = f"T.min({at} * {keys} + {i}, {self['n']} - 1)"
                self.line(f"{bases}[{i}] = {self.key_base(t, self.head_pitch)}")
            if self.in_place(self.values):
                with self.src.block(f"if {row} == 0"), self.loop("i", keys, "T.unroll") as i:
                    self.prefetch_value(f"({at} * {keys} + {i})")
            sums = self.registers("sums", n, f"{self.kind}x{n}")
            flat = self.flat(sums, self.kind)
            self.fill(flat, n * n, self.zero(), "T.unroll")
            loops = self.loop("d", self.head_pitch // n), self.loop("r", rows, "T.unroll")
            with loops[0] as d, loops[1] as r, self.vectors(keys) as e:
                lane = f"{d} * {n} + {self['v']}"
                acc = f"{flat}[{r} * {keys * n} + {e}]"
                key = self.key(f"{bases}[{self['i']}]", lane)
                self.line(f"{acc} = {acc} + {key} * {self['q']}[({row} + {r}) * {self.head_pitch} + {lane}]")
            total = self.flat(self.add_lanes(sums, self.kind), self.kind)
            with self.loop("r", rows, "T.unroll") as r, self.loop("v", keys, "T.vectorized") as v:
                to = f"({row} + {r}) * {s.keys} + {at} * {keys} + {v}"
                self.line(f"{self['scores']}[{to}] = {total}[{r} * {keys} + {v}]")

    def _masks(self, r: str) -> None:
        """Scale and mask the scores of a row in place; past the last key they are -inf."""
        with self.vectors(f"{self['n']} // {self.vector}", "range") as e:
            self._mask_element(r, e)
        with self.loop("j", f"{self['n']} % {self.vector}") as j:
            self._mask_element(r, f"({self['n']} // {self.vector} * {self.vector} + {j})")
        with self.loop("t", f"{self.schedule.keys} - {self['n']}") as t:
            past = f"{self['n']} + {t}"
            self.line(f"{self._score(r, past)} = {self.low()}")

    def _score(self, r: str, t: str) -> str:
        return f"{self['scores']}[{r} * {self.schedule.keys} + {t}]"

    def _mask_element(self, r: str, t: str) -> None:
        scope = self.row.at({self.p.key.symbol: f"({self['start']} + {t})"})
        score = product = self._score(r, t)
        if self.key_scale is not None:
            product = f"({score} * {scalar(self.key_scale, scope)})"
        self.line(f"{score} = {scalar(self.p.score, scope.knowing({self.p.scores.stage.name: product}))}")

    # --- softmax and values -------------------------------------------------------------------------------------------

    def _softmax(self, r: str) -> None:
        """Scores of a row to weights in place; ``fix`` is what earlier weights are to be multiplied by."""
        s, best, top, fix = self.schedule, self["best"], f"{self['top']}[{r}]", f"{self['fix']}[{r}]"
        peak = self.registers("peak", self.vector, self.kind)
        self.fill(peak, self.vector, self.low(), "T.unroll")
        with self.vectors(s.keys // self.vector, "range") as e:
            score, lane = self._score(r, e), f"{peak}[{self['v']}]"
            self.line(f"{lane} = T.Select({score} > {lane}, {score}, {lane})")
        self._fold(peak, "T.Select({0} > {1}, {0}, {1})", best)
        self.line(f"{best} = T.Select({top} > {best}, {top}, {best})")
        self.line(f"{self['shift']} = T.Select({best} == {self.low()}, {self.zero()}, {best})")
        self.line(f"{fix} = vmath.exp_weight({top} - {self['shift']})")
        self.line(f"{top} = {best}")
        with self.lanes() as v:
            total = f"{self['total']}[{r} * {self.vector} + {v}]"
            self.line(f"{total} = {total} * {fix}")
        with self.vectors(s.keys // self.vector, "range") as e:
            weight, total = self._score(r, e), f"{self['total']}[{r} * {self.vector} + {self['v']}]"
            self.line(f"{weight} = vmath.exp_weight({weight} - {self['shift']})")
            self.line(f"{total} = {total} + {weight}")

    def _scale_values(self, r: str) -> None:
        """Multiply the weights of a row by what the values are multiplied by."""
        if self.value_scale is None:
            return
        whole = f"({self['n']} // {self.vector} * {self.vector})"
        with self.vectors(f"{self['n']} // {self.vector}", "range") as e:
            self._scale_value(r, e)
        with self.loop("j", f"{self['n']} % {self.vector}") as j:
            self._scale_value(r, f"({whole} + {j})")

    def _scale_value(self, r: str, t: str) -> None:
        assert self.value_scale is not None
        scope = self.row.at({self.p.key.symbol: f"({self['start']} + {t})"})
        self.line(f"{self._score(r, t)} = {self._score(r, t)} * {scalar(self.value_scale, scope)}")

    def _fold(self, lanes: str, fold: str, to: str) -> None:
        """Combine the lanes of one vector, halving the width."""
        width = self.vector
        while width > 1:
            width //= 2
            half = self.registers("half", width, self.kind) if width > 1 else ""
            with self.loop("v", width, "T.vectorized" if width > 1 else "range") as v:
                value = fold.format(f"{lanes}[{v}]", f"{lanes}[{width} + {v}]")
                self.line(f"{half}[{v}] = {value}" if half else f"{to} = {value}")
            lanes = half

    def _weigh(self, row: str) -> None:
        """``o[row, value]``: earlier sums times ``fix``, plus values times weights.

        A tile of one row takes keys in pairs, so that enough sums run side by side.
        """
        s, width = self.schedule, self.width_pitch // self.vector
        chunk = next(c for c in (4, 3, 2, 1) if width % c == 0)
        pair = 2 if self.tile == 1 else 1
        with self.loop("part", width // chunk) as part:
            first = f"{part} * {chunk * self.vector}"
            accs = [self.registers("acc", self.tile * chunk * self.vector, self.kind) for _ in range(pair)]
            with self.loop("r", self.tile, "T.unroll") as r, self.vectors(chunk) as e:
                old = f"{self['o']}[({row} + {r}) * {self.width_pitch} + {first} + {e}] * {self['fix']}[{row} + {r}]"
                for acc, value in zip(accs, (old, self.zero()), strict=False):
                    self.line(f"{acc}[{r} * {chunk * self.vector} + {e}] = {value}")
            with self.loop("t", f"{self['n']} // {pair}") as t:
                for i, acc in enumerate(accs):
                    here = f"({t} * {pair} + {i})"
                    if self.in_place(self.keys):
                        with self.src.block(f"if {row} + {part} == 0"):  # others find them in the cache
                            self.prefetch_key(f"({here} + {s.keys})")
                    self._add_value(acc, row, here, first, chunk)
            if pair > 1:
                with self.src.block(f"if {self['n']} % 2 == 1"):
                    self._add_value(accs[0], row, f"({self['n']} - 1)", first, chunk)
            with self.loop("r", self.tile, "T.unroll") as r, self.vectors(chunk) as e:
                value = " + ".join(f"{acc}[{r} * {chunk * self.vector} + {e}]" for acc in accs)
                self.line(f"{self['o']}[({row} + {r}) * {self.width_pitch} + {first} + {e}] = {value}")

    def _add_value(self, acc: str, row: str, t: str, first: str, chunk: int) -> None:
        base = self.let("base", self.value_base(t, self.width_pitch))
        with self.loop("r", self.tile, "T.unroll") as r, self.vectors(chunk) as e:
            to = f"{acc}[{r} * {chunk * self.vector} + {e}]"
            self.line(f"{to} = {to} + {self._score(f'({row} + {r})', t)} * {self.value(base, f'{first} + {e}')}")

    def _results(self) -> None:
        """Write what follows the keys."""
        p = self.p
        with self.loop("r", self["count"]) as r:
            self._name_row(r)
            lanes = self.registers("sum", self.vector, self.kind)
            with self.lanes() as v:
                self.line(f"{lanes}[{v}] = {self['total']}[{r} * {self.vector} + {v}]")
            best, shift = self["best"], self["shift"]
            self._fold(lanes, "{0} + {1}", best)
            self.line(f"{shift} = T.Select({best} == {self.zero()}, {self.zero()}, T.{self.kind}(1) / {best})")
            for e in self.along(p.width):
                value = f"({self['o']}[{r} * {self.width_pitch} + {e}] * {shift})"
                self.finish(self.row.at({p.value.symbol: e}), value)
