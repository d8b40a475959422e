"""What is tuned on a GPU: one kernel of a model with the sizes that it is called at, as data for another process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sympy
import torch
from torch import Tensor

from ..codegen.gpu import GpuMachine, GpuSchedule
from ..codegen.triton.module import emit
from ..ir import ops
from ..ir.errors import UnsupportedError
from ..ir.graph import Graph
from ..ir.interpret import evaluate, interpret
from ..ir.node import Node
from ..ir.types import TensorType, concrete
from .gpu import GpuKernel, GpuKernelTable, GpuModel
from .kernels import layouts_of, region_of
from .tuner_task import MOST_INTEGERS, Sizes, Task, order_of


@dataclass(frozen=True)
class GpuTask(Task):
    """A kernel to tune on a GPU; ``packed`` are the operands that are weights, of which none is packed."""

    def node(self) -> Node:
        """A fused node whose operands lie in memory as the model's do."""
        operands = [self._operand(i, x) for i, x in enumerate(self.region.inputs)]
        return ops.fused(*operands, region=self.region, layouts=self.layouts, in_place=self.in_place)

    def kernel(self, machine: GpuMachine, schedule: GpuSchedule | None = None) -> GpuKernel:
        """The kernel with a schedule, or with the default one.

        Raises:
            UnsupportedError: none can be made of the region, or not with that schedule.
        """
        node, table = self.node(), GpuKernelTable(machine)
        made = table.kernel_for(node)
        if made is None:
            raise UnsupportedError(table.why(node))
        if schedule is None or schedule == made.schedule:
            return made
        if type(schedule) is not type(made.schedule):
            raise UnsupportedError(f"a schedule of another kind than {type(made.schedule).__name__}: {schedule}")
        file = emit(made.name, made.program, schedule, self.region.symbols)
        return GpuKernel(made.name, made.region, made.program, schedule, file)


def gpu_tasks_of(
    model: GpuModel, weights: Mapping[str, Tensor], inputs: Sequence[Tensor], sizes: Sizes
) -> list[GpuTask]:
    """The kernels of a model at the sizes of a call, each once, in the order of their first calls.

    Args:
        model: whose kernels.
        weights: the capture's, by name.
        inputs: the call's tensors, in the order of the graph's inputs.
        sizes: of the graph's symbols.
    """
    calls = Counter(kernel.name for kernel in model.kernel_of.values())
    first: dict[str, Node] = {}
    for node in model.graph.nodes:
        if node in model.kernel_of:
            first.setdefault(model.kernel_of[node].name, node)
    integers = _integers(model, list(first.values()), weights, inputs, sizes)
    return [_task(name, calls[name], node, integers, sizes) for name, node in first.items()]


def _task(name: str, calls: int, node: Node, integers: Mapping[Node, Tensor], sizes: Sizes) -> GpuTask:
    region, in_place = region_of(node), node.attrs["in_place"]
    assert isinstance(in_place, tuple)
    return GpuTask(
        name=name,
        calls=calls,
        region=region,
        layouts=tuple(map(tuple, layouts_of(node))),
        in_place=in_place,
        packed=frozenset(i for i, x in enumerate(node.inputs) if x.is_a(ops.weight)),
        orders=tuple(map(order_of, node.inputs)),
        sizes={str(r.symbol): sizes[r.symbol] for r in region.symbols},
        integers={
            i: tuple(int(v) for v in integers[x].reshape(-1)) for i, x in enumerate(node.inputs) if x in integers
        },
    )


def _integers(
    model: GpuModel, nodes: Sequence[Node], weights: Mapping[str, Tensor], inputs: Sequence[Tensor], sizes: Sizes
) -> dict[Node, Tensor]:
    """The values of small integer operands in a run: positions and lengths decide how much there is to do."""
    wanted = list(dict.fromkeys(x for node in nodes for x in node.inputs if _decides(x, sizes)))
    if not wanted:
        return {}
    values = dict(weights)
    for name, definition in model.derived.items():
        (values[name],) = evaluate([definition], values)
    asked = Graph(model.graph.inputs, wanted, symbols=model.graph.symbols)
    with torch.no_grad():
        found = interpret(asked, inputs, values, sizes=sizes).outputs
    return dict(zip(wanted, found, strict=True))


def _decides(value: Node, sizes: Mapping[sympy.Symbol, int]) -> bool:
    type_ = value.type
    if not isinstance(type_, TensorType) or type_.dtype.is_floating_point or type_.dtype.is_complex:
        return False
    is_few_bits = value.is_a(ops.weight)  # a weight's numbers may be any
    return not is_few_bits and concrete(type_.numel, sizes) <= MOST_INTEGERS
