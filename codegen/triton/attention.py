"""The attention skeleton: softmax over keys of scores, times values, a block of keys at a time.

Many queries (this file): a block of them in each program, scores and results by ``tl.dot``; keys that no query of the
block may see are skipped. A few queries (``decode.py``): one in each program.

The online softmax follows M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax" (2018), and
T. Dao et al., "FlashAttention" (2022).
"""

from __future__ import annotations

from ...ir.types import canonical_dim
from ..attention import attention_problem
from ..gpu import GpuAttentionSchedule
from ..program import program_roots
from .attention_blocks import BOTH, Attention
from .decode import emit_decode
from .dots import dot, dot_dtype
from .expression import value_of
from .file import FileWriter, ceil_div, program_id
from .indexing import decode, dim_text
from .scope import Scope, Value, counted
from .storage import storage_type


class Prefill(Attention):
    """A block of queries in each program."""

    def emit(self) -> None:
        """Write the function's body."""
        src, p, s = self.src, self.p, self.schedule
        block = src.constant("QUERIES", s.queries)
        program = src.let("program", program_id(self.outer))
        tiles = ceil_div(p.queries, s.queries)
        tile = "0" if tiles == 1 else src.let("tile", f"{program} % {dim_text(tiles, self.outer)}")
        head = program if tiles == 1 else src.let("head", f"{program} // {dim_text(tiles, self.outer)}")
        scope = self.outer.at(decode(Value(head), p.outer, self.outer))
        first = src.let("first", f"{tile} * {block}") if tile != "0" else "0"
        count = dim_text(p.queries, scope)
        rows = src.let("q", f"{first} + {counted(block, 2, 0, scope.bits)}")
        in_rows = src.let("in_q", f"{rows} < {count}")
        q = {p.query.symbol: Value(rows, frozenset({0}))} if p.query is not None else {}
        scope = scope.at(q)
        d, in_d = self.along_head(1)
        queries = scope.block((block, self.head), (in_rows, in_d)).at({p.inner.symbol: d})
        dtype = dot_dtype(p.scores.left, p.scores.right)
        left = src.let("queries", self.operand(p.scores.left, dtype, [in_rows, in_d], queries))
        d, in_d = self.along_head(0)
        e, in_e = self.along_value(1)
        top = src.let("top", f'tl.full(({block}, 1), float("-inf"), {self.wide})')
        total = src.let("total", f"tl.zeros(({block}, 1), {self.wide})")
        acc = src.let("acc", f"tl.zeros(({block}, {self.width}), {self.wide})")
        last = self.src.let("last", f"tl.minimum({first} + {block}, {count}) - 1")
        limit = self.limit(Value(last), scope)
        start = src.fresh("start")
        with src.block(f"for {start} in range(0, {limit}, {self.keys})"):
            t, in_t = self._keys(start, limit, 1)
            here = scope.inner().at({p.key.symbol: t})
            keys = here.block((self.head, self.keys), (in_d, in_t)).at({p.inner.symbol: d})
            right = src.let("keys", self.operand(p.scores.right, dtype, [in_d, in_t], keys))
            zero = f"tl.zeros(({block}, {self.keys}), tl.float32)"
            found = src.let("s", dot(left, right, zero, dtype, False))
            scores = here.block((block, self.keys), (in_rows, in_t))
            scores = scores.knowing({p.scores.stage.name: Value(found, BOTH)})
            value = value_of(p.score, scores).typed
            score = src.let("score", f'tl.where({in_t}, {value}, float("-inf"))')
            weights, scale = self.update(score, top, 1)
            src.line(f"{total} = {total} * {scale} + tl.sum({weights}, axis=1, keep_dims=True)")
            t, in_t = self._keys(start, limit, 0)
            here = here.at({p.key.symbol: t, p.value.symbol: e})
            values = here.block((self.keys, self.width), (in_t, in_e))
            self._weigh(weights, values, acc, scale, [in_t, in_e])
        out = scope.block((block, self.width), (in_rows, in_e)).at({p.value.symbol: e})
        self.store(acc, total, out, BOTH)

    def _keys(self, start: str, limit: str, dim: int) -> tuple[Value, str]:
        at = self.src.let("t", f"{start} + {counted(self.keys, 2, dim, self.outer.bits)}")
        return Value(at, frozenset({dim})), self.src.let("in_t", f"{at} < {limit}")

    def _weigh(self, weights: str, scope: Scope, acc: str, scale: str, insides: list[str | None]) -> None:
        expr = self.p.result.value
        dtype = dot_dtype(expr, expr)
        narrow = "" if dtype.itemsize > 2 else f".to({storage_type(dtype)})"
        values = self.src.let("values", self.operand(expr, dtype, insides, scope))
        self.src.line(f"{acc} = {dot(f'{weights}{narrow}', values, f'{acc} * {scale}', dtype, False)}")


def emit_attention(file: FileWriter, schedule: GpuAttentionSchedule) -> None:
    """Write the functions of an attention program.

    Raises:
        UnsupportedError: the head size is not a number.
    """
    problem = attention_problem(file.program)
    if schedule.few:
        emit_decode(file, problem, schedule)
        return
    programs = canonical_dim(problem.heads * ceil_div(problem.queries, schedule.queries))
    written, roots = [s.param for s in file.program.stores], program_roots(file.program)
    with file.function(
        "", file.program, roots, written, programs, warps=schedule.warps, stages=schedule.stages
    ) as scope:
        Prefill(problem, schedule, scope).emit()
