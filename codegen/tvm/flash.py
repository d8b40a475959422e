"""What both ways of running attention share: its operands, and what happens to the results."""

from __future__ import annotations

import torch

from ..attention import AttentionProblem
from ..contraction import axes_of
from ..program import Apply, Axis, Expr, Load, Ref, postorder
from ..schedule import AttentionSchedule
from .contraction import Strided, strided_load, unflatten
from .expression import Scope, compute_type, from_storage, index_text, scalar, store_line
from .nest import LINE, Nest
from .prefetch import prefetch_text
from .source import Source
from .storage import NARROW

SETS_BYTES = 4096  # all sets of a first-level cache once: a line of 64 bytes in each of 64


def split_score(p: AttentionProblem) -> tuple[Expr, dict[str, Expr]]:
    """The score with what it reads from memory along queries taken out: the rest, and the parts by stage name.

    A part is as large as it can be without the sum of products.
    """
    parts: dict[Expr, str] = {}

    def split(expr: Expr) -> Expr:
        inside = list(postorder([expr]))
        if any(isinstance(e, Ref) for e in inside):
            return Apply(expr.op, tuple(split(a) for a in expr.args), expr.dtype) if isinstance(expr, Apply) else expr
        if p.query is None or not any(isinstance(e, Load) and p.query.symbol in axes_of(e) for e in inside):
            return expr
        return Ref(parts.setdefault(expr, f"mask{len(parts)}_"), (), expr.dtype)

    score = split(p.score)
    return score, {name: expr for expr, name in parts.items()}


def as_stored(expr: Expr) -> tuple[Expr, Expr | None]:
    """What lies in memory of keys or values, and what a row is multiplied by when it was read; None for nothing.

    A half type or int8 that is cast to float32 is what reading it gives anyway.
    """
    match expr:
        case Apply(op="cast", args=(Load(dtype=stored) as load,), dtype=torch.float32) if stored in NARROW:
            return load, None
        case Apply(op="mul", args=(Apply(op="cast", args=(Load(dtype=torch.int8) as load,)), Load() as scale)):
            return (load, scale) if expr.dtype == torch.float32 else (expr, None)
        case _:
            return expr, None


