"""The graph interpreted before and after each pass, on small sampled inputs and weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..ir.errors import CheckError, SmeltError
from ..ir.graph import Graph, Mutation
from ..ir.interpret import evaluate, interpret
from ..ir.node import Node
from ..rewrites.check import HOW_TO_BISECT, QUANTIZE, Verdicts
from ..rewrites.context import Step
from ..rewrites.trial import Sizes, Style, draw_inputs, draw_value, index_limits
from .contract import compare

WIDE_TOLERANCE = 1e-6  # of a whole graph in float64, relative to the largest value
WIDE_NOISE = 1e-12  # what is left of values of moderate size that cancel
_NO_VALUE = (SmeltError, RuntimeError, IndexError, ValueError)


class PassChecker:
    """Interprets the graph before and after each pass; to be the observer of a :class:`Context`."""

    def __init__(self, graph: Graph, choices: Sequence[Sizes]) -> None:
        self.graph, self.sizes = graph, next(iter(choices), None)
        self.verdicts = Verdicts("passes")
        self.samples: tuple[list[Tensor], dict[str, Tensor]] | None = None
        self.last: tuple[Graph, list[Tensor], list[Tensor]] | None = None  # its values, and in float64

    def __call__(self, step: Step) -> None:
        """Check one pass.

        Raises:
            CheckError: it changed a value.
        """
        try:
            own, wide = self.values_before(step.before)
        except _NO_VALUE as error:
            self.verdicts.skip(f"pass {step.name}", str(error))
            return
        if step.name == QUANTIZE:
            self.verdicts.skip(QUANTIZE, "it changes values, as was asked for: smelt.verify judges it")
            self.last = (step.after, *self.values(step.after, step.derived))
            return
        if step.after is not step.before:
            self.compare(step, own, wide)
            self.verdicts.distinct += 1
        self.verdicts.checked += 1

    def values_before(self, graph: Graph) -> tuple[list[Tensor], list[Tensor]]:
        """The values before a pass: those after the one before it, or of the captured graph."""
        if self.last is None:
            self.samples = sample_model(graph, self.sizes)
            self.last = (graph, *self.values(graph, {}))
        if self.last[0] is not graph:
            raise RuntimeError("what the pass before it made has no value")
        return self.last[1], self.last[2]

    def values(self, graph: Graph, derived: Mapping[str, Node]) -> tuple[list[Tensor], list[Tensor]]:
        """The graph's results and mutations, in its own dtypes and in float64."""
        assert self.samples is not None
        inputs, weights = self.samples
        own = graph_values(graph, inputs, weights, derived, self.sizes or {})
        return own, graph_values(graph, inputs, weights, derived, self.sizes or {}, torch.float64)

    def compare(self, step: Step, own: list[Tensor], wide: list[Tensor]) -> None:
        """Hold the values after a pass to those before it."""
        try:
            now, exact = self.values(step.after, step.derived)
        except _NO_VALUE as error:
            raise self.error(step, f"the graph has no value any more: {error}") from error
        names = [*(f"result {i}" for i in range(len(step.before.outputs))), *map(_target, step.before.mutations)]
        for name, mine, eager, precise, reference in zip(names, now, own, exact, wide, strict=True):
            found = compare(name, mine, eager, reference)
            if not found.passed:
                raise self.error(step, str(found))
            if wide_difference(precise, reference):
                raise self.error(step, f"{name} in float64: {wide_difference(precise, reference)}")
        self.last = (step.after, now, exact)

    def error(self, step: Step, what: str) -> CheckError:
        """The error of a pass."""
        return CheckError(f"the pass {step.name} changed a value: {what}\n{HOW_TO_BISECT}", step.name)


def _target(mutation: Mutation) -> str:
    return f"what is written to {mutation.target.attrs['name']}"


def wide_difference(found: Tensor, expected: Tensor) -> str:
    """How two results in float64 differ by more than rounding; empty where they do not."""
    if not expected.dtype.is_floating_point or not expected.numel():
        return ""
    finite = expected[expected.isfinite()].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    atol = WIDE_TOLERANCE * largest + WIDE_NOISE
    close = torch.isclose(found, expected, rtol=WIDE_TOLERANCE, atol=atol, equal_nan=True)
    return "" if bool(close.all()) else f"{int((~close).sum())} of {close.numel()} values differ"


def graph_values(
    graph: Graph,
    inputs: Sequence[Tensor],
    weights: Mapping[str, Tensor],
    derived: Mapping[str, Node],
    sizes: Sizes,
    dtype: torch.dtype | None = None,
) -> list[Tensor]:
    """The outputs of a graph, then its mutations; ``derived`` defines weights that are computed at load."""
    values = dict(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, node in derived.items():
            (values[name],) = evaluate([node], values, dtype=dtype)
        found = interpret(graph, inputs, values, sizes=sizes, dtype=dtype)
    return [*found.outputs, *found.mutations]


def sample_model(graph: Graph, sizes: Sizes | None) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Small inputs, and weights of moderate size, for which a graph has a value.

    Raises:
        NoValue: no sizes are allowed.
        SmeltError, RuntimeError, IndexError: the graph has no value.
    """
    if sizes is None:
        raise RuntimeError("no sizes were found that the guards allow")
    limits = index_limits(graph, sizes)
    weights = {}
    for i, node in enumerate(graph.weights()):
        value = draw_value(node, sizes, Style(), limits.get(node), 1000 + i)
        weights[str(node.attrs["name"])] = _moderate(value)
    failure: Exception = RuntimeError()
    for zeros in (False, True):
        inputs = draw_inputs(graph, sizes, Style(zeros=zeros))
        try:
            graph_values(graph, inputs, weights, {}, sizes)
        except IndexError as error:
            failure = error
        else:
            return inputs, weights
    raise failure


def _moderate(value: Tensor) -> Tensor:
    """A weight that keeps the size of what it is applied to: matrices by their rows' length, vectors around one."""
    if not value.dtype.is_floating_point:
        return value
    if value.ndim < 2:
        return value.abs() * 0.5 + 0.5
    scale: float = max(value.shape[-1], 1) ** 0.5
    return value / scale
