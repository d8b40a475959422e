"""One kernel at a time, compiled and run on its own: what tells a wrong kernel from a wrong program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..codegen.lower import strides_of
from ..codegen.program import Format
from ..codegen.schedule import panel_layout
from ..codegen.tvm.packing import pack_panels
from ..ir import ops
from ..ir.errors import UnsupportedError
from ..ir.graph import Graph
from ..ir.types import concrete
from ..rewrites.trial import Sizes
from .check_kernels import laid_out
from .kernels import KernelTable, layouts_of
from .plan import KernelStep
from .target import Target


class Probes:
    """The kernels of some steps, each with a host function of its own.

    With ``calls``, each has a second one that makes so many calls, each on memory of its own.

    Raises:
        BackendError: the backend refuses a kernel.
    """

    def __init__(self, steps: Sequence[KernelStep], target: Target, calls: int = 0) -> None:
        # imported here: only a target that runs on TVM needs it
        from ..codegen.tvm.loading import load_tvm

        load_tvm()
        from ..codegen.tvm import module

        kernels = {step.kernel.name: step.kernel for step in steps}
        hosts = []
        for name, kernel in kernels.items():
            count = len(kernel.program.params) + len(kernel.scratch) + 1
            call = module.Call(name, tuple(range(count)))
            hosts.append(module.Host(f"probe_{name}", (call,), count, kernel.program.symbols))
            if calls:
                several = tuple(module.Call(name, tuple(range(n * count, (n + 1) * count))) for n in range(calls))
                hosts.append(module.Host(f"together_{name}", several, calls * count, kernel.program.symbols))
        module.set_threads(target.threads)
        self._built = module.build([kernel.source for kernel in kernels.values()], hosts, target.cpu)

    def run(self, step: KernelStep, operands: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        """The results of a step's kernel for operands of its region.

        Raises:
            IndexError: the kernel found an index out of range.
        """
        held = [self.operand(step, i, x, sizes) for i, x in enumerate(operands)]
        results = [_blank(step, i, sizes) for i in range(len(layouts_of(step.node)))]
        shapes = [[concrete(d, sizes) for d in p.type.shape] for p in step.kernel.scratch]
        lent = [torch.empty(n, dtype=p.type.dtype) for n, p in zip(shapes, step.kernel.scratch, strict=True)]
        error = torch.zeros(1, dtype=torch.int64)
        table = torch.tensor([x.data_ptr() for x in (*held, *results, *lent, error)])
        numbers = [sizes[s] for s in step.kernel.program.symbols]
        self.function(step)(table, torch.tensor(numbers or [0]))
        if error.item():
            raise IndexError("index out of range")
        return results

    def function(self, step: KernelStep) -> Callable[[Tensor, Tensor], Any]:
        """The native function that calls a step's kernel, of an address table and sizes."""
        found: Callable[[Tensor, Tensor], Any] = self._built[f"probe_{step.kernel.name}"]
        return found

    def together(self, step: KernelStep) -> Callable[[Tensor, Tensor], Any]:
        """The native function that makes several calls, of their address tables one after the other, and sizes."""
        found: Callable[[Tensor, Tensor], Any] = self._built[f"together_{step.kernel.name}"]
        return found

    @staticmethod
    def operand(step: KernelStep, at: int, tensor: Tensor, sizes: Sizes) -> Tensor:
        """An operand of a step's region in memory as the kernel reads it: packed where it asks for panels."""
        param = step.kernel.program.inputs[at]
        if param.format is Format.PANELS:
            return pack_panels(tensor.T if param.transposed else tensor, panel_layout(step.kernel.schedule))
        return laid_out(step.node.inputs[at], tensor, sizes)


def _blank(step: KernelStep, at: int, sizes: Sizes) -> Tensor:
    type_ = ops.results(step.node)[at].tensor_type
    strides = strides_of(type_.shape, layouts_of(step.node)[at])
    shape = [concrete(d, sizes) for d in type_.shape]
    return torch.empty_strided(shape, [concrete(d, sizes) for d in strides], dtype=type_.dtype)


def step_of(region: Graph, layouts: Sequence[Sequence[int]], weights: Sequence[int], target: Target) -> KernelStep:
    """A step that calls the kernel of a region; ``weights`` are the inputs that may be packed ahead.

    Raises:
        UnsupportedError: no kernel can be made of the region.
    """
    operands = [
        (ops.weight if i in weights else ops.input)(name=str(i), shape=x.shape, dtype=x.dtype)
        for i, x in enumerate(region.inputs)
    ]
    node = ops.fused(*operands, region=region, layouts=tuple(map(tuple, layouts)))
    table = KernelTable(target.machine)
    kernel = table.kernel_for(node)
    if kernel is None:
        raise UnsupportedError(f"no kernel can be made of the region: {table.why(node)}")
    return KernelStep(kernel, tuple(range(len(kernel.program.params) + len(kernel.scratch) + 1)), node)


def run_region(
    region: Graph,
    inputs: Sequence[Tensor],
    sizes: Sizes,
    *,
    layouts: Sequence[Sequence[int]] | None = None,
    weights: Sequence[int] = (),
) -> list[Tensor]:
    """The results of a region's kernel, compiled for this machine.

    Args:
        region: a graph without weights.
        inputs: its inputs, of its dtypes.
        sizes: the sizes of its symbols.
        layouts: the order of each result's axes in memory; row-major by default.
        weights: the inputs that the kernel may read as packed weights.

    Raises:
        UnsupportedError: no kernel can be made of it.
        BackendError: the backend refuses the kernel.
    """
    plain = [range(x.tensor_type.rank) for x in region.outputs]
    target = Target.detect("cpu")
    step = step_of(region, plain if layouts is None else layouts, weights, target)
    return Probes([step], target).run(step, inputs, sizes)
