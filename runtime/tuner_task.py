"""What is tuned: one kernel of a model with the sizes that it is called at, as data that another process can read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import sympy
import torch
from torch import Tensor

from ..codegen.machine import Machine
from ..codegen.program import Program
from ..codegen.schedule import Schedule
from ..ir import ops
from ..ir.cost import cost_of, reads_of
from ..ir.errors import UnsupportedError
from ..ir.graph import Graph
from ..ir.interpret import interpret
from ..ir.node import Node
from ..ir.text import parse_graph, print_graph
from ..ir.types import TensorType, concrete
from .executable import Executable
from .kernels import KernelTable, in_place_of, layouts_of, region_of
from .plan import KernelStep, Place
from .roofs import last_cache_bytes

MOST_INTEGERS = 1 << 16  # of one operand; a larger one is drawn
Sizes = Mapping[sympy.Symbol, int]


@dataclass(frozen=True)
class Task:
    """A kernel to tune.

    Attributes:
        name: what the model's report calls the kernel.
        calls: how often one run of the model calls it.
        region: what it computes.
        layouts, in_place: of its results, as in the fused node.
        packed: the operands that may be packed ahead.
        orders: for each operand, the order of its axes in memory; None where it is row-major.
        sizes: of the region's symbols, by name.
        integers: values of operands that are integers, flat: positions and lengths decide how much there is to do.
        cold: the operands that a run finds in memory, not in a cache: the model's own, where a run reads more than the
            last cache holds. Others were written by the kernel before.
    """

    name: str
    calls: int
    region: Graph
    layouts: tuple[tuple[int, ...], ...]
    in_place: tuple[tuple[int, int], ...] = ()
    packed: frozenset[int] = frozenset()
    orders: tuple[tuple[int, ...] | None, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    integers: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    cold: frozenset[int] = frozenset()

    def to_dict(self) -> dict[str, Any]:
        """The task as data for JSON."""
        return {
            "name": self.name,
            "calls": self.calls,
            "region": print_graph(self.region),
            "layouts": self.layouts,
            "in_place": self.in_place,
            "packed": sorted(self.packed),
            "orders": self.orders,
            "sizes": dict(self.sizes),
            "integers": [[at, list(values)] for at, values in self.integers.items()],
            "cold": sorted(self.cold),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The task that :meth:`to_dict` made data of."""
        return cls(
            name=data["name"],
            calls=data["calls"],
            region=parse_graph(data["region"]),
            layouts=tuple(map(tuple, data["layouts"])),
            in_place=tuple((result, operand) for result, operand in data["in_place"]),
            packed=frozenset(data["packed"]),
            orders=tuple(None if order is None else tuple(order) for order in data["orders"]),
            sizes=dict(data["sizes"]),
            integers={at: tuple(values) for at, values in data["integers"]},
            cold=frozenset(data["cold"]),
        )

    def known(self) -> dict[sympy.Symbol, int]:
        """The sizes by symbol."""
        return {r.symbol: self.sizes[str(r.symbol)] for r in self.region.symbols}

    def step(self, machine: Machine, schedule: Callable[[Program], Schedule | None] | None = None) -> KernelStep:
        """A call of the kernel, with the schedule of its program that is chosen, or the default one.

        Raises:
            UnsupportedError: no kernel can be made of the region with that schedule.
        """
        operands = [self._operand(i, x) for i, x in enumerate(self.region.inputs)]
        node = ops.fused(*operands, region=self.region, layouts=self.layouts, in_place=self.in_place)
        mutated = frozenset(x for i, x in enumerate(operands) if x.is_a(ops.weight) and i not in self.packed)
        table = KernelTable(machine, mutated, schedules=schedule)
        kernel = table.kernel_for(node)
        if kernel is None:
            raise UnsupportedError(table.why(node))
        count = len(kernel.program.params) + len(kernel.scratch) + 1
        return KernelStep(kernel, tuple(range(count)), node)

    def _operand(self, at: int, x: Node) -> Node:
        """A value that lies in memory as the operand does; what another kernel stored has an order of its own."""
        if at in self.packed:
            return ops.weight(name=str(at), shape=x.shape, dtype=x.dtype)
        made = ops.input(name=str(at), shape=x.shape, dtype=x.dtype)
        order = self.orders[at] if self.orders else None
        if order is None:
            return made
        stored = ops.input(name="stored", shape=x.shape, dtype=x.dtype)
        return ops.fused(made, region=Graph([stored], [stored], symbols=self.region.symbols), layouts=(order,))


