"""What both ways of computing attention share: its operands in blocks, and what happens to the results."""

from __future__ import annotations

from dataclasses import replace

import torch

from ...ir.types import Dim
from ..attention import AttentionProblem
from ..gpu import GpuAttentionSchedule
from ..program import Expr, Load
from .expression import element, value_of
from .indexing import atom, dim_text
from .map import emit_stores
from .scope import Scope, Value, lanes
from .source import block_size
from .storage import compute_type, storage_type

BOTH = frozenset({0, 1})


class Attention:
    """What both ways share."""

    def __init__(self, problem: AttentionProblem, schedule: GpuAttentionSchedule, scope: Scope) -> None:
        self.p, self.schedule, self.src, self.outer = problem, schedule, scope.src, scope
        self.wide = compute_type(problem.score.dtype)
        least = 1 if schedule.few else 16
        self.head = self.src.constant("HEAD", max(block_size(problem.head), least))
        self.width = self.src.constant("WIDTH", max(block_size(problem.width), least))
        self.keys = self.src.constant("KEYS", schedule.keys)

    def line(self, name: str, size: Dim, block: str, extent: int, dim: int) -> tuple[Value, str | None]:
        """Indices along one dim of a block of two, and which of them are there."""
        at = self.src.let(name, f"tl.arange(0, {block}){lanes(2, dim)}")
        exact = isinstance(size, int) and size == extent
        return Value(at, frozenset({dim})), None if exact else self.src.let(f"in_{name}", f"{at} < {size}")

    def along_head(self, dim: int) -> tuple[Value, str | None]:
        """Indices of a head of queries and keys."""
        size = self.p.head
        return self.line("d", size, self.head, max(block_size(size), 1 if self.schedule.few else 16), dim)

    def along_value(self, dim: int) -> tuple[Value, str | None]:
        """Indices of a head of values."""
        size = self.p.width
        return self.line("e", size, self.width, max(block_size(size), 1 if self.schedule.few else 16), dim)

    def limit(self, last: Value, scope: Scope) -> str:
        """How many keys are read at the most, where ``last`` is the last query."""
        combine = self.p.result.combine
        assert combine is not None
        size = dim_text(self.p.key.size, scope)
        if combine.bound is None:
            return size
        here = scope.at({self.p.query.symbol: last}) if self.p.query is not None else scope
        bound = atom(combine.bound, here).text
        if combine.offset is None:
            return self.src.let("limit", f"tl.minimum({bound}, {size})")
        # an offset may be any number: the sum must not overflow
        start = value_of(combine.offset, scope).typed
        wide = self.src.let("bound", f"tl.full((), {bound}, tl.int64)" if bound.isdigit() else f"{bound}.to(tl.int64)")
        start = self.src.let("offset", f"tl.maximum(tl.minimum({start}, {size}), -{wide})")
        total = f"tl.minimum({wide} + {start}, {size})"
        return self.src.let("limit", f"{total}.to({scope.index_type})")

    def operand(self, expr: Expr, dtype: torch.dtype, insides: list[str | None], scope: Scope) -> str:
        """A block of an operand of ``tl.dot`` in its dtype, 0 where nothing is."""
        if isinstance(expr, Load) and scope.program.param(expr.param).type.dtype == dtype:
            value = element(expr, replace(scope, fill=True))
            if value.dims == scope.everywhere:  # masked along all dims by itself
                return value.text
        text = scope.widened(value_of(expr, scope), scope.everywhere).typed
        inside = " & ".join(i for i in insides if i is not None)
        text = f"tl.where({inside}, {text}, 0)" if inside else text
        return text if dtype.itemsize > 2 else f"{text}.to({storage_type(dtype)})"

    def update(self, score: str, top: str, axis: int) -> tuple[str, str]:
        """The statistics of the softmax with a block of scores: weights, and what earlier results are scaled by."""
        src = self.src
        best = src.let("best", f"tl.maximum({top}, tl.max({score}, axis={axis}, keep_dims=True))")
        shift = src.let("shift", f'tl.where({best} == float("-inf"), 0.0, {best})')
        weights = src.let("weights", f"tl.exp({score} - {shift})")
        scale = src.let("scale", f"tl.exp({top} - {shift})")
        src.line(f"{top} = {best}")
        return weights, scale

    def store(self, acc: str, total: str, scope: Scope, dims: frozenset[int]) -> None:
        """Store what follows the weighted sum, which is 0 where every score was -inf."""
        result = self.src.let("result", f"tl.where({total} == 0, 0.0, {acc} / tl.where({total} == 0, 1.0, {total}))")
        emit_stores(self.p.program.stores, scope.knowing({self.p.result.name: Value(result, dims)}))
