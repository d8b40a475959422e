"""Small sampled inputs for graphs, and whether two graphs agree on them.

Sizes are small ones that the symbols' ranges and the capture's guards allow. Integers that pick elements are in range.
Floating-point values are moderate, and in a second trial some are edge values where these are promised to be kept.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import sympy
import torch
from torch import Tensor

from ..ir import ops
from ..ir.errors import InputError, SmeltError
from ..ir.graph import Graph
from ..ir.interpret import interpret
from ..ir.node import Node, Trait
from ..ir.types import SymbolRange, concrete
from .neighbourhood import Pair
from .rule import EXACT, ROUNDING, Domain
from .values import EDGES, difference

Sizes = Mapping[sympy.Symbol, int]
Holds = Callable[[Sizes], bool]

_PERIOD = 65521  # random numbers are repeated after so many, a prime, so that rows of a large matrix differ
_ACCUMULATES = (Trait.CONTRACTION, Trait.ATTENTION, Trait.REDUCTION, Trait.SCAN, Trait.RECURRENCE)
_NO_VALUE = (SmeltError, RuntimeError, IndexError, ValueError)


class NoValue(Exception):
    """Two graphs could not be compared; the message says why."""


def small_sizes(symbols: Sequence[SymbolRange], holds: Holds, seed: int = 0) -> dict[sympy.Symbol, int] | None:
    """Small sizes, mostly above one, for which the guards hold; None where none were found."""
    draw = random.Random(seed)
    for span in (4, 16, 64, 256):
        for _ in range(60):
            sizes = {r.symbol: _size(r, span, draw) for r in symbols}
            if holds(sizes):
                return sizes
    return None


def _size(declared: SymbolRange, span: int, draw: random.Random) -> int:
    low = max(declared.low, 1)
    low = low + 1 if low == 1 and (declared.high is None or declared.high > 1) else low
    high = low + span if declared.high is None else min(declared.high, low + span)
    return draw.randint(low, high) if low <= high else declared.low


# --- values -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Style:
    """How values are drawn: float64 for all floats, edge values among them, integers all zero."""

    domain: Domain = Domain.FINITE
    widen: bool = False
    edges: bool = False
    zeros: bool = False


def draw_inputs(graph: Graph, sizes: Sizes, style: Style, seed: int = 0) -> list[Tensor]:
    """A tensor for each input of a graph.

    Raises:
        TypeRuleError: an input has no size for these sizes of the symbols.
    """
    limits = index_limits(graph, sizes)
    return [draw_value(x, sizes, style, limits.get(x), seed + i) for i, x in enumerate(graph.inputs)]


def draw_value(x: Node, sizes: Sizes, style: Style, limit: int | None = None, seed: int = 0) -> Tensor:
    """A value for an input or weight; ``limit`` is what an integer stays below."""
    shape = [concrete(dim, sizes) for dim in x.shape]
    count = 1
    for size in shape:
        count *= size
    flat = _numbers(x.dtype, min(count, _PERIOD), style, limit, seed)
    return flat.repeat(-(-count // max(len(flat), 1)))[:count].reshape(shape)


def _numbers(dtype: torch.dtype, count: int, style: Style, limit: int | None, seed: int) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.rand(count, generator=source) < 0.6
    if dtype.is_complex:
        pair = torch.randn(2, count, dtype=torch.float64, generator=source)
        return torch.complex(*pair).to(torch.complex128 if style.widen else dtype)
    if not dtype.is_floating_point:
        low, high = (0, max(limit, 1)) if limit is not None else (-4 if torch.iinfo(dtype).min else 0, 5)
        return torch.zeros(count, dtype=dtype) if style.zeros else _integers(low, high, count, source).to(dtype)
    value = torch.randn(count, dtype=torch.float64, generator=source)
    if style.domain is Domain.POSITIVE:
        value = value.abs() + 0.01
    if style.edges:
        chosen = torch.tensor(EDGES, dtype=torch.float64)[_integers(0, len(EDGES), count, source)]
        value = torch.where(torch.rand(count, generator=source) < 0.1, chosen, value)
    return value if style.widen else value.to(dtype)


def _integers(low: int, high: int, count: int, source: torch.Generator) -> Tensor:
    return torch.randint(low, high, (count,), generator=source)


def index_limits(graph: Graph, sizes: Sizes) -> dict[Node, int]:
    """What the integer sources of a graph must stay below, where their values pick elements: the smallest such size.

    A source is taken to pick where any integer that is computed from it does.
    """
    limits: dict[Node, int] = {}
    for node in reversed(graph.nodes):
        if node.has(Trait.REGION):
            region = node.attrs["region"]
            assert isinstance(region, Graph)
            inner = index_limits(region, sizes)
            _lower(limits, ((x, inner[y]) for x, y in zip(node.inputs, region.inputs, strict=True) if y in inner))
        _lower(limits, ((i, max(concrete(size, sizes), 1)) for i, size in _picks(node)))
        if node in limits:
            _lower(limits, ((x, limits[node]) for x in node.inputs if _is_integer(x)))
    return limits


def _lower(limits: dict[Node, int], found: Iterator[tuple[Node, int]]) -> None:
    for node, limit in found:
        limits[node] = min(limit, limits.get(node, limit))


def _picks(node: Node) -> Iterator[tuple[Node, sympy.Expr | int]]:
    """The operands whose values choose among the elements along an axis, and the axis' size."""
    if node.op is ops.embedding:
        yield node.inputs[1], node.inputs[0].shape[0]
    elif node.op in (ops.gather, ops.scatter) and node.shape:
        yield node.inputs[1], node.inputs[0].shape[int(node.attrs["dim"])]  # type: ignore[arg-type]
    elif node.op in (ops.index, ops.index_put):
        first = 1 if node.op is ops.index else 2
        start = int(node.attrs["dim"])  # type: ignore[arg-type]
        yield from ((i, node.inputs[0].shape[start + at]) for at, i in enumerate(node.inputs[first:]))


