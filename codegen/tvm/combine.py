"""Combinations under way: partial results in the lanes of a vector, and how they become one."""

from __future__ import annotations

from typing import Protocol

import torch

from ..program import Combiner
from .expression import functions_for
from .source import Source
from .storage import compute_type, const_text

_STEP = {
    Combiner.SUM: "add",
    Combiner.CUMSUM: "add",
    Combiner.PROD: "mul",
    Combiner.MAX: "maximum",
    Combiner.MIN: "minimum",
    Combiner.ANY: "bit_or",
    Combiner.ALL: "bit_and",
}


def neutral(kind: Combiner, dtype: torch.dtype) -> str:
    """The neutral element of a combination, as TIR text."""
    if kind in (Combiner.SUM, Combiner.CUMSUM, Combiner.ANY):
        return const_text(0, dtype)
    if kind in (Combiner.PROD, Combiner.ALL):
        return const_text(1, dtype)
    lowest = kind is Combiner.MAX
    if dtype == torch.bool:
        return const_text(not lowest, dtype)
    if dtype.is_floating_point:
        return const_text(float("-inf") if lowest else float("inf"), dtype)
    limits = torch.iinfo(dtype)
    return const_text(limits.min if lowest else limits.max, dtype)


class Accumulator(Protocol):
    """Partial results, one in each lane."""

    def start(self) -> None:
        """Make every lane the combination of nothing."""

    def add(self, lane: str, value: str, position: str) -> None:
        """Combine a value, which stands at a position along the combined axis, into a lane."""

    def at(self, lane: str) -> str:
        """The text of a lane's result."""

    def reduce(self) -> str:
        """Combine all lanes; returns the text of the result."""


def accumulator(src: Source, kind: Combiner, dtype: torch.dtype, width: int) -> Accumulator:
    """Declare the partial results of a combination of values of a dtype."""
    if kind in (Combiner.ARGMAX, Combiner.ARGMIN):
        return _Place(src, kind, dtype, width)
    return _Value(src, kind, dtype, width)


class _Lanes:
    """A buffer of one value a lane; bool as bytes, for TVM has no vectors of it in memory."""

    def __init__(self, src: Source, prefix: str, dtype: torch.dtype, width: int) -> None:
        self.src, self.is_bool, self.width = src, dtype == torch.bool, width
        self.name = src.stack_buffer(prefix, width, "int8" if self.is_bool else compute_type(dtype))

    def get(self, lane: str) -> str:
        return f"({self.name}[{lane}] != T.int8(0))" if self.is_bool else f"{self.name}[{lane}]"

    def set(self, lane: str, value: str) -> None:
        self.src.line(f"{self.name}[{lane}] = " + (f'T.Cast("int8", {value})' if self.is_bool else value))

    def fill(self, value: str) -> None:
        lane = self.src.fresh("l")
        with self.src.lane_block(lane, self.width):
            self.set(lane, value)


class _Value:
    """Combinations whose result is a value."""

    def __init__(self, src: Source, kind: Combiner, dtype: torch.dtype, width: int) -> None:
        self.src, self.kind, self.dtype = src, kind, dtype
        self.lanes = _Lanes(src, "acc", dtype, width)

    def start(self) -> None:
        self.lanes.fill(neutral(self.kind, self.dtype))

    def add(self, lane: str, value: str, position: str) -> None:
        table, _ = functions_for(self.dtype)
        self.lanes.set(lane, f"{table}.{_STEP[self.kind]}({self.lanes.get(lane)}, {value})")

    def at(self, lane: str) -> str:
        return self.lanes.get(lane)

    def reduce(self) -> str:
        half = self.lanes.width
        while half > 1:
            half //= 2
            lane = self.src.fresh("l")
            with self.src.lane_block(lane, half):
                self.add(lane, self.lanes.get(f"{lane} + T.int64({half})"), "")
        return self.lanes.get("0")


class _Place:
    """The position of the first largest (smallest) value; NaN counts as largest and as smallest."""

    def __init__(self, src: Source, kind: Combiner, dtype: torch.dtype, width: int) -> None:
        self.src, self.width, self.dtype = src, width, dtype
        self.best, self.where = _Lanes(src, "best", dtype, width), _Lanes(src, "where", torch.int64, width)
        self.before = "helpers.more" if kind is Combiner.ARGMAX else "helpers.less"

    def start(self) -> None:
        self.where.fill("T.int64(-1)")
        self.best.fill(const_text(0, self.dtype))

    def add(self, lane: str, value: str, position: str) -> None:
        best, where = self.best.get(lane), self.where.get(lane)
        self._take(lane, value, position, f"T.Or({where} < T.int64(0), {self.before}({value}, {best}))")

    def _take(self, lane: str, value: str, position: str, condition: str) -> None:
        better = self.src.cell("better", "int8")
        self.src.line(f'{better} = T.Cast("int8", {condition})')
        for lanes, new in ((self.best, value), (self.where, position)):
            lanes.set(lane, f"T.Select({better} != T.int8(0), {new}, {lanes.get(lane)})")

    def at(self, lane: str) -> str:
        return self.where.get(lane)

    def reduce(self) -> str:
        lane = self.src.fresh("l")
        with self.src.block(f"for {lane} in T.serial(T.int64({self.width}))"):
            value, place = self.best.get(lane), self.where.get(lane)
            best, where = self.best.get("0"), self.where.get("0")
            tied = f"T.And(T.Not({self.before}({best}, {value})), {place} < {where})"
            better = f"T.Or({where} < T.int64(0), T.Or({self.before}({value}, {best}), {tied}))"
            self._take("0", value, place, f"T.And({place} >= T.int64(0), {better})")
        return self.where.get("0")
