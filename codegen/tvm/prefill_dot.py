"""Attention of many queries in pairs of bfloat16: both sums of products by an instruction that takes two terms at once.

Scores sum over pairs of a head's elements: keys are read as they lie in memory, queries as pairs made once for a task.
Results sum over pairs of keys: weights are rounded to bfloat16, as eager's are, and values of neighbouring keys are
brought side by side for each block. Scores, statistics and sums are float32.
"""

from __future__ import annotations

import torch

from ..dot import group_offset
from ..program import Load
from .expression import bound, element_text, index_text, scalar
from .prefill import Prefill


class DotPrefill(Prefill):
    """Queries in lanes, two terms in each."""

    def declare(self) -> None:
        """Declare what a task keeps, and the pairs."""
        s, p = self.schedule, self.p
        keys = p.scores.right
        assert isinstance(keys, Load)
        param = p.program.param(keys.param)
        base = group_offset(param, keys.index, p.inner, s.group)
        assert base is not None
        self.key_pairs = base
        self.pairs = self.src.fresh(f"{param.name}_pairs")
        self.line(f'{self.pairs} = T.decl_buffer(({param.name}.shape[0] // 2,), "int32", data={param.name}_ptr)')
        super().declare()
        self.buffer("query_pairs", p.head // 2 * s.queries, "int32")
        self.buffer("weight_pairs", s.keys // 2 * s.queries, "int32")
        self.buffer("value_pairs", s.keys // 2 * self.pitch, "int32")
        if p.width < self.pitch:
            self.fill("value_pairs", s.keys // 2 * self.pitch, "T.int32(0)")

    def declare_copies(self, head: int, width: int) -> None:
        """Nothing is copied as it is."""

    def load_queries(self) -> None:
        """``query_pairs[d, query]``, of the queries in float32."""
        s = self.schedule
        super().load_queries()
        with self.loop("d", self.p.head // 2) as d, self.vectors(s.queries // self.vector) as e:
            self._pair("query_pairs", "q", d, e)

    def _pair(self, to: str, source: str, row: str, e: str) -> None:
        """Round rows 2 ``row`` and 2 ``row`` + 1 to pairs."""
        n = self.schedule.queries
        low, high = (f"{self[source]}[({row} * 2 + {i}) * {n} + {e}]" for i in range(2))
        self.line(f"{self[to]}[{row} * {n} + {e}] = dots.pair({low}, {high})")

    # --- scores -------------------------------------------------------------------------------------------------------

    def score_terms(self) -> int:
        """A step for each pair."""
        return self.p.head // 2

    def key_base(self, t: str, pitch: int) -> str:
        """The offset of key ``t`` of the block, in pairs."""
        return index_text(self.key_pairs, self.scope.at({self.p.key.symbol: f"({self['start']} + {t})"}))

    def with_score(self, total: str, key: str, d: str, e: str) -> str:
        """A score with two more products."""
        query = f"{self['query_pairs']}[{d} * {self.schedule.queries} + {e}]"
        return f"dots.bf16({total}, {self.pairs}[{key} + {d}], {query})"

    # --- values -------------------------------------------------------------------------------------------------------

    def softmax(self) -> None:
        """Scores to weights, and those in pairs; past the last key they are 0."""
        s = self.schedule
        super().softmax()
        with self.src.block(f"if {self['n']} % 2 == 1"), self.vectors(s.queries // self.vector) as e:
            self.line(f"{self['scores']}[{self['n']} * {s.queries} + {e}] = {self.zero()}")
        with self.loop("t", self.value_terms()) as t, self.vectors(s.queries // self.vector) as e:
            self._pair("weight_pairs", "scores", t, e)

    def value_terms(self) -> str:
        """A step for each pair of keys."""
        return f"(({self['n']} + 1) // 2)"

    def copies(self, head: int, width: int) -> None:
        """``value_pairs[key, value]`` of this block; a value past the last is 0."""
        with self.loop("t", f"{self['n']} // 2") as t:
            for e in self.along(self.p.width):
                self._copy_pair(t, e, self._value_bits(f"({t} * 2 + 1)", e))
        with self.src.block(f"if {self['n']} % 2 == 1"):
            for e in self.along(self.p.width):
                self._copy_pair(f"({self['n']} // 2)", e, "T.uint32(0)")

    def _copy_pair(self, t: str, e: str, high: str) -> None:
        value = f'T.Cast("int32", {self._value_bits(f"({t} * 2)", e)} | ({high} << T.uint32(16)))'
        self.line(f"{self['value_pairs']}[{t} * {self.pitch} + {e}] = {value}")

    def _value_bits(self, t: str, e: str) -> str:
        """Element ``e`` of value ``t`` of the block as the low bits of a uint32."""
        expr = self.p.result.value
        scope = self.scope.at({self.p.key.symbol: f"({self['start']} + {t})", self.p.value.symbol: e})
        if isinstance(expr, Load):
            param = self.p.program.param(expr.param)
            return f'T.Cast("uint32", {param.name}[{element_text(param, expr.index, scope)}])'
        value = bound(scalar(expr, scope), torch.float32, scope)
        return f'T.Cast("uint32", helpers.to_bf16({value}))'

    def value_base(self, t: str, pitch: int) -> str:
        """The offset of pair ``t`` of the block's values."""
        return f"{t} * {pitch}"

    def with_value(self, total: str, weight: str, base: str, e: str) -> str:
        """A result with two more products."""
        return f"dots.bf16({total}, {self['weight_pairs']}[{weight}], {self['value_pairs']}[{base} + {e}])"
