"""What a task of an attention asks for while it computes: what the same thread reads next, as a rule.

Queries, keys and values of a head were written by other kernels and lie in the cache that all cores share, or in that
of another core. They are read in pieces of a row of a head, which the processor does not foresee.
"""

from __future__ import annotations

from ..program import Axis, Expr
from .contraction import Strided, strided_load, unflatten
from .expression import Scope
from .flash import Flash

HEAD_BYTES = 256 << 10  # of keys and values: with those that are being read, half of a second-level cache


class Ahead:
    """What is asked for, tile by tile: a share of the next head's keys and values, and the next block of queries."""

    def __init__(self, kernel: Flash, task: str, blocks: str) -> None:
        self.kernel, self.task, self.blocks = kernel, task, blocks
        p = kernel.p
        self.queries = self._rows(p.scores.left, p.inner)
        rows = ((self._rows(p.scores.right, p.inner), p.head), (self._rows(p.result.value, p.value), p.width))
        self.rows = [(found, count) for found, count in rows if found is not None]
        self.head = self._at(f"({task} // {blocks} + 1)")
        self.following = self._at(f"(({task} + 1) // {blocks})")
        self.first = kernel.var("next", f"({task} + 1) % {blocks} * {kernel.schedule.queries}")
        self.turn = kernel.var("turn", f"{task} % {blocks}")

    def _rows(self, expr: Expr, axis: Axis) -> Strided | None:
        """Rows that lie in memory element by element."""
        found = strided_load(self.kernel.p.program, expr, axis, half=True)
        return found if found is not None and found.step == 1 else None

    def _at(self, head: str) -> Scope:
        scope = self.kernel.scope
        texts = unflatten(self.kernel.p.outer, head, scope)
        return scope.at({s: self.kernel.var(f"n{i}_", text) for i, (s, text) in enumerate(texts.items())})

    def plan(self, block: str) -> None:
        """Decide whether this task asks for a block of keys: each of the tasks of a head asks for others."""
        nbytes = sum(count * rows.param.type.dtype.itemsize for rows, count in self.rows)
        few = f"{self.kernel['limit']} * {nbytes} <= {HEAD_BYTES}"
        mine = f"T.And({block} % {self.blocks} == {self.turn}, {few})"
        self.kernel.let("asked", f"T.Select({mine}, T.int64({self.kernel.schedule.tile}), T.int64(0))")

    def ask(self, block: str, tile: str) -> None:
        """Ask for a tile's share."""
        kernel, p, s = self.kernel, self.kernel.p, self.kernel.schedule
        if self.rows:
            with kernel.loop("ask", kernel["asked"]) as r:
                scope = self.head.at({p.key.symbol: f"({kernel['start']} + {tile} * {s.tile} + {r})"})
                for rows, count in self.rows:
                    kernel.ask(rows, scope, count)
        if self.queries is not None and p.query is not None:
            share = -(-s.queries * s.tile // s.keys)
            with kernel.src.block(f"if {block} == 0"), kernel.loop("ask", share) as r:
                at = f"({self.first} + {tile} * {share} + {r})"
                kernel.ask(self.queries, self.following.at({p.query.symbol: at}), p.head)