def tasks_of(executable: Executable, inputs: Sequence[Tensor], sizes: Sizes) -> list[Task]:
    """The kernels of an executable at the sizes of a call, each once, in the order of their first calls.

    Args:
        executable: whose kernels.
        inputs: the call's tensors, in the order of the graph's inputs.
        sizes: of the graph's symbols.
    """
    steps = [s for s in executable.plan.steps if isinstance(s, KernelStep)]
    first = {s.kernel.name: s for s in reversed(steps)}
    calls = {name: sum(s.kernel.name == name for s in steps) for name in dict.fromkeys(s.kernel.name for s in steps)}
    integers = _integers(executable, [first[name] for name in calls], inputs, sizes)
    tasks = [_task(first[name], count, integers, sizes) for name, count in calls.items()]
    read = sum(t.calls * int(cost_of(t.region, t.in_place).at(t.known()).nbytes) for t in tasks)
    if read <= last_cache_bytes():
        return tasks
    return [replace(t, cold=_cold(executable, first[t.name], t)) for t in tasks]


def _cold(executable: Executable, step: KernelStep, task: Task) -> frozenset[int]:
    """The operands that are the model's own; of a table only some rows are read, which are few."""
    region, sizes = task.region, task.known()
    reads = reads_of(region, {region.outputs[result] for result, _ in task.in_place})
    mine = [i for i in range(len(region.inputs)) if executable.plan.buffers[step.buffers[i]].place is Place.WEIGHT]
    most = {i: concrete(region.inputs[i].tensor_type.nbytes, sizes) for i in mine}
    return frozenset(i for i in mine if 2 * concrete(reads[region.inputs[i]], sizes) >= most[i])


def _task(step: KernelStep, calls: int, integers: Mapping[Node, Tensor], sizes: Sizes) -> Task:
    region = region_of(step.node)
    table = KernelTable(Machine(), frozenset())
    packed = {i for i, p in enumerate(step.kernel.program.inputs) if p.format.value != "strided"}
    weights = {i for i, x in enumerate(step.node.inputs) if table.operand(x).weight}
    return Task(
        name=step.kernel.name,
        calls=calls,
        region=region,
        layouts=tuple(map(tuple, layouts_of(step.node))),
        in_place=in_place_of(step.node),
        packed=frozenset(packed if packed <= weights else weights),
        orders=tuple(map(order_of, step.node.inputs)),
        sizes={str(r.symbol): sizes[r.symbol] for r in region.symbols},
        integers={
            i: tuple(int(v) for v in integers[x].reshape(-1)) for i, x in enumerate(step.node.inputs) if x in integers
        },
    )


def order_of(value: Node) -> tuple[int, ...] | None:
    """The order of a value's axes in memory, as its kernel stores it; None where it is row-major."""
    source = value.inputs[0] if value.is_a(ops.item) else value
    if not source.is_a(ops.fused):
        return None
    order = tuple(layouts_of(source)[int(value.attrs["index"]) if value.is_a(ops.item) else 0])  # type: ignore[arg-type]
    return None if order == tuple(range(len(order))) else order


def _integers(
    executable: Executable, steps: Sequence[KernelStep], inputs: Sequence[Tensor], sizes: Sizes
) -> dict[Node, Tensor]:
    """The values of small integer operands in a run."""
    wanted = list(dict.fromkeys(x for step in steps for x in step.node.inputs if _decides(x, sizes)))
    if not wanted:
        return {}
    graph = executable.plan.graph
    asked = Graph(graph.inputs, wanted, symbols=graph.symbols)
    with torch.no_grad():
        values = interpret(asked, inputs, executable._values, sizes=sizes).outputs
    return dict(zip(wanted, values, strict=True))


def _decides(value: Node, sizes: Sizes) -> bool:
    type_ = value.type
    if not isinstance(type_, TensorType) or type_.dtype.is_floating_point or type_.dtype.is_complex:
        return False
    return concrete(type_.numel, sizes) <= MOST_INTEGERS
