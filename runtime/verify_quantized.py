"""``smelt.verify`` of a quantised model: kernels and quantisation judged apart.

Three things are compared, on the arguments of a call:

- the graph before its weights were quantised with eager, by the numeric contract, as PyTorch evaluates both: capturing
  and rewriting must not have changed the model;
- our results with the graph on the quantised weights, by the numeric contract: what PyTorch gives for that graph in its
  own dtypes stands for eager, and what it gives in float64 is the reference;
- the graph on the quantised weights with the one before, both in float64: how far quantisation moved the result. It is
  reported and not judged.

A row of activations that is rounded to int8 or float8 may round another way for a difference in its last bit, in
PyTorch as in our kernels. Where activations are quantised, a result also passes within ``TIES`` of how far quantisation
moved it. One number that is rounded another way early on changes what many after it are rounded to, and a step of one
token has no other rows that even that out: what is further off is held to what the reference itself makes of arguments
and weights that differ in their last places, and passes within ``TIMES`` of how far the furthest of those moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ..ir import ops
from ..ir.errors import VerifyError
from ..ir.graph import Graph
from ..ir.interpret import evaluate, interpret
from .calls import Call
from .contract import OutputResult, compare
from .entry import Entry, Sizes
from .verify_caches import path_of

TIES = 0.5
TIMES = 2.0
NEARBY = 8  # evaluations of the reference on numbers nearby
LAST_PLACE = 1e-6  # by which they differ, relative: what sums of float32 are off
Values = Mapping[str, Any]


@dataclass(frozen=True)
class Moved:
    """How far quantisation moved an output: the root mean square of the difference, and of the output before.

    Attributes:
        by: what moved it.
    """

    path: str
    rmse: float
    size: float
    by: str = "quantisation"

    def __str__(self) -> str:
        share = f", {self.rmse / self.size:.2%} of its size" if self.size else ""
        return f"{self.by} moved {self.path} by {self.rmse:.2e} (rms){share}"


class Judge:
    """The graphs of one capture on the arguments of one call; ``paths`` are those of its tensors, by identity."""

    def __init__(self, entry: Entry, sizes: Sizes, call: Call, paths: Mapping[int, str]) -> None:
        self.entry, self.sizes, self.call, self.paths = entry, sizes, call, paths
        self.graphs = entry.executable.graphs
        self.names = list(self.graphs)
        self.inputs: list[Tensor] = [call.leaves[place] for place in entry.tensors]  # of the graphs

    def quantised(self, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """What the graph on the quantised weights gives, by path."""
        return self.values(self.graphs["quantize"], self.entry.executable.values, dtype)

    def plain(self, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """What the graph before gives, by path."""
        done = self.entry.executable.quantized
        assert done is not None
        weights = {name: tensor.detach() for name, tensor in self.entry.executable.weights.items()}
        for name, node in done.hoisted.items():
            (weights[name],) = evaluate([node], weights, dtype=dtype)
        return self.values(self.graphs[self.names[self.names.index("quantize") - 1]], weights, dtype)

    def spread(self, reference: Values) -> dict[str, float]:
        """How far the reference moves, at most, where what it reads differs in the last place: by path, as an RMS."""
        found: dict[str, float] = {}
        weights = self.entry.executable.values
        for seed in range(NEARBY):
            generator = torch.Generator().manual_seed(seed)
            inputs = [_nudged(x, generator) for x in self.inputs]
            near = {name: _nudged(weight, generator) for name, weight in weights.items()}
            for path, value in self.values(self.graphs["quantize"], near, torch.float64, inputs).items():
                moved = moved_by(path, value, reference.get(path))
                found[path] = max(found.get(path, 0.0), 0.0 if moved is None else moved.rmse)
        return found

    def values(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype | None,
        inputs: Sequence[Tensor] | None = None,
    ) -> dict[str, Any]:
        """A graph's outputs in the model's structure, and what it writes; on the call's inputs or on others."""
        found = interpret(graph, self.inputs if inputs is None else inputs, weights, sizes=self.sizes, dtype=dtype)
        result = self.entry.capture.unflatten(list(found.outputs), self.call.leaves, self.sizes)
        values = {path_of(path): leaf for path, leaf in pytree.tree_flatten_with_path(result)[0]}
        for mutation, value in zip(graph.mutations, found.mutations, strict=True):
            name = str(mutation.target.attrs["name"])
            is_weight = mutation.target.is_a(ops.weight)
            place = graph.inputs.index(mutation.target) if not is_weight else 0
            values[f"buffer {name}" if is_weight else self.paths.get(id(self.inputs[place]), name)] = value
        return values


