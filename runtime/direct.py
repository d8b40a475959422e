"""The short way through a run: what a call has to do where all steps are native and each result has memory of its own.

A general run looks at every buffer and node, some ten microseconds of Python for the smallest model. Here that is done
once for a plan, and for each set of sizes: what is left of a call is to write the addresses of its tensors, to allocate
the results, to call the native code and to look whether an index was out of range.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ir.node import through_views
from .placement import Placed
from .plan import Place, Plan, TorchStep
from .results import ResultMemory


@dataclass(frozen=True)
class Direct:
    """A plan whose runs are direct.

    Attributes:
        inputs: the table positions of the graph's inputs.
        outputs: those of its outputs, with their dtypes.
    """

    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, torch.dtype], ...]

    def results(self, placed: Placed, memory: ResultMemory) -> tuple[tuple[int, Callable[[], Tensor]], ...] | None:
        """Each output's table position, and what makes an uninitialised tensor for it; None where one is empty."""
        makers = []
        for position, dtype in self.outputs:
            shape, strides = placed.shapes[position]
            if 0 in shape:
                return None
            makers.append((position, memory.maker(position, shape, strides, dtype)))
        return tuple(makers)


def direct(plan: Plan) -> Direct | None:
    """How to run a plan directly; None where PyTorch computes a step, or a result or mutation needs a copy."""
    graph = plan.graph
    if any(isinstance(step, TorchStep) for step in plan.steps):
        return None
    if not all(plan.is_in_place(mutation) for mutation in graph.mutations):
        return None
    if any(through_views(node) is not node for node in graph.outputs):
        return None
    outputs = [plan.home[node] for node in graph.outputs]
    positions = {b.position for b in outputs}
    if any(b.place is not Place.OUTPUT for b in outputs) or len(positions) != len(outputs):
        return None
    if any(b.place is Place.OUTPUT and b.position not in positions for b in plan.buffers):
        return None
    inputs = tuple(plan.home[node].position for node in graph.inputs)
    return Direct(inputs, tuple((b.position, b.type.dtype) for b in outputs))
