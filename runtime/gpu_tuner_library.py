"""Kernels left to a library: a product to cuBLAS, attention to PyTorch's backends; what is around them by Triton.

A region with one product or one attention falls into what computes its operands, the call, and what follows; what is
not mere views in the first and the last is a kernel of its own, with the default schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codegen.gpu import GpuMachine
from ..codegen.schedule_data import LibrarySchedule
from ..ir import ops
from ..ir.errors import UnsupportedError
from ..ir.graph import Graph
from ..ir.interpret import interpret
from ..ir.node import Node, Trait, topological
from .gpu import GpuKernel, GpuKernelTable
from .tuner_task import Sizes

Launch = Callable[[GpuKernel, Sequence[Tensor], Sizes], list[Tensor]]

PRODUCTS = (ops.linear, ops.matmul)
_BACKENDS = {
    "attention": None,
    "attention-flash": "FLASH_ATTENTION",
    "attention-cudnn": "CUDNN_ATTENTION",
    "attention-efficient": "EFFICIENT_ATTENTION",
}


def library_schedules(region: Graph) -> tuple[LibrarySchedule, ...]:
    """The library calls that may stand for a region's kernel."""
    anchor = _anchor(region)
    if anchor is None:
        return ()
    if anchor.is_a(*PRODUCTS):
        return (LibrarySchedule(anchor.op.name),)
    return tuple(map(LibrarySchedule, _BACKENDS)) if _is_plain(anchor) else ()


def _anchor(region: Graph) -> Node | None:
    """The one node that a library may compute."""
    found = [n for n in region.nodes if n.has(Trait.CONTRACTION) or n.has(Trait.ATTENTION) or n.has(Trait.RECURRENCE)]
    return found[0] if len(found) == 1 and found[0].is_a(*PRODUCTS, ops.attention) else None


def _is_plain(attention: Node) -> bool:
    """Whether PyTorch's function has all that an attention has."""
    causal = bool(attention.attrs["causal"])
    return not attention.attrs["softcap"] and (
        len(attention.inputs) == 3 or (len(attention.inputs) == 4 and not causal)
    )


@dataclass(frozen=True)
class _Part:
    """A graph around the call: a kernel for what is computed, views for the rest.

    Attributes:
        graph: the whole.
        kernel: of the results that are computed; None where none is.
        used: the inputs that it takes, by number.
        made: the results that it gives, by number.
        views: the other results.
    """

    graph: Graph
    kernel: GpuKernel | None
    used: tuple[int, ...]
    made: tuple[int, ...]
    views: Graph

    def run(self, values: Sequence[Tensor], sizes: Sizes, launch: Launch) -> list[Tensor]:
        rest = iter(interpret(self.views, values, {}, sizes=sizes).outputs)
        found: dict[int, Tensor] = {}
        if self.kernel is not None:
            taken = [values[i].contiguous() for i in self.used]
            found = dict(zip(self.made, launch(self.kernel, taken, sizes), strict=True))
        return [found[i] if i in found else next(rest) for i in range(len(self.graph.outputs))]


class LibraryKernel:
    """A region whose product or attention a library computes.

    Raises:
        UnsupportedError: the region is not of that kind, or what is around the call has no kernel.
    """

    def __init__(self, region: Graph, schedule: LibrarySchedule, machine: GpuMachine) -> None:
        anchor = _anchor(region)
        if anchor is None or schedule not in library_schedules(region):
            raise UnsupportedError(f"no library computes this region as {schedule.name}")
        self.region, self.schedule, self.anchor = region, schedule, anchor
        table = GpuKernelTable(machine)
        symbols = region.symbols
        self.before = _part(Graph(region.inputs, list(anchor.inputs), symbols=symbols), table)
        result = ops.input(name="library", shape=anchor.shape, dtype=anchor.dtype)
        after = Graph(region.inputs, region.outputs, symbols=symbols).rebuild(
            lambda node, inputs: result if node is anchor else node.with_inputs(inputs)
        )
        self.after = _part(Graph([*region.inputs, result], after.outputs, symbols=symbols), table)

    def run(self, operands: Sequence[Tensor], sizes: Sizes, launch: Launch) -> list[Tensor]:
        """The region's results; ``launch`` launches a kernel on operands in row-major order."""
        with torch.no_grad(), _only(self.schedule.name):
            found = self.call(self.before.run(operands, sizes, launch))
            return self.after.run([*operands, found], sizes, launch)

    def call(self, operands: Sequence[Tensor]) -> Tensor:
        """The library's part."""
        if self.anchor.is_a(ops.linear):
            return F.linear(*operands)
        if self.anchor.is_a(ops.matmul):
            return torch.matmul(*operands)
        q, k, v, *mask = operands
        attrs: Mapping[str, Any] = self.anchor.attrs
        bias = mask[0][(None,) * (4 - mask[0].ndim)] if mask else None
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, bias, is_causal=bool(attrs["causal"]), scale=attrs["scale"], enable_gqa=grouped
        )


def _part(graph: Graph, table: GpuKernelTable) -> _Part:
    """A graph as a kernel, where it computes anything."""
    given = set(graph.inputs)
    made = tuple(i for i, x in enumerate(graph.outputs) if _is_computed(x, given))
    views = Graph(graph.inputs, [x for i, x in enumerate(graph.outputs) if i not in made], symbols=graph.symbols)
    if not made:
        return _Part(graph, None, (), (), views)
    outputs = [graph.outputs[i] for i in made]
    reached = set(topological(outputs))
    used = tuple(i for i, x in enumerate(graph.inputs) if x in reached)
    inputs = [graph.inputs[i] for i in used]
    node = ops.fused(
        *(ops.input(name=str(i), shape=x.shape, dtype=x.dtype) for i, x in enumerate(inputs)),
        region=Graph(inputs, outputs, symbols=graph.symbols),
        layouts=tuple(tuple(range(len(x.shape))) for x in outputs),
        in_place=(),
    )
    kernel = table.kernel_for(node)
    if kernel is None:
        raise UnsupportedError(table.why(node))
    return _Part(graph, kernel, used, made, views)


def _is_computed(value: Node, given: set[Node]) -> bool:
    """Whether a value is more than a view of an input."""
    while value not in given and value.has(Trait.VIEW):
        value = value.inputs[0]
    return value not in given


def _only(name: str) -> AbstractContextManager[Any]:
    """PyTorch restricted to one of its backends for attention."""
    backend = _BACKENDS.get(name)
    if backend is None:
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    made: AbstractContextManager[Any] = sdpa_kernel(getattr(SDPBackend, backend))
    return made
