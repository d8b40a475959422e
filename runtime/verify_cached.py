"""``smelt.verify`` of a quantised model's call with a cache: the step that was run, evaluated again by its graphs.

A step is the model as a function of tokens and cache tensors (:mod:`.generation.step`). Its graphs, before and after
its weights were quantised, are evaluated on what it was given; what they write to cache tensors is compared as the
cache shows it. Where caches are rounded the graphs round too, and are held to the model with caches that round so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ir import ops
from ..ir.graph import Graph
from ..ir.interpret import interpret
from .generation.calls import CachedCalls, output_of
from .generation.inputs import CACHE
from .generation.memory import LayerMemory
from .generation.narrow import parts_in
from .generation.recording import RecordedStep
from .generation.step import PREFIX
from .verify_caches import copied, leaves_of
from .verify_quantized import Judge


class StepJudge(Judge):
    """The graphs of a step that was run.

    Args:
        step: what was recorded of it.
        calls: the model's calls with a cache.
    """

    def __init__(self, step: RecordedStep, calls: CachedCalls) -> None:
        step.entry.complete()
        super().__init__(step.entry, step.sizes, step.call, {})
        self.step, self.model, self.storage = step, calls.model, calls.storage
        self.shown = [_shown(layer) for layer in step.memory.layers]

    def values(
        self,
        graph: Graph,
        weights: Mapping[str, Tensor],
        dtype: torch.dtype | None,
        inputs: Sequence[Tensor] | None = None,
    ) -> dict[str, Any]:
        """What the model's call gives where a step's kernels compute this graph, its cache included, by path."""
        wide, storage = self.model.dtype, self.storage
        rounded = {storage.dtype(wide)} if storage.narrow else set()
        given = self.inputs if inputs is None else inputs
        found = interpret(graph, given, weights, sizes=self.sizes, dtype=dtype, rounded=rounded)
        result = self.entry.capture.unflatten(list(found.outputs), self.call.leaves, self.sizes)
        leaves, places = list(self.call.leaves), dict(zip(graph.inputs, self.entry.tensors, strict=True))
        buffers = {}
        for mutation, value in zip(graph.mutations, found.mutations, strict=True):
            if mutation.target.is_a(ops.weight):
                buffers[f"buffer {str(mutation.target.attrs['name']).removeprefix(PREFIX)}"] = value
            else:
                leaves[places[mutation.target]] = value
        cache = self._cache(leaves, dtype or wide)
        return leaves_of(output_of(result, {**self.step.given, CACHE: cache}, self.model.config)) | buffers

    def _cache(self, leaves: Sequence[Any], wide: torch.dtype) -> Any:
        """The call's cache as it is where the step's tensors are these leaves."""
        step, count = self.step, len(self.shown)
        keys, values = (leaves[step.inputs + start : step.inputs + start + count] for start in (0, count))
        scales = leaves[len(leaves) - 2 * count :] if self.storage.scaled else []
        made = copied(step.given[CACHE])
        for i, layer in enumerate(getattr(made, "self_attention_cache", made).layers):
            whole = (keys[i], values[i], *scales[2 * i : 2 * i + 2])
            parts = tuple(part[:, :, self.shown[i]] for part in whole)
            layer.keys, layer.values = (self.storage.decode(parts[which::2], wide) for which in (0, 1))
        if step.source is not None:
            first = step.inputs + 2 * count + 2  # after the slot and the kinds
            layers = made.cross_attention_cache.layers
            for i, layer in enumerate(layers):
                layer.keys, layer.values = leaves[first + i], leaves[first + len(layers) + i]
        return made


def _shown(layer: LayerMemory) -> slice:
    """The slots that a layer shows."""
    return slice(layer.start, layer.start + int(parts_in(layer.layer)[0].shape[2]))
