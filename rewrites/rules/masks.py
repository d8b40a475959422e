"""Look-ups by ranges, which are slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...ir.node import Node
from ...ir.ops import arange, full, index, reshape, slice_
from ...ir.types import Dim, canonical_dim
from ..rule import Rule
from ..sample import shapes
from .common import at_most, is_size, within


@dataclass(frozen=True)
class Span:
    """Positions start, start + 1, ... of an axis; ``place`` is their axis in the index, None for one alone."""

    start: Any
    size: Dim
    place: int | None


def _span(i: Node, rank: int) -> Span | None:
    """What an index picks, if it is a range, however shaped, or one number."""
    source = i.inputs[0] if i.op is reshape else i
    longer = [at for at, dim in enumerate(i.shape) if dim != 1]
    if source.op is full and not longer and is_size(source.attrs["value"]):
        return Span(source.attrs["value"], 1, None)
    if source.op is not arange or source.attrs["step"] != 1:
        return None
    place = longer[0] + rank - i.tensor_type.rank if longer else None
    return Span(source.attrs["start"], source.shape[0], place)


def _spans(x: Node, dim: int, indices: Sequence[Node]) -> list[Span] | None:
    """What the indices pick, where each is within its axis and they keep the order of the axes."""
    rank = max(i.tensor_type.rank for i in indices)
    spans = [span for i in indices if (span := _span(i, rank)) is not None]
    places = [span.place for span in spans if span.place is not None]
    if len(spans) < len(indices) or places != sorted(set(places)):
        return None
    inside = (
        at_most(0, span.start) and within(canonical_dim(span.start + span.size), x.shape[dim + k])
        for k, span in enumerate(spans)
    )
    return spans if all(inside) else None


def _sliced(x: Node, dim: int, indices: Sequence[Node]) -> Node:
    for k, span in enumerate(_spans(x, dim, indices) or []):
        x = slice_(x, dim=dim + k, start=span.start, stop=canonical_dim(span.start + span.size))
    return x


def _line(n: Dim, rank: int, place: int, start: Dim = 0) -> Node:
    """A range of n along one axis of a shape."""
    return reshape(arange(size=n, start=start), shape=tuple(n if i == place else 1 for i in range(rank)))


RULES = (
    # x[a, a + 1, ...] -> x[a:b] where that is within x
    Rule(
        name="index-by-ranges",
        before=lambda x, d, w, *i: index(x, *i, dim=d, wrap=w),
        when=lambda x, d, *i: _spans(x, d, i) is not None,
        after=lambda root, x, d, *i: reshape(_sliced(x, d, i), shape=root.shape),
        samples=[
            shapes("m n k", lambda n: arange(size=n), d=1, w=True),
            shapes("b t", lambda b: _line(b, 4, 0), lambda t: _line(t, 4, 3), d=0, w=True),
            shapes(
                "1 t", lambda: full(shape=(1, 1), value=0, dtype=torch.int64), lambda t: _line(t, 2, 1), d=0, w=False
            ),
            shapes("9 n", lambda: _line(4, 3, 1, start=2), d=0, w=False),
        ],
        near_misses=[
            shapes("m 4", lambda: arange(size=6), d=1, w=True),
            shapes("4 n", lambda: arange(size=2, start=-1), d=0, w=True),
            shapes("3 4", lambda: _line(3, 2, 1), lambda: _line(4, 2, 0), d=0, w=True),
            shapes("3 3", lambda: arange(size=3), lambda: arange(size=3), d=0, w=True),
            shapes("8 n", lambda: arange(size=3, step=2), d=0, w=True),
            shapes("m n", "i64: k", d=0, w=True),
        ],
    ),
)
