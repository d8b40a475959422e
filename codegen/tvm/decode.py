"""Attention of a few queries to many keys: lanes run along the head, and the heads of a group share what is read.

A task is one head of keys and values. Its rows are the queries of all heads in the group; each block of keys and values
is read once from memory and stays in cache for all rows. Bytes: keys and values once.
"""

from __future__ import annotations

from .contraction import flat_size, unflatten
from .expression import Scope, index_text, scalar
from .flash import Flash


class Decode(Flash):
    """Lanes along the head."""

    key_tile = 4  # keys whose scores are summed side by side

    def emit(self) -> None:
        s, p = self.schedule, self.p
        self.group = p.group
        outer = index_text(flat_size(p.outer), self.scope)
        queries = self.size_of(p.query)
        with self.loop("task", f"{outer} // {self.group}", "T.parallel") as task:
            self.task = task
            self.let("rows", f"{queries} * {self.group}")
            self._declare()
            self.scope = self._at_row("T.int64(0)")
            self._load_queries()
            limit = self.let("limit", self.key_limit(f"({queries} - 1)"))
            with self.loop("block", f"({limit} + {s.keys - 1}) // {s.keys}") as block:
                start = self.let("start", f"{block} * {s.keys}")
                self.let("n", f"T.min({limit} - {start}, {s.keys})")
                self.copies(self.head_pitch, self.width_pitch)
                with self.loop("r", self["rows"]) as r:
                    self._name_row(r)
                    self._scores(r)
                    self._masks(r)
                    self._softmax(r)
                    self._weigh(r)
            self._results()

    def _declare(self) -> None:
        s, p = self.schedule, self.p
        most = s.few * self.group
        self.head_pitch, self.width_pitch = self.padded(p.head), self.padded(p.width)
        self.keep_rows("keys")
        self.keep_rows("values")
        self.buffer("q", most * self.head_pitch, self.kind)
        self.buffer("o", most * self.width_pitch, self.kind)
        self.buffer("scores", s.keys, self.kind)
        self.buffer("top", most, self.kind)
        self.buffer("total", most * self.vector, self.kind)
        for name in ("best", "shift", "fix"):
            self.var(name, self.zero(), self.kind)
        self.declare_copies(self.head_pitch, self.width_pitch)
        self.fill("q", most * self.head_pitch, self.zero())
        self.fill("o", most * self.width_pitch, self.zero())
        self.fill("total", most * self.vector, self.zero())
        with self.loop("r", most) as r:
            self.line(f"{self['top']}[{r}] = {self.low()}")

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _at_row(self, row: str) -> Scope:
        """The axes of a row: the outer ones, the group's last axis among them, and the query."""
        p, queries = self.p, self.size_of(self.p.query)
        member = f"({row} // {queries})" if self.group > 1 else "T.int64(0)"
        flat = f"({self.task} * {self.group} + {member})" if self.group > 1 else self.task
        return self.at_query(f"({row} % {queries})", self.scope.at(unflatten(p.outer, flat, self.scope)))

    def _name_row(self, r: str) -> None:
        scope = self._at_row(r)
        names = {a.symbol: self.var(f"x{i}_", scope.axes[a.symbol]) for i, a in enumerate(self.p.outer)}
        if self.p.query is not None:
            names[self.p.query.symbol] = self.let("query", scope.axes[self.p.query.symbol])
        self.row = self.scope.at(names)

    def _load_queries(self) -> None:
        p = self.p
        with self.loop("r", self["rows"]) as r:
            self._name_row(r)
            with self.loop("d", p.head) as d:
                value = scalar(p.scores.left, self.row.at({p.inner.symbol: d}))
                self.line(f"{self['q']}[{r} * {self.head_pitch} + {d}] = {value}")

    # --- scores -------------------------------------------------------------------------------------------------------

    def _scores(self, r: str) -> None:
        """``scores[key]``; past the last key -inf."""
        tile = self.key_tile
        with self.loop("tile", f"({self['n']} + {tile - 1}) // {tile}") as at:
            bases = self.registers("bases", tile, "int64")
            with self.loop("i", tile, "T.unroll") as i:
                t = f"T.min({at} * {tile} + {i}, {self['n']} - 1)"
                self.line(f"{bases}[{i}] = {self.key_base(t, self.head_pitch)}")
            acc = self.registers("acc", tile * self.vector, self.kind)
            self.fill(acc, tile * self.vector, self.zero(), "T.unroll")
            with self.loop("d", self.head_pitch // self.vector) as d, self.vectors(tile) as e:
                lane = f"{d} * {self.vector} + {self['v']}"
                key = self.key(f"{bases}[{self['i']}]", lane)
                self.line(f"{acc}[{e}] = {acc}[{e}] + {key} * {self['q']}[{r} * {self.head_pitch} + {lane}]")
            self._fold_lanes(acc, tile, "{0} + {1}", f"{self['scores']}[{at} * {tile} + {{0}}]")
        with self.loop("t", f"{self.schedule.keys} - {self['n']}") as t:
            self.line(f"{self['scores']}[{self['n']} + {t}] = {self.low()}")

    def _fold_lanes(self, acc: str, rows: int, fold: str, to: str) -> None:
        """Combine the lanes of each of ``rows`` vectors, halving the width; the results go to ``to`` of the row."""
        width = self.vector
        while width > 1:
            width //= 2
            half = self.registers("half", rows * width, self.kind) if width > 1 else ""
            with self.loop("i", rows, "T.unroll") as i, self.loop("v", width, "T.vectorized" if width > 1 else "range") as v:
                first, second = (f"{acc}[{i} * {2 * width} + {offset} + {v}]" for offset in (0, width))
                target = f"{half}[{i} * {width} + {v}]" if half else to.format(i)
                self.line(f"{target} = {fold.format(first, second)}")
            acc = half

    def _masks(self, r: str) -> None:
        """Scale and mask the scores in place."""
        with self.vectors(f"{self['n']} // {self.vector}", "range") as e:
            self._mask_element(e)
        with self.loop("j", f"{self['n']} % {self.vector}") as j:
            self._mask_element(f"({self['n']} // {self.vector} * {self.vector} + {j})")

    def _mask_element(self, t: str) -> None:
        at = f"{self['scores']}[{t}]"
        scope = self.row.at({self.p.key.symbol: f"({self['start']} + {t})"})
        self.line(f"{at} = {scalar(self.p.score, scope.knowing({self.p.scores.stage.name: at}))}")

    # --- softmax and values -------------------------------------------------------------------------------------------

    def _softmax(self, r: str) -> None:
        """Scores to weights in place; ``fix`` is what earlier weights are to be multiplied by."""
        s, best, top = self.schedule, self["best"], f"{self['top']}[{r}]"
        acc = self.registers("acc", self.vector, self.kind)
        self.fill(acc, self.vector, self.low(), "T.unroll")
        with self.loop("i", s.keys // self.vector) as i, self.lanes() as v:
            score = f"{self['scores']}[{i} * {self.vector} + {v}]"
            self.line(f"{acc}[{v}] = T.Select({score} > {acc}[{v}], {score}, {acc}[{v}])")
        self._fold_lanes(acc, 1, "T.Select({0} > {1}, {0}, {1})", best)
        self.line(f"{best} = T.Select({top} > {best}, {top}, {best})")
        self.line(f"{self['shift']} = T.Select({best} == {self.low()}, {self.zero()}, {best})")
        self.line(f"{self['fix']} = vmath.exp({top} - {self['shift']})")
        self.line(f"{top} = {best}")
        with self.lanes() as v:
            total = f"{self['total']}[{r} * {self.vector} + {v}]"
            self.line(f"{total} = {total} * {self['fix']}")
        with self.loop("i", s.keys // self.vector) as i, self.lanes() as v:
            at = f"{self['scores']}[{i} * {self.vector} + {v}]"
            total = f"{self['total']}[{r} * {self.vector} + {v}]"
            self.line(f"{at} = vmath.exp({at} - {self['shift']})")
            self.line(f"{total} = {total} + {at}")

    def _weigh(self, r: str) -> None:
        """``o[row, value]``: earlier sums times ``fix``, plus values times weights, two keys at a time."""
        width = self.width_pitch // self.vector
        chunk = next(c for c in (4, 3, 2, 1) if width % c == 0)
        with self.loop("part", width // chunk) as part:
            acc = self.registers("acc", 2 * chunk * self.vector, self.kind)
            o = f"{self['o']}[{r} * {self.width_pitch} + {part} * {chunk * self.vector} + "
            with self.vectors(chunk) as e:
                self.line(f"{acc}[{e}] = {o}{e}] * {self['fix']}")
                self.line(f"{acc}[{chunk * self.vector} + {e}] = {self.zero()}")
            for count, keys in ((f"{self['n']} // 2", 2), (f"{self['n']} % 2", 1)):
                with self.loop("t", count) as t, self.loop("u", keys, "T.unroll") as u, self.vectors(chunk) as e:
                    key = f"({t} * 2 + {u})" if keys == 2 else f"({self['n']} - 1)"
                    to = f"{acc}[{u} * {chunk * self.vector} + {e}]"
                    value = self.value(self.value_base(key, self.width_pitch), f"{part} * {chunk * self.vector} + {e}")
                    self.line(f"{to} = {to} + {self['scores']}[{key}] * {value}")
            with self.vectors(chunk) as e:
                self.line(f"{o}{e}] = {acc}[{e}] + {acc}[{chunk * self.vector} + {e}]")

    def _results(self) -> None:
        p = self.p
        with self.loop("r", self["rows"]) as r:
            self._name_row(r)
            acc = self.registers("acc", self.vector, self.kind)
            with self.lanes() as v:
                self.line(f"{acc}[{v}] = {self['total']}[{r} * {self.vector} + {v}]")
            self._fold_lanes(acc, 1, "{0} + {1}", self["best"])
            best = self["best"]
            self.line(f"{self['fix']} = T.Select({best} == {self.zero()}, {self.zero()}, T.{self.kind}(1) / {best})")
            for e in self.along(p.width):
                value = f"({self['o']}[{r} * {self.width_pitch} + {e}] * {self['fix']})"
                self.finish(self.row.at({p.value.symbol: e}), value)