def _is_integer(node: Node) -> bool:
    dtype = getattr(node.type, "dtype", torch.bool)
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


# --- comparing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counterexample:
    """A trial in which two graphs differ."""

    sizes: Sizes
    style: Style
    seed: int
    what: str


def disagreement(
    pair: Pair, choices: Sequence[Sizes], tolerance: float = EXACT, domain: Domain = Domain.ANY
) -> Counterexample | None:
    """How two graphs differ beyond a tolerance on sampled inputs from a domain; None where they do not.

    Args:
        choices: sizes to try.

    Raises:
        NoValue: the first graph has no value in any trial.
    """
    styles = [Style(domain, widen=tolerance != EXACT)]
    styles += [Style(domain, styles[0].widen, edges=True)] if domain is Domain.ANY else []
    reason, compared = "no sizes were found that the guards allow", False
    for seed, (sizes, style) in enumerate((sizes, style) for sizes in choices for style in styles):
        try:
            found = _trial(pair, sizes, style, tolerance, seed)
        except NoValue as error:
            reason = str(error)
            continue
        compared = True
        if found is not None:
            return found
    if not compared:
        raise NoValue(reason)
    return None


def _trial(pair: Pair, sizes: Sizes, style: Style, tolerance: float, seed: int) -> Counterexample | None:
    style, inputs, expected = _first_value(pair.before, sizes, style, seed)
    found, failure = values_or_failure(pair.after, inputs, sizes, style.widen)
    if not failure and _chooses_zero(pair):
        expected, found = _unsigned_zeros(expected), _unsigned_zeros(found)
    what = failure or _difference(expected, found, tolerance)
    if what and not failure and tolerance == EXACT and _accumulates(pair):
        # PyTorch adds in an order that depends on layout: the same sums are equal up to rounding
        return _trial(pair, sizes, Style(style.domain, True, style.edges, style.zeros), ROUNDING, seed)
    return Counterexample(sizes, style, seed, what) if what else None


def _first_value(graph: Graph, sizes: Sizes, style: Style, seed: int) -> tuple[Style, list[Tensor], tuple[Tensor, ...]]:
    """Inputs for which a graph has a value, and the value. Integers are all zero where others are out of range."""
    failure = ""
    for zeros in (style.zeros, True):
        tried = Style(style.domain, style.widen, style.edges, zeros)
        try:
            inputs = draw_inputs(graph, sizes, tried, seed)
        except SmeltError as error:
            raise NoValue(str(error)) from error
        values, failure = values_or_failure(graph, inputs, sizes, style.widen)
        if not failure:
            return tried, inputs, values
    raise NoValue(failure)


def values_or_failure(
    graph: Graph, inputs: Sequence[Tensor], sizes: Sizes, widen: bool
) -> tuple[tuple[Tensor, ...], str]:
    """A graph's outputs, or why it has none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a variance of no elements, which is part of its meaning
        try:
            outputs = interpret(graph, inputs, {}, sizes=sizes, dtype=torch.float64 if widen else None).outputs
        except InputError as error:
            raise NoValue(str(error)) from error
        except _NO_VALUE as error:
            return (), f"{type(error).__name__}: {error}"
    return outputs, ""


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor], tolerance: float) -> str:
    for want, have in zip(expected, found, strict=True):
        if want.dtype.is_complex:
            want, have = torch.view_as_real(want), torch.view_as_real(have)
        what = difference(want, have, tolerance)
        if what:
            return what
    return ""


def _chooses_zero(pair: Pair) -> bool:
    """Whether PyTorch is free in the sign of a zero: of 0.0 and -0.0, either is the smaller one."""
    free = (ops.maximum, ops.minimum, ops.amax, ops.amin)
    return any(node.op in free for graph in (pair.before, pair.after) for node in graph.nodes)


def _unsigned_zeros(values: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.where(x == 0, torch.zeros_like(x), x) for x in values)


def _accumulates(pair: Pair) -> bool:
    return any(node.has(*_ACCUMULATES) for graph in (pair.before, pair.after) for node in graph.nodes)


@lru_cache(maxsize=64)
def size_choices(symbols: tuple[SymbolRange, ...], holds: Holds, count: int = 2) -> tuple[Sizes, ...]:
    """Up to ``count`` different sets of small sizes; none where none were found."""
    found: list[Sizes] = []
    for seed in range(4 * count):
        sizes = small_sizes(symbols, holds, seed)
        if sizes is not None and sizes not in found:
            found.append(sizes)
        if len(found) == count or not symbols:
            break
    return tuple(found)
