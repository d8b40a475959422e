"""A model's Triton kernels launched one after another on PyTorch's tensors.

The plain way: every value has memory of its own, which PyTorch's allocator gives. It runs on a GPU, and, in a process
with ``TRITON_INTERPRET=1``, on the CPU, which shows that the launches are right without one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import sympy
import torch
from torch import Tensor

from ..codegen.triton.expression import ERROR
from ..frontend.capture import Capture
from ..ir import ops
from ..ir.graph import Graph
from ..ir.interpret import evaluate, interpret
from ..ir.node import Node
from ..ir.types import concrete
from .gpu import GpuKernel, GpuModel
from .kernels import in_place_of, layouts_of, strides_of_value

Sizes = Mapping[sympy.Symbol, int]
Launcher = Callable[[GpuKernel, Mapping[str, Tensor], Sizes], None]


def launch_kernel(kernel: GpuKernel, buffers: Mapping[str, Tensor], sizes: Sizes) -> None:
    """Launch a kernel by Triton."""
    # imported here: it needs Triton
    from ..codegen.triton.launch import run

    run(kernel.file, buffers, sizes)


class GpuExecutable:
    """A model's kernels with its weights on one device.

    Args:
        model: the kernels.
        capture: what they were made of; its weights are copied where they are on another device.
        device: where everything lies.
        launcher: what launches a kernel.
        copy: whether weights are copied in any case, so that the model's own state stays as it is.
    """

    def __init__(
        self,
        model: GpuModel,
        capture: Capture,
        device: torch.device | str,
        launcher: Launcher = launch_kernel,
        *,
        copy: bool = False,
    ) -> None:
        self.model, self.device, self.launcher = model, torch.device(device), launcher
        values = dict(capture.weights)
        for name, node in model.derived.items():
            (values[name],) = evaluate([node], values)
        names = {str(node.attrs["name"]) for node in model.graph.weights()}
        kept = {n: x.detach().contiguous().to(self.device) for n, x in values.items() if n in names}
        self.weights = {n: x.clone() for n, x in kept.items()} if copy else kept

    def run(self, tensors: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        """The graph's outputs for its input tensors, dense and on the device; its mutations are done.

        Raises:
            IndexError: an index from data was out of range.
        """
        graph = self.model.graph
        known = dict(zip(graph.inputs, tensors, strict=True))
        known |= {node: self.weights[str(node.attrs["name"])] for node in graph.weights()}
        error = torch.zeros(1, dtype=torch.int64, device=self.device)
        with torch.no_grad():
            for node in graph.nodes:
                if node not in known and not node.is_a(ops.item):
                    self._step(node, known, sizes, error)
            outputs = [known[node].clone() for node in graph.outputs]
            if error.item():
                raise IndexError("index out of range: an index given to embedding, gather or scatter is outside")
            changed = [m for m in graph.mutations if known[m.value] is not known[m.target]]
            values = [known[m.value].clone() for m in changed]
            for mutation, value in zip(changed, values, strict=True):
                known[mutation.target].copy_(value)
        return outputs

    def _step(self, node: Node, known: dict[Node, Tensor], sizes: Sizes, error: Tensor) -> None:
        kernel = self.model.kernel_of.get(node)
        results = ops.results(node)
        if kernel is None:
            found = _by_torch(node, [known[x] for x in node.inputs], sizes)
        else:
            found = self._launch(kernel, node, known, sizes, error)
        known.update(zip(results, found, strict=True))

    def _launch(
        self, kernel: GpuKernel, node: Node, known: Mapping[Node, Tensor], sizes: Sizes, error: Tensor
    ) -> list[Tensor]:
        taken = {result: known[node.inputs[operand]] for result, operand in in_place_of(node)}
        results = [
            taken[i] if i in taken else self._blank(r.tensor_type.shape, strides_of_value(r), r.dtype, sizes)
            for i, r in enumerate(ops.results(node))
        ]
        assert len(results) == len(layouts_of(node))
        program = kernel.program
        buffers = {p.name: known[x] for p, x in zip(program.inputs, node.inputs, strict=True)}
        buffers |= {p.name: x for p, x in zip(program.outputs, results, strict=True)}
        for p in kernel.file.scratch:
            buffers[p.name] = self._blank(p.type.shape, p.strides, p.type.dtype, sizes)
        self.launcher(kernel, buffers | {ERROR: error}, sizes)
        return results

    def _blank(self, shape: Sequence[object], strides: Sequence[object], dtype: torch.dtype, sizes: Sizes) -> Tensor:
        size, stride = ([concrete(d, sizes) for d in dims] for dims in (shape, strides))
        return torch.empty_strided(size, stride, dtype=dtype, device=self.device)


def _by_torch(node: Node, operands: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
    """The results of what no kernel computes: views, and what PyTorch runs."""
    inputs = [ops.input(name=str(i), shape=x.shape, dtype=x.dtype) for i, x in enumerate(node.inputs)]
    alone = ops.results(node.with_inputs(tuple(inputs)))
    return [x.contiguous() for x in interpret(Graph(inputs, alone), operands, {}, sizes=sizes).outputs]