def judged(
    ours: Values,
    eager: Values,
    model: Values,
    shown: Sequence[str],
    judge: Judge,
    ties: bool,
    tf32: bool = False,
    rounding: Mapping[str, Moved] | None = None,
) -> tuple[tuple[OutputResult, ...], tuple[Moved, ...]]:
    """How our values compare, and how far quantisation moved them.

    Args:
        ours, eager: what the compiled model and the model itself give, by path.
        model: what the model gives in float64.
        shown: the paths to compare.
        judge: the graphs.
        ties: whether rows of activations are rounded.
        tf32: whether products of float32 may be TensorFloat-32's.
        rounding: how far rounding of caches moved the model's values; where it did, all of these have such caches.

    Raises:
        VerifyError: the model was changed before its weights were quantised.
    """
    plain, before = judge.plain(), judge.plain(torch.float64)
    quantised, reference = judge.quantised(), judge.quantised(torch.float64)
    results, moved = [], []
    for path in shown:
        if path not in quantised:
            continue  # a buffer that the graph does not write
        rounded = (rounding or {}).get(path)
        unchanged = _apart_from(compare(path, plain[path], eager[path], model.get(path), tf32=tf32), rounded)
        if not unchanged.passed:
            raise VerifyError(f"the model was changed before its weights were quantised: {unchanged}")
        how_far = moved_by(path, reference.get(path), before.get(path))
        result = compare(path, ours[path], quantised[path], reference.get(path), tf32=tf32)
        results.append(_apart_from(result, rounded, how_far if ties else None))
        moved += [found for found in (how_far, rounded) if found is not None]
    if ties and not all(result.passed for result in results):
        spread = judge.spread(reference)
        results = [_within(result, TIMES * spread.get(result.path, 0.0)) for result in results]
    return tuple(results), tuple(moved)


def _within(result: OutputResult, limit: float) -> OutputResult:
    """A result, which passes where its error is within a limit."""
    return replace(result, fault=None) if result.rmse is not None and result.rmse <= limit else result


def _nudged(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """A tensor of floats that differs in the last place, in float64; others as they are."""
    if not tensor.dtype.is_floating_point or tensor.dtype.itemsize < 2:  # of float8: weights, which stay what they are
        return tensor
    noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return tensor.double() * (1 + LAST_PLACE * noise)


def _apart_from(result: OutputResult, *moved: Moved | None) -> OutputResult:
    """A result, which passes where numbers in the middle between two explain its error."""
    if result.rmse is None:
        return result
    near = any(result.rmse <= TIES * how_far.rmse for how_far in moved if how_far is not None)
    return replace(result, fault=None) if near else result


def moved_by(path: str, now: Any, before: Any, by: str = "quantisation") -> Moved | None:
    """How far a value was moved; None where it is not one of floats."""
    if not isinstance(now, Tensor) or not isinstance(before, Tensor) or not now.dtype.is_floating_point:
        return None
    finite = now.isfinite() & before.isfinite()
    if not bool(finite.any()):
        return None
    difference, size = (now - before)[finite], before[finite]
    return Moved(path, float(difference.square().mean().sqrt()), float(size.square().mean().sqrt()), by)
