"""A plan as JSON and back: where every tensor lies, and the steps, without the kernels that were made into native code.

The graph of a plan is kept as far as a run looks at it: what is read of it are inputs, the views through which results
are returned, the values of mutations, and the steps that PyTorch runs. Every other value stands in it as a source named
after its buffer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...codegen.schedule import PanelLayout
from ...ir import ops
from ...ir.graph import Graph, Mutation
from ...ir.node import Node, Trait
from ...ir.parse import parse_graph, parse_type
from ...ir.text import print_graph, print_type
from ...ir.types import TensorType
from ..executable import Executable
from ..plan import Buffer, Packing, Place, Plan, TorchStep
from .values import NoForm, Symbols, dim_data, dim_of

_SOURCE = "."  # no weight's name begins so


def plan_data(executable: Executable) -> dict[str, Any]:
    """The plan of an executable as JSON.

    Raises:
        NoForm: it runs an operator that is not PyTorch's own.
    """
    plan = executable.plan
    cut = _Cut(plan)
    steps = [host for host in executable.hosts if isinstance(host, TorchStep)]
    for step in steps:
        _check_operators(step.node)
    outputs = [*map(cut.node, plan.graph.outputs), *(cut.step(step.node) for step in steps)]
    mutations = [Mutation(cut.node(m.target), cut.node(m.value)) for m in plan.graph.mutations]
    derived = Graph([], executable.derived.values())
    numbers = iter(range(len(steps)))
    hosts = [next(numbers) if isinstance(h, TorchStep) else f"main{i}" for i, h in enumerate(executable.hosts)]
    return {
        "graph": print_graph(Graph(plan.graph.inputs, outputs, mutations, plan.graph.symbols)),
        "results": len(plan.graph.outputs),
        "buffers": [_buffer_data(buffer) for buffer in plan.buffers],
        "home": {name: buffer.position for name, buffer in _sources(plan).items()},
        "live": [[position, *between] for position, between in plan.live.items()],
        "written": [list(pair) for pair in plan.written.items()],
        "reuse": [list(pair) for pair in plan.reuse.items()],
        "unread": sorted(plan.unread),
        "hosts": hosts,
        "steps": [list(step.results) for step in steps],
        "derived": {"names": list(executable.derived), "graph": print_graph(derived)},
    }


def plan_of(data: Mapping[str, Any]) -> tuple[Plan, list[str | TorchStep], dict[str, Node]]:
    """The plan that :func:`plan_data` wrote, what runs its segments (native ones by name), and the derived weights.

    Raises:
        ParseError, KeyError, TypeError, ValueError, IndexError: the data is damaged.
    """
    whole = parse_graph(data["graph"])
    results = data["results"]
    graph = Graph(whole.inputs, whole.outputs[:results], whole.mutations, whole.symbols)
    symbols = [r.symbol for r in graph.symbols]
    types: dict[str, TensorType] = {}
    buffers = [_buffer_of(kept, i, symbols, types) for i, kept in enumerate(data["buffers"])]
    steps = [TorchStep(node, tuple(at)) for node, at in zip(whole.outputs[results:], data["steps"], strict=True)]
    named = {_key(node): node for node in whole.nodes if node.has(Trait.SOURCE)}
    plan = Plan(
        graph,
        buffers,
        list(steps),
        {node: buffers[data["home"][key]] for key, node in named.items() if key in data["home"]},
        {position: (first, last) for position, first, last in data["live"]},
        dict(map(tuple, data["written"])),
        dict(map(tuple, data["reuse"])),
        frozenset(data["unread"]),
    )
    for node in named.values():
        if str(node.attrs["name"]).startswith(_SOURCE):
            plan.home[node] = buffers[int(str(node.attrs["name"])[len(_SOURCE) :])]
    derived = parse_graph(data["derived"]["graph"]).outputs
    hosts = [host if isinstance(host, str) else steps[host] for host in data["hosts"]]
    return plan, hosts, dict(zip(data["derived"]["names"], derived, strict=True))


class _Cut:
    """The nodes of a plan's graph, with what is computed before them replaced by sources."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def node(self, node: Node) -> Node:
        """A value as a run finds it: views of what lies in a buffer."""
        views = []
        while node.has(Trait.VIEW):
            views.append(node)
            node = node.inputs[0]
        found = node if node.has(Trait.SOURCE) else self._source(node)
        for view in reversed(views):
            found = view.with_inputs((found,))
        return found

    def step(self, node: Node) -> Node:
        """A step of PyTorch's on such values."""
        return node.with_inputs(tuple(map(self.node, node.inputs)))

    def _source(self, node: Node) -> Node:
        buffer, type_ = self.plan.home[node], node.tensor_type
        return ops.weight(name=f"{_SOURCE}{buffer.position}", shape=type_.shape, dtype=type_.dtype)


def _sources(plan: Plan) -> dict[str, Buffer]:
    return {_key(node): buffer for node, buffer in plan.home.items() if node.has(Trait.SOURCE)}


def _key(node: Node) -> str:
    return f"{node.op.name} {node.attrs['name']}"


def _check_operators(node: Node) -> None:
    """That PyTorch's own operators are called: what others do is not known by the version of PyTorch."""
    region = node.attrs.get("region")
    for one in (node, *(region.nodes if isinstance(region, Graph) else ())):
        if one.is_a(ops.aten_call) and not str(one.attrs["target"]).startswith("aten."):
            raise NoForm(f"the model calls the operator {one.attrs['target']}")


def _buffer_data(buffer: Buffer) -> list[Any]:
    packing = None
    if buffer.packing is not None:
        packing = [buffer.packing.layout.tile, buffer.packing.layout.group, buffer.packing.transposed]
    strides = [dim_data(stride) for stride in buffer.strides]
    return [buffer.place.value, print_type(buffer.type), strides, buffer.name, packing]


def _buffer_of(kept: Sequence[Any], position: int, symbols: Symbols, types: dict[str, TensorType]) -> Buffer:
    place, text, strides, name, packing = kept
    type_ = types.get(text)
    if type_ is None:
        read = parse_type(text, symbols)
        if not isinstance(read, TensorType):
            raise ValueError(f"{text} is several tensors")
        type_ = types[text] = read
    made = None
    if packing is not None:
        tile, group, transposed = packing
        made = Packing(PanelLayout(tile, group), transposed)
    return Buffer(position, Place(place), type_, tuple(dim_of(s, symbols) for s in strides), name, made)
