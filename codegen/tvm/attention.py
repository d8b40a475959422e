"""Attention: softmax over keys of scores, times values, block of keys by block of keys; scores never leave the cache.

Many queries (``prefill.py``, and ``prefill_dot.py`` in pairs of bfloat16) stand in vector lanes. For a few queries
(``decode.py``) lanes run along the head, and grouped heads share what is read; where heads are fewer than threads,
their keys are shared out (``decode_parts.py``). A last block that holds a few of many queries runs as those do.

The online softmax follows M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax" (2018), and
T. Dao et al., "FlashAttention" (2022).
"""

from __future__ import annotations

from dataclasses import replace

from ..attention import AttentionProblem, attention_problem
from ..program import Program
from ..schedule import AttentionSchedule
from .decode import Decode
from .decode_parts import DecodeParts, cuts_keys
from .expression import Scope, index_text
from .prefill import Prefill
from .prefill_dot import DotPrefill
from .source import Source

MOST_ROWS = 64  # of few queries and grouped heads in one task


def emit_attention(program: Program, schedule: AttentionSchedule, src: Source) -> None:
    """Write the loops of an ATTENTION kernel.

    Raises:
        UnsupportedError: the head size is not a number.
    """
    problem = attention_problem(program)
    many = Prefill if schedule.group == 1 else DotPrefill
    queries = problem.query.size if problem.query is not None else 1
    schedule = _fitted(problem, schedule)
    decode = DecodeParts if cuts_keys(problem, schedule) else Decode
    if schedule.few == 0 or (isinstance(queries, int) and _few_of(queries, schedule) in (0, queries)):
        is_few = isinstance(queries, int) and queries <= schedule.few
        (decode if is_few else many)(problem, schedule, src).emit()
        return
    size, few = index_text(queries, Scope(program, src)), src.fresh("few")
    last = f"{size} % {schedule.queries}"
    last = f"T.Select({last} <= {_most_last(schedule)}, {last}, T.int64(0))"
    src.line(f"{few}: T.let = T.Select({size} <= {schedule.few}, {size}, {last})")
    blocks, rest = many(problem, schedule, src), decode(problem, schedule, src)
    blocks.take(f"({size} - {few})")
    rest.take(few, skipped=f"({size} - {few})")
    with src.block(f"if {size} > {few}"):
        blocks.emit()
    with src.block(f"if {few} > 0"):
        rest.emit()


def _few_of(queries: int, schedule: AttentionSchedule) -> int:
    """How many queries, the last ones, run as a few."""
    if queries <= schedule.few:
        return queries
    last = queries % schedule.queries
    return last if last <= _most_last(schedule) else 0


def _most_last(schedule: AttentionSchedule) -> int:
    """How many queries in the last block take less time as a few than the lanes of a whole block."""
    return schedule.few // 2 if schedule.group > 1 else schedule.few * 3 // 4


def _fitted(problem: AttentionProblem, schedule: AttentionSchedule) -> AttentionSchedule:
    """The schedule with no more rows of few queries than stay in cache, and one vector of queries for what fills it."""
    few = min(schedule.few, max(MOST_ROWS // problem.group, 8))
    queries = problem.query.size if problem.query is not None else 1
    narrow = max(schedule.vector, schedule.tile)
    if schedule.few and isinstance(queries, int) and queries <= narrow < schedule.queries:
        return replace(schedule, few=min(few, narrow * 5 // 8), queries=narrow)
    return replace(schedule, few=few)
