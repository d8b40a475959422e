"""Lowerings of ATen's operators that order elements: the largest ones, sorting, counting in bins.

Elements are compared in pairs: an element's rank is how many come before it. That is quadratic, so axes are short;
whole numbers that are known to be small, such as the places that a router chose, are counted instead.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..ir import ops
from ..ir.node import Node
from ..ir.ops.base import axis
from ..ir.types import Dim
from .ranges import values_below
from .table import Call, NeedsFixed, NotLowered, cast, full, lowers, reshape

LONGEST = 512  # elements of an axis that are compared in pairs
MOST_KINDS = 1024  # different numbers that are counted

Ordered = tuple[Node, Node]


@lowers("topk.default")
def _topk(call: Call, x: Node, k: Dim, dim: int = -1, largest: bool = True, sorted: bool = True) -> Ordered:
    if not x.tensor_type.rank:
        return x, full((), 0, torch.int64)
    if x.dtype not in (torch.float32, torch.float64):
        raise NotLowered(f"the largest of {x.dtype}: of equal ones, which are many, PyTorch makes its own choice")
    return _chosen(x, dim, k, largest)


@lowers("sort.default", "sort.stable")
def _sort(call: Call, x: Node, dim: int = -1, descending: bool = False, *, stable: bool | None = None) -> Ordered:
    if not x.tensor_type.rank:
        return x, full((), 0, torch.int64)
    below = values_below(x)
    if x.tensor_type.rank == 1 and not descending and below is not None and below <= MOST_KINDS:
        return _counted(x, below)
    return _chosen(x, dim, x.shape[axis(dim, x.tensor_type.rank)], descending)


@lowers("argsort.default", "argsort.stable")
def _argsort(call: Call, x: Node, *args: Any, **named: Any) -> Node:
    return _sort(call, x, *args, **named)[1]


def _chosen(x: Node, dim: int, count: Dim, descending: bool) -> Ordered:
    """The first ``count`` elements in order along an axis, and their places; of equals, the first comes first."""
    at = axis(dim, x.tensor_type.rank)
    size = x.shape[at]
    if not isinstance(size, int) or not isinstance(count, int):
        raise NotLowered(f"an order of a number of elements that is not fixed: {count} of {size}")
    if size > LONGEST:
        raise NotLowered(f"an order of {size} elements: up to {LONGEST} are compared")
    if size == 0:
        return x, full(x.shape, 0, torch.int64)
    line = ops.transpose(x, at, -1)
    ranks = _ranks(line, size, descending)  # [..., size]
    wanted = reshape(ops.arange(size=count), (count, 1))
    found = ops.eq(ops.unsqueeze(ranks, -2), wanted)  # [..., count, size]
    places = ops.argmax(cast(found, torch.uint8), dim=-1)
    return ops.transpose(ops.gather(line, places, dim=-1), at, -1), ops.transpose(places, at, -1)


def _ranks(x: Node, size: int, descending: bool) -> Node:
    """How many elements of the last axis come before each; NaN is the largest number."""
    keys = [cast(x, torch.uint8) if x.dtype == torch.bool else x]
    if x.dtype.is_floating_point:
        nan = ops.isnan(x)
        keys = [ops.where(nan, ops.scalar_like(math.inf, x), x), cast(nan, torch.uint8)]
    place = ops.arange(size=size)
    before = ops.lt(reshape(place, (1, size)), reshape(place, (size, 1)))
    for key in reversed(keys):
        this, other = ops.unsqueeze(key, -1), ops.unsqueeze(key, -2)
        first = (ops.gt if descending else ops.lt)(other, this)
        before = ops.bit_or(first, ops.bit_and(ops.eq(other, this), before))
    return ops.sum(cast(before, torch.int64), dims=(x.tensor_type.rank,))


def _counted(x: Node, kinds: int) -> Ordered:
    """Numbers [N] from 0 to ``kinds`` in rising order and their places, equals as they were: a counting sort."""
    (size,) = x.shape
    equal = ops.eq(reshape(x, (size, 1)), cast(ops.arange(size=kinds), x.dtype))  # [N, kinds]
    count = cast(equal, torch.int64)
    totals = ops.sum(count, dims=(0,))
    starts = ops.sub(ops.cumsum(totals, dim=0), totals)
    before = ops.sub(ops.cumsum(count, dim=0), count)  # of each kind, how many come before a place
    zero = full((), 0, torch.int64)
    target = ops.sum(ops.where(equal, ops.add(before, starts), zero), dims=(1,))  # [N]
    empty = full((size,), 0, torch.int64)
    places = ops.index_put(empty, ops.arange(size=size), target, dim=0)
    return ops.index(x, places, dim=0), places


@lowers("histc.default")
def _histc(call: Call, x: Node, bins: int = 100, min: Any = 0, max: Any = 0) -> Node:
    if not isinstance(min, int | float) or not isinstance(max, int | float) or min >= max:
        raise NotLowered("a histogram between bounds that the data gives")
    if not isinstance(bins, int):
        raise NeedsFixed([bins], "the bins of a histogram")
    if x.dtype in ops.HALF:
        raise NotLowered("a histogram of a half type")
    return _histogram(x, bins, float(min), float(max))


def _histogram(x: Node, bins: int, least: float, most: float) -> Node:
    """How many elements lie in each of some equal bins between two bounds, in the dtype of ``x``."""
    low, high = (ops.scalar_like(bound, x) for bound in (least, most))
    scaled = ops.div(ops.mul(ops.sub(x, low), ops.scalar_like(float(bins), x)), ops.sub(high, low))
    at = ops.where(ops.eq(x, high), ops.scalar_like(float(bins - 1), x), ops.floor(scaled))
    inside = ops.bit_and(ops.ge(x, low), ops.le(x, high))
    number = x.tensor_type.numel
    here = ops.eq(reshape(at, (number, 1)), ops.arange(size=bins, dtype=x.dtype))
    counted = ops.bit_and(here, reshape(inside, (number, 1)))
    # counts are exact in float32 up to 2 ** 24, as they are in PyTorch's own
    return ops.sum(cast(counted, x.dtype), dims=(0,))


def sorted_numbers(ends: Node) -> Node | None:
    """Numbers [N] in rising order, of which ``ends`` [kinds] tells where those of each kind end; None where unknown.

    Known is what transformers computes: the running sum of the histogram of sorted numbers, each from 0 to kinds.
    """
    (kinds,) = ends.shape
    total = _through(ends, ops.cast)
    if not isinstance(kinds, int) or kinds < 2 or not total.is_a(ops.cumsum):
        return None
    counts = _through(total.inputs[0], ops.cast)
    x = counts
    while x.inputs and not (x.is_a(ops.cast) and x.dtype.is_floating_point and x.inputs[0].is_a(ops.index)):
        x = x.inputs[0]
    if not x.inputs or _histogram(x, kinds, 0.0, kinds - 1.0) is not counts:
        return None
    numbers = x.inputs[0]
    below = values_below(numbers)
    if below is None or below > kinds or _counted(numbers.inputs[0], below)[0] is not numbers:
        return None
    return numbers


def _through(x: Node, op: Any) -> Node:
    return x.inputs[0] if x.is_a(op) else x
