"""From groups to the fused graph: each group becomes one ``fused`` node around a region of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import sympy

from ..ir import ops
from ..ir.graph import Graph
from ..ir.node import Node, Trait, through_views, topological
from ..ir.types import Dim, SymbolRange, TensorType, symbols_of
from .groups import Group, Kind


def build(graph: Graph, groups: Sequence[Group]) -> Graph:
    """The graph with each group as one ``fused`` node, in an order that its dependencies allow."""
    builder = _Builder(graph)
    for group in groups:
        for node in group.nodes:
            builder.group_of[node] = group
    return graph.with_roots(builder.value)


class _Builder:
    """Rebuilds a graph bottom up. A group is built when one of its values is first asked for; no recursion."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.group_of: dict[Node, Group] = {}
        self.new: dict[Node, Node] = {}

    def value(self, root: Node) -> Node:
        """What stands for a node in the new graph."""
        stack = [root]
        while stack:
            node = stack[-1]
            if node in self.new:
                stack.pop()
                continue
            waiting = [x for x in self.needs(node) if x not in self.new]
            if waiting:
                stack.extend(waiting)
            else:
                self.build(node)
        return self.new[root]

    def needs(self, node: Node) -> list[Node]:
        group = self.group_of.get(node)
        return list(node.inputs) if group is None else self.operands(group)

    def operands(self, group: Group) -> list[Node]:
        """The values from outside that a group reads, through views."""
        members = set(group.nodes)
        found: dict[Node, None] = {}
        for node in group.nodes:
            for x in node.inputs:
                base = through_views(x, self.group_of)
                if base not in members and (base in self.group_of or not base.has(Trait.CREATION)):
                    found[base] = None
        return list(found)

    def build(self, node: Node) -> None:
        group = self.group_of.get(node)
        if group is None:
            self.new[node] = node.with_inputs(tuple(self.new[x] for x in node.inputs))
            return
        operands = self.operands(group)
        outputs = self.outputs(group)
        region = make_region(operands, outputs, self.graph.symbols)
        layouts = tuple(self.layout(x) for x in outputs)
        made = ops.fused(*(self.new[x] for x in operands), region=region, layouts=layouts)
        made.keep_origin(group.nodes[-1].origin)
        made.origin.made_by = made.origin.made_by or "fuse"
        results = ops.results(made)
        if group.kind is Kind.RECURRENCE:
            self.new[group.nodes[0]] = made
            return
        for output, result in zip(outputs, results, strict=True):
            self.new[output] = result.keep_origin(output.origin)
        for inner in group.nodes:
            self.new.setdefault(inner, inner)  # never read outside: any value will do

    def outputs(self, group: Group) -> list[Node]:
        """The values of a group that are read outside of it, or by the caller."""
        if group.kind is Kind.RECURRENCE:
            return list(ops.results(group.nodes[0]))
        members = set(group.nodes)
        roots = self.graph.root_set
        return [n for n in group.nodes if n in roots or any(self.leaves(u, members) for u in self.graph.users[n])]

    def leaves(self, user: Node, members: set[Node]) -> bool:
        """Whether a reader, or one of the readers of a view, stands outside the group."""
        stack = [user]
        roots = self.graph.root_set
        while stack:
            node = stack.pop()
            if node in members:
                continue
            if not node.has(Trait.VIEW) or node in roots:
                return True
            stack.extend(self.graph.users[node])
        return False

    def layout(self, node: Node) -> tuple[int, ...]:
        """The order of a result's axes in memory: that of the readers who permute it and then reshape."""
        default = tuple(range(node.tensor_type.rank))
        if node in self.graph.root_set:
            return default
        for user in self.graph.users.get(node, ()):
            if user.is_a(ops.permute) and any(u.is_a(ops.reshape) for u in self.graph.users[user]):
                return tuple(user.attrs["dims"])  # type: ignore[arg-type]
        return default


def make_region(operands: Sequence[Node], outputs: Sequence[Node], symbols: Sequence[SymbolRange]) -> Graph:
    """The graph of one kernel: operands become inputs "0", "1" and so on."""
    new: dict[Node, Node] = {}
    for i, x in enumerate(operands):
        new[x] = ops.input(name=str(i), shape=x.shape, dtype=x.dtype)
    for node in topological(outputs, operands):
        new[node] = node.with_inputs(tuple(new[x] for x in node.inputs))
    used = set(_symbols(topological([new[x] for x in (*operands, *outputs)])))
    return Graph((new[x] for x in operands), (new[x] for x in outputs), (), (r for r in symbols if r.symbol in used))


def _symbols(nodes: Iterable[Node]) -> Iterator[sympy.Symbol]:
    """Every size symbol in the types and attributes of nodes."""
    for node in nodes:
        types = getattr(node.type, "items", (node.type,))
        for type_ in types:
            assert isinstance(type_, TensorType)
            yield from symbols_of(type_.shape)
        yield from symbols_of(_dims(tuple(node.attrs.values())))


def _dims(values: Iterable[object]) -> list[Dim]:
    found: list[Dim] = []
    stack = list(values)
    while stack:
        value = stack.pop()
        if isinstance(value, tuple):
            stack.extend(value)
        elif isinstance(value, sympy.Expr):
            found.append(value)
    return found