class Flash(Nest):
    """What both ways of running attention share: operands, their copies, and the order of the passes over a block."""

    HALVES_IN_PLACE = False  # whether halves become floats where they are read, or once, in a copy of the block

    def __init__(self, problem: AttentionProblem, schedule: AttentionSchedule, src: Source) -> None:
        super().__init__(src, schedule.vector)
        self.p = problem
        self.schedule = schedule
        self.scope = Scope(problem.program, src)
        self.kind = compute_type(problem.result.dtype)
        program, half = problem.program, self.HALVES_IN_PLACE
        keys, self.key_scale = as_stored(problem.scores.right)
        values, self.value_scale = as_stored(problem.result.value)
        self.keys: Strided | None = strided_load(program, keys, problem.inner, half=half)
        self.values: Strided | None = strided_load(program, values, problem.value, half=half)
        self.offset: str | None = None
        self.queries = self.size_of(problem.query)
        self.skipped = ""

    def take(self, queries: str, skipped: str = "") -> None:
        """Take ``queries`` of them only, those after the first ``skipped``."""
        self.queries, self.skipped = queries, skipped

    def zero(self) -> str:
        """0 in the compute type."""
        return f"T.{self.kind}(0)"

    def low(self) -> str:
        """Minus infinity in the compute type."""
        return f'T.{self.kind}("-inf")'

    def size_of(self, axis: Axis | None) -> str:
        """The text of an axis's size, 1 for none."""
        return "T.int64(1)" if axis is None else index_text(axis.size, self.scope)

    def name_outer(self, flat: str) -> None:
        """Name the axes of independent tasks from their flat index."""
        texts = unflatten(self.p.outer, flat, self.scope)
        self.scope = self.scope.at({s: self.var(f"o{i}_", text) for i, (s, text) in enumerate(texts.items())})

    def at_query(self, text: str, scope: Scope | None = None) -> Scope:
        """The scope at a query."""
        scope = scope or self.scope
        return scope.at({self.p.query.symbol: text}) if self.p.query is not None else scope

    def key_limit(self, last_query: str) -> str:
        """How many keys the queries up to ``last_query`` may see."""
        total = self.size_of(self.p.key)
        assert self.p.result.combine is not None
        bound = self.p.result.combine.bound
        if bound is None:
            return total
        text = index_text(bound, self.at_query(last_query))
        if self.offset is not None:  # beyond all keys it would only overflow
            text = f"{text} + T.min({self.offset}, {total})"
        return f"T.max(T.min({total}, {text}), T.int64(0))"

    def name_offset(self) -> None:
        """Load what queries are counted from, once for a task."""
        assert self.p.result.combine is not None
        offset = self.p.result.combine.offset
        if offset is not None:
            self.offset = self.let("offset", scalar(offset, self.scope))
            self.scope = self.scope.having({offset: self.offset})

    def padded(self, count: int) -> int:
        """``count`` rounded up to whole vectors."""
        return -(-count // self.vector) * self.vector

    # --- keys and values: in place, or copied a block at a time -------------------------------------------------------

    def keep_rows(self, name: str, *, again: bool = False) -> None:
        """Read keys or values in place only where a row is whole vectors; if ``again`` and again, only spread rows.

        Rows a multiple of ``SETS_BYTES`` apart fall into the same few sets of the cache, and a block of them does not
        stay there.
        """
        strided: Strided | None = getattr(self, name)
        axis = self.p.inner if name == "keys" else self.p.value
        if strided is not None:
            pitch = strided.base.coeff(self.p.key.symbol, 1)
            nbytes = pitch * strided.param.type.dtype.itemsize
            spread = nbytes.is_Integer and nbytes % SETS_BYTES != 0
            if axis.size % self.vector or strided.step != 1 or (again and not spread):
                setattr(self, name, None)
        if getattr(self, name) is None:  # a copy has rows that are multiplied already
            setattr(self, "key_scale" if name == "keys" else "value_scale", None)

    def declare_copies(self, head: int, width: int) -> None:
        """Buffers for what cannot be read in place, zero at first; ``head`` and ``width`` are their row pitches."""
        for name, strided, pitch in (("keys", self.keys, head), ("values", self.values, width)):
            if strided is None:
                self.buffer(name, self.schedule.keys * pitch, self.kind)
                self.fill(name, self.schedule.keys * pitch, self.zero())

    def copies(self, head: int, width: int) -> None:
        """Copy this block of keys and values where it cannot be read in place."""
        if self.keys is None:
            self._copy("keys", self.p.scores.right, self.p.inner, head)
        if self.values is None:
            self._copy("values", self.p.result.value, self.p.value, width)

    def _copy(self, name: str, expr: Expr, axis: Axis, pitch: int) -> None:
        with self.loop("t", self["n"]) as t:
            scope = self.scope.at({self.p.key.symbol: f"({self['start']} + {t})"})
            for e in self.along(int(axis.size)):
                self.line(f"{self[name]}[{t} * {pitch} + {e}] = {scalar(expr, scope.at({axis.symbol: e}))}")

    def in_place(self, strided: Strided | None) -> bool:
        """Whether keys or values are read where they lie, row by row."""
        return strided is not None and strided.step == 1

    def prefetch_key(self, t: str) -> None:
        """Ask for key ``t`` of the block, which may lie in the next block or past the last."""
        self._prefetch(self.keys, t, self.p.head)

    def prefetch_value(self, t: str) -> None:
        """The same for value ``t`` of the block."""
        self._prefetch(self.values, t, self.p.width)

    def _prefetch(self, strided: Strided | None, t: str, count: int) -> None:
        assert strided is not None
        self.ask(strided, self.scope.at({self.p.key.symbol: f"({self['start']} + {t})"}), count)

    def ask(self, strided: Strided, scope: Scope, count: int) -> None:
        """Ask for ``count`` elements of what is read at a place."""
        base, itemsize = index_text(strided.base, scope), strided.param.type.dtype.itemsize
        for line in range(-(-count * itemsize // LINE)):
            element = f"{strided.param.name}[{base} + {line * LINE // itemsize}]"
            self.line(prefetch_text(element))

    def key_base(self, t: str, pitch: int) -> str:
        """The offset of key ``t`` of the block."""
        return self._base(self.keys, t, pitch)

    def value_base(self, t: str, pitch: int) -> str:
        """The offset of value ``t`` of the block."""
        return self._base(self.values, t, pitch)

    def _base(self, strided: Strided | None, t: str, pitch: int) -> str:
        if strided is None:
            return f"{t} * {pitch}"
        return index_text(strided.base, self.scope.at({self.p.key.symbol: f"({self['start']} + {t})"}))

    def key(self, base: str, d: str) -> str:
        """Element ``d`` of the key at an offset."""
        return self._element("keys", self.keys, base, d)

    def value(self, base: str, e: str) -> str:
        """Element ``e`` of the value at an offset."""
        return self._element("values", self.values, base, e)

    def _element(self, name: str, strided: Strided | None, base: str, at: str) -> str:
        if strided is None:
            return f"{self[name]}[{base} + {at}]"
        step = "" if strided.step == 1 else f" * {index_text(strided.step, self.scope)}"
        text = from_storage(f"{strided.param.name}[{base} + {at}{step}]", strided.param.type.dtype)
        return f'T.Cast("{self.kind}", {text})' if strided.param.type.dtype == torch.int8 else text

    # --- results ------------------------------------------------------------------------------------------------------

    def finish(self, scope: Scope, value: str) -> None:
        """Stages and stores after the softmax, at one point."""
        scope = scope.knowing({self.p.result.name: value})
        for stage in self.p.program.stages:
            if stage.combine is None:
                name = self.src.fresh("s")
                self.line(f"{name}: T.let = {scalar(stage.value, scope)}")
                scope = scope.knowing({stage.name: name})
        for store in self.p.program.stores:
            param = self.p.program.param(store.param)
            self.line(store_line(param, store.index, scalar(store.value, scope), scope))
