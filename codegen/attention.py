"""An attention program sorted out: its operands, and what its axes are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import sympy

from ..ir.errors import UnsupportedError
from ..ir.types import Dim, product
from .contraction import Contraction, axes_of, contraction
from .program import Axis, Combiner, Expr, Load, Program, Stage, dot_stage, postorder

MOST_GROUPED = 64  # heads that share one of keys, whose rows a task holds


@dataclass(frozen=True)
class AttentionProblem:
    """An ATTENTION program sorted out.

    Attributes:
        program: the program.
        scores: the products of queries (left) and keys (right).
        result: the stage of the weighted sum.
        outer: the axes that tell heads apart; ``query`` that of queries, None where there is one.
        key: the axis of keys, which the softmax is over.
        inner, value: the axes of a head of queries and keys, and of values.
    """

    program: Program
    scores: Contraction
    result: Stage
    outer: tuple[Axis, ...]
    query: Axis | None
    key: Axis
    inner: Axis
    value: Axis

    @property
    def head(self) -> int:
        """The size of a head of queries and keys."""
        return int(self.inner.size)

    @property
    def width(self) -> int:
        """The size of a value."""
        return int(self.value.size)

    @property
    def queries(self) -> Dim:
        """How many queries a head has."""
        return 1 if self.query is None else self.query.size

    @property
    def heads(self) -> Dim:
        """How many heads there are in all."""
        return product(a.size for a in self.outer)

    @property
    def score(self) -> Expr:
        """What the softmax is taken of: scale and masks on top of the sum of products."""
        assert self.result.combine is not None
        assert self.result.combine.score is not None
        return self.result.combine.score

    @cached_property
    def group(self) -> int:
        """How many consecutive points of the outer axes read the same keys and values."""
        return _group(self.outer, self.scores.right, self.result.value)


def attention_problem(program: Program) -> AttentionProblem:
    """Sort out an ATTENTION program.

    Raises:
        UnsupportedError: the head size is not a number.
    """
    products = dot_stage(program)
    result = next(s for s in program.stages if s.combine is not None and s.combine.kind is Combiner.SOFTMAX_SUM)
    assert result.combine is not None
    (key,) = result.combine.axes
    others = tuple(a for a in result.axes if a in products.axes)
    value = next((a for a in result.axes if a not in others), Axis("value", 1))
    scores = contraction(program, products)
    if key.symbol in axes_of(scores.left):
        scores = replace(scores, left=scores.right, right=scores.left, rows=scores.columns, columns=scores.rows)
    shared = axes_of(scores.right) | axes_of(result.value)
    query = others[-1] if others and others[-1].symbol not in shared else None
    (inner,) = scores.reduced
    if not (isinstance(inner.size, int) and isinstance(value.size, int)):
        raise UnsupportedError(f"attention with a head size of {inner.size} and {value.size}: they must be numbers")
    outer = tuple(a for a in others if a is not query)
    return AttentionProblem(program, scores, result, outer, query, key, inner, value)


def _group(outer: tuple[Axis, ...], keys: Expr, values: Expr) -> int:
    """g where keys and values are read at floor(head / g) only, head being the last outer axis; else 1.

    Where they are not read by heads at all, which is one head of keys for all, it is the number of heads.
    """
    if not outer:
        return 1
    head, found = outer[-1].symbol, set()
    for load in (e for e in postorder([keys, values]) if isinstance(e, Load)):
        for index in load.index:
            if isinstance(index, sympy.Expr) and head in index.free_symbols:
                quotients = [f for f in index.atoms(sympy.floor) if f.has(head)]
                bare = index.subs({f: sympy.Dummy() for f in quotients}).has(head)
                found.update([sympy.Integer(1)] if bare else [head / f.args[0] for f in quotients])
    size = outer[-1].size
    if not found and isinstance(size, int) and size <= MOST_GROUPED:  # all heads read the same
        return size
    if len(found) != 1:
        return 1
    group = found.pop()
    divides = not isinstance(size, int) or (group.is_Integer and size % int(group) == 0)
    return int(group) if group.is_Integer and divides else 1
