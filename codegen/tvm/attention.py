"""Attention: softmax over keys of scores, times values, block of keys by block of keys; scores never leave the cache.

Many queries (``prefill.py``, and ``prefill_dot.py`` in pairs of bfloat16) stand in vector lanes. For a few queries
(``decode.py``) lanes run along the head, and grouped heads share what is read; where heads are fewer than threads,
their keys are shared out (``decode_parts.py``).

The online softmax follows M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax" (2018), and
T. Dao et al., "FlashAttention" (2022).
"""

from __future__ import annotations

from dataclasses import replace

from ..program import Program
from ..schedule import AttentionSchedule
from .decode import Decode
from .decode_parts import DecodeParts, cuts_keys
from .expression import Scope, index_text
from .flash import Problem, attention_problem
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
    few = isinstance(queries, int) and queries <= schedule.few
    if few or schedule.few == 0 or isinstance(queries, int):
        (decode if few else many)(problem, schedule, src).emit()
        return
    with src.block(f"if {index_text(queries, Scope(program, src))} <= {schedule.few}"):
        decode(problem, schedule, src).emit()
    with src.block("else"):
        many(problem, schedule, src).emit()


def _fitted(problem: Problem, schedule: AttentionSchedule) -> AttentionSchedule:
    """The schedule with no more rows of few queries than stay in cache, and one vector of queries for what fills it."""
    few = min(schedule.few, max(MOST_ROWS // problem.group, 8))
    queries = problem.query.size if problem.query is not None else 1
    narrow = max(schedule.vector, schedule.tile)
    if schedule.few and isinstance(queries, int) and queries <= narrow < schedule.queries:
        return replace(schedule, few=min(few, narrow * 5 // 8), queries=narrow)
    return replace(schedule, few=few)
