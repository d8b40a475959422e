"""A plan run without native code: each kernel's region is interpreted, in the memory that the plan gives to values.

What this gets wrong, and an interpretation of the graph does not, is the fault of the plan: of placement or lifetimes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ir import ops
from ..ir.interpret import interpret
from .executable import Executable, _Call
from .kernels import region_of
from .placement import Sizes
from .plan import KernelStep, Plan, TorchStep


@dataclass
class Replay(Executable):
    """An executable whose plan may be replaced by others of the same buffers, run with or without native code.

    Attributes:
        native: run the native code in ``hosts``; otherwise each kernel's region is interpreted.
    """

    native: bool = False

    def run(self, tensors: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        """The graph's outputs for input tensors, then what its mutations made of their targets."""
        with self._lock, torch.no_grad():
            if self.prepare is not None:
                self.prepare()
            call = (_Call if self.native else _Interpreted)(self, self._binding(sizes), tensors, sizes)
            outputs = call.run()
            return [*outputs, *(call.value(mutation.target).clone() for mutation in self.plan.graph.mutations)]

    def use(self, plan: Plan) -> None:
        """Run another plan of the same buffers from now on."""
        self.plan = plan
        self._bindings.clear()


class _Interpreted(_Call):
    def steps(self) -> None:
        for step in self.plan.steps:
            if isinstance(step, TorchStep):
                self.torch_step(step)
            else:
                self.interpret(step)

    def interpret(self, step: KernelStep) -> None:
        operands = [self.value(x) for x in step.node.inputs]
        values = interpret(region_of(step.node), operands, {}, sizes=self.sizes).outputs
        for result, value in zip(ops.results(step.node), values, strict=True):
            self.base(result).copy_(value)
