"""Combinations as Triton text: over a block at once, or element by element over several blocks."""

from __future__ import annotations

import torch

from ..program import Combiner
from .scope import Dims, Scope, Value
from .source import Source
from .storage import compute_type, number_text

PLACES = (Combiner.ARGMAX, Combiner.ARGMIN)

_STEP = {
    Combiner.SUM: "{0} + {1}",
    Combiner.DOT: "{0} + {1}",
    Combiner.PROD: "{0} * {1}",
    Combiner.ANY: "{0} | {1}",
    Combiner.ALL: "{0} & {1}",
}
_WHOLE = {
    Combiner.SUM: "tl.sum({0}, axis={1}, keep_dims=True)",
    Combiner.DOT: "tl.sum({0}, axis={1}, keep_dims=True)",
    Combiner.PROD: "lib.product_of({0}, {1})",
    Combiner.MAX: "lib.max_of({0}, {1})",
    Combiner.MIN: "lib.min_of({0}, {1})",
    Combiner.ANY: "(tl.max({0}.to(tl.int32), axis={1}, keep_dims=True) != 0)",
    Combiner.ALL: "(tl.min({0}.to(tl.int32), axis={1}, keep_dims=True) != 0)",
}


def neutral(kind: Combiner, dtype: torch.dtype) -> str:
    """The neutral element of a combination as a literal."""
    if kind in (Combiner.SUM, Combiner.DOT, Combiner.CUMSUM, Combiner.ANY):
        return number_text(0, dtype)
    if kind in (Combiner.PROD, Combiner.ALL):
        return number_text(1, dtype)
    lowest = kind in (Combiner.MAX, Combiner.ARGMAX)
    if dtype == torch.bool:
        return number_text(not lowest, dtype)
    if dtype.is_floating_point:
        return number_text(float("-inf") if lowest else float("inf"), dtype)
    limits = torch.iinfo(dtype)
    return number_text(limits.min if lowest else limits.max, dtype)


def masked(value: Value, kind: Combiner, dtype: torch.dtype, scope: Scope) -> Value:
    """A value over the whole block, neutral where there is no point along the dim that is combined."""
    inside, wide = scope.masks[-1], compute_type(dtype)
    whole = scope.widened(value, scope.everywhere)
    if inside is None:
        return whole
    return Value(f"tl.where({inside}, {whole.typed}, tl.full((), {neutral(kind, dtype)}, {wide}))", scope.everywhere)


def combined(kind: Combiner, value: str, dtype: torch.dtype, axis: int) -> str:
    """A block, neutral where there is nothing, combined along its last dim."""
    text = _WHOLE[kind].format(value, axis)
    return text if kind in (Combiner.ANY, Combiner.ALL) else f"{text}.to({compute_type(dtype)})"


class Accumulator:
    """Partial results, one for each element of a block."""

    def __init__(self, src: Source, kind: Combiner, dtype: torch.dtype, scope: Scope) -> None:
        self.src, self.kind, self.dtype = src, kind, dtype
        self.axis = len(scope.shape) - 1
        shape, wide = scope.extents(scope.everywhere), compute_type(dtype)
        self.name = src.let("acc", f"tl.full({shape}, {neutral(kind, dtype)}, {wide})")
        if kind in PLACES:
            self.place = src.let("place", f"tl.full({shape}, -1, tl.int64)")

    def add(self, value: Value, position: str, scope: Scope) -> None:
        """Combine a block of values, which stand at ``position`` along the combined dim."""
        if self.kind in PLACES:
            self._place(value, position, scope)
            return
        text = masked(value, self.kind, self.dtype, scope).typed
        if self.kind in (Combiner.MAX, Combiner.MIN):
            library = "lib" if self.dtype.is_floating_point else "tl"
            name = "maximum" if self.kind is Combiner.MAX else "minimum"
            step = f"{library}.{name}({self.name}, {text})"
            if self.dtype == torch.bool:
                step = f"{self.name} {'|' if self.kind is Combiner.MAX else '&'} {text}"
        else:
            step = _STEP[self.kind].format(self.name, text)
        self.src.line(f"{self.name} = {step}")

    def _place(self, value: Value, position: str, scope: Scope) -> None:
        before = "lib.more" if self.kind is Combiner.ARGMAX else "lib.less"
        text = self.src.let("v", scope.widened(value, scope.everywhere).typed)
        better = f"({self.place} < 0) | {before}({text}, {self.name})"
        inside = scope.masks[-1]
        take = self.src.let("better", better if inside is None else f"({better}) & {inside}")
        self.src.line(f"{self.name} = tl.where({take}, {text}, {self.name})")
        self.src.line(f"{self.place} = tl.where({take}, {position}, {self.place})")

    def result(self, rows: Dims) -> Value:
        """The combination of everything."""
        if self.kind in PLACES:
            return place_of(self.src, self.kind, self.name, self.place, self.axis, rows)
        return Value(self.src.let("total", combined(self.kind, self.name, self.dtype, self.axis)), rows)


def place_of(src: Source, kind: Combiner, value: str, position: str, axis: int, rows: Dims) -> Value:
    """The first position of the extreme of a block; positions where there is no point are negative."""
    extreme = "lib.max_of" if kind is Combiner.ARGMAX else "lib.min_of"
    best = src.let("best", f"{extreme}({value}, {axis})")
    return Value(src.let("place", f"lib.first_of({value}, {best}, {position}, {axis})"), rows)
