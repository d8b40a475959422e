"""Fusion: operators become groups, each group one ``fused`` node, and each fused node one kernel.

Operators are taken in order; each joins the groups of its operands where that is legal and keeps the kernel's shape, or
starts a group of its own. Views never make a kernel: whoever reads a view reads through it. What is refused, and why,
is kept in a :class:`FusionReport`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import sympy

from ..ir import ops
from ..ir.graph import Graph
from ..ir.node import Node, Trait, through_views
from ..ir.types import Dim, Shape, product
from .groups import Group, Kind
from .levels import Levels
from .log import FUSE, Fuel, Log
from .prologue import chooses_matrices, refuse_queries, refuse_rows
from .regions import build

MAX_NODES = 24  # operators in one kernel: a longer chain gains nothing and only makes a larger kernel
CHEAP_FLOPS = 4  # per element: a value this cheap may be computed again for each element it broadcasts to


@dataclass(frozen=True)
class Refusal:
    """A fusion that was considered and not made. ``bytes_saved`` is what it would have kept out of memory."""

    producer: Node
    consumer: Node
    reason: str
    bytes_saved: Dim


@dataclass
class FusionReport:
    """What fusion did: what it refused, and the number of the kernel that each operator became part of.

    Two operators that came into one kernel by another way were not refused.
    """

    refusals: list[Refusal] = field(default_factory=list)
    kernel_of: dict[Node, int] = field(default_factory=dict)


def fuse(graph: Graph, fuel: Fuel | None = None, report: FusionReport | None = None, log: Log | None = None) -> Graph:
    """The graph with every operator that a kernel can be made of inside a ``fused`` node."""
    fusion = _Fusion(graph, fuel or Fuel(), report if report is not None else FusionReport())
    fusion.log = log if log is not None else fusion.log
    for node in graph.nodes:
        if is_kernel_work(node, graph):
            fusion.place(node)
        elif not node.has(Trait.SOURCE, Trait.VIEW, Trait.CREATION):
            fusion.levels.add(node)
    fusion.conclude()
    return build(graph, fusion.groups)


def split(node: Node) -> Graph:
    """The region of a fused node with each operator in a fused node of its own.

    For a region that a backend cannot make one kernel of: its parts are tried one by one.
    """
    region = node.attrs["region"]
    assert isinstance(region, Graph)
    return fuse(region, Fuel(limit=0))


def is_kernel_work(node: Node, graph: Graph) -> bool:
    """Whether a node must be computed by a kernel: not a source, a view, a constant, or PyTorch's work."""
    if node.has(Trait.SOURCE, Trait.PROJECTION, Trait.OPAQUE, Trait.REGION):
        return False
    users = graph.users[node]
    if node.has(Trait.VIEW):
        return any(user.has(Trait.RECURRENCE) for user in users)  # its kernel reads dense tensors only
    if node.has(Trait.CREATION):
        returned = any(through_views(root) is node for root in graph.roots)
        return returned or any(user.has(Trait.OPAQUE, Trait.RECURRENCE) for user in _readers(node, graph))
    return True


def _readers(node: Node, graph: Graph) -> Iterator[Node]:
    """What reads a node, through whatever views."""
    stack = list(graph.users[node])
    while stack:
        user = stack.pop()
        if user.has(Trait.VIEW):
            stack.extend(graph.users[user])
        yield user


def kind_of(node: Node) -> Kind:
    """The kind of kernel an operator alone needs."""
    if node.has(Trait.RECURRENCE):
        return Kind.RECURRENCE
    if node.has(Trait.SCATTER) and not node.is_a(ops.slice_put):
        return Kind.SCATTER
    if node.has(Trait.ATTENTION):
        return Kind.ATTENTION
    if node.has(Trait.CONTRACTION):
        return Kind.MATMUL
    return Kind.ROWS if node.has(Trait.REDUCTION, Trait.SCAN) else Kind.MAP


class _Fusion:
    def __init__(self, graph: Graph, fuel: Fuel, report: FusionReport) -> None:
        self.graph, self.fuel, self.report = graph, fuel, report
        self.position = {node: i for i, node in enumerate(graph.nodes)}
        self.group_of: dict[Node, Group] = {}
        self.roots = graph.root_set
        self.log = Log()
        self.levels = Levels(graph, self.group_of, self.bases)

    @property
    def groups(self) -> list[Group]:
        return list(dict.fromkeys(self.group_of.values()))

    def conclude(self) -> None:
        """Complete the report, once every node has its place."""
        numbers = {id(group): i for i, group in enumerate(self.groups)}
        self.report.kernel_of.update((node, numbers[id(group)]) for node, group in self.group_of.items())
        kernel = self.report.kernel_of
        self.report.refusals[:] = [r for r in self.report.refusals if kernel[r.producer] != kernel[r.consumer]]

    # --- where a node goes --------------------------------------------------------------------------------------------

    def place(self, node: Node) -> None:
        """Put a node into the groups of its operands, or into one of its own."""
        home = self.start(node)
        for producer in self.producers(node):
            group = self.group_of[producer]
            if group is home:
                continue
            reason = self.refuse(home, group, node, producer)
            if reason is None and self.fuel.spend(self.log, FUSE, producer, node):
                home = self.merge(group, home, node)
            elif reason is not None:
                self.report.refusals.append(Refusal(producer, node, reason, 2 * producer.tensor_type.nbytes))
        if home.kind is Kind.SCATTER:
            self.join_scatter(home, node)

    def join_scatter(self, home: Group, node: Node) -> None:
        """Put a write to places that data chooses beside an earlier one to the same places, as of keys and values."""
        earlier = (u for u in reversed(self.graph.users[node.inputs[-1]]) if self.writes_beside(u, node))
        other = next(earlier, None)
        if other is None or self.group_of[other] is home:
            return
        group = self.group_of[other]
        members = set(group.nodes)
        reads = any(through_views(x) in members for n in home.nodes for x in n.inputs)
        if (
            not reads
            and self.refuse_size_and_order(home, group) is None
            and self.fuel.spend(self.log, FUSE, other, node)
        ):
            self.merge(group, home, node)

    def writes_beside(self, other: Node, node: Node) -> bool:
        """Whether two ``index_put`` write to the same places of two tensors."""
        return (
            other is not node
            and other in self.group_of
            and other.is_a(ops.index_put)
            and other.op is node.op
            and other.inputs[2:] == node.inputs[2:]
            and other.inputs[0] is not node.inputs[0]
        )

    def start(self, node: Node) -> Group:
        kind = kind_of(node)
        domain = node.inputs[0].shape if kind is Kind.ROWS else () if kind is Kind.RECURRENCE else node.shape
        rows = ops.reduced_axes(node) if kind is Kind.ROWS else ()
        group = Group(kind, domain, [node], rows)
        self.group_of[node] = group
        self.levels.add(group)
        return group

    def producers(self, node: Node) -> list[Node]:
        """The computed values that a node reads, products and attention first: those gain most from an epilogue."""
        bases = dict.fromkeys(through_views(x, self.group_of) for x in node.inputs)
        computed = [b for b in bases if b in self.group_of]
        heavy = (Kind.MATMUL, Kind.ATTENTION)
        return sorted(computed, key=lambda b: (self.group_of[b].kind not in heavy, -self.position[b]))

    def merge(self, group: Group, home: Group, node: Node) -> Group:
        """One group of two; the heavier kind stays."""
        heavy = (Kind.MATMUL, Kind.ATTENTION)
        if home.kind in heavy or len(home.nodes) > 1 or home.kind is Kind.ROWS or group.kind is Kind.MAP:
            kept = home if home.kind is not Kind.MAP or group.kind is Kind.MAP else group
        else:
            kept = group
        domain, rows, kind = kept.domain, kept.rows, kept.kind
        if kind is Kind.MAP:
            domain = node.shape
        merged = Group(kind, domain, sorted(group.nodes + home.nodes, key=self.position.__getitem__), rows)
        merged.before = group.before | home.before
        if node.has(Trait.CONTRACTION, Trait.ATTENTION):
            merged.before |= frozenset(group.nodes)
        for member in merged.nodes:
            self.group_of[member] = merged
        self.levels.join(merged, (group, home))
        return merged

    # --- legality -----------------------------------------------------------------------------------------------------

    def refuse(self, home: Group, group: Group, node: Node, producer: Node) -> str | None:
        """Why the group of ``producer`` and the group of ``node`` cannot be one kernel; None when they can."""
        return self.refuse_shapes(home, group, node, producer) or self.refuse_size_and_order(home, group)

    def refuse_size_and_order(self, home: Group, group: Group) -> str | None:
        if len(home.nodes) + len(group.nodes) > MAX_NODES:
            return "the kernel would be too large"
        return "another kernel between them needs its result" if self.separated(group, home) else None

    def refuse_shapes(self, home: Group, group: Group, node: Node, producer: Node) -> str | None:
        if home.kind is Kind.SCATTER and group.kind is Kind.MAP:
            return self.refuse_written(group, node, producer)
        alone = (Kind.RECURRENCE, Kind.SCATTER)
        if home.kind in alone or group.kind in alone:
            return f"{_a(group.kind)} kernel stands alone"
        if node.has(Trait.CONTRACTION, Trait.ATTENTION):
            return self.refuse_prologue(group, node, producer)
        if self.reads_back(home, group):
            return "it reads what is computed before the product of the kernel"
        if node.has(Trait.CONCAT, Trait.GATHER) or node.is_a(ops.slice_put):
            return f"{node.op.name} reads its operands at other positions"
        both_rows = home.kind is group.kind is Kind.ROWS
        if Kind.MAP not in (home.kind, group.kind) and not both_rows:
            return f"{_a(group.kind)} and {_a(home.kind)} in one kernel"
        if group.kind is Kind.MAP:
            return self.refuse_map(home, group, node, producer)
        return self.refuse_epilogue(home, group, node, producer)

    def refuse_written(self, group: Group, node: Node, producer: Node) -> str | None:
        """A group of pointwise work before a write to places that data chooses."""
        value = node.inputs[1] if node.is_a(ops.index_put) else node.inputs[-1]
        if any(through_views(x) is producer for x in node.inputs if x is not value):
            return "what is written to, and where, is read at other positions"
        if product(value.shape) != product(producer.shape) or not self.only_reader(group, node):
            return "its value is read elsewhere too"
        return None

    def refuse_prologue(self, group: Group, node: Node, producer: Node) -> str | None:
        """Work on the operands of a product or an attention."""
        if node.has(Trait.ATTENTION):
            if group.kind is not Kind.MAP:
                return f"{_a(group.kind)} and an attention in one kernel"
            return refuse_queries(node, producer, group.nodes, group.domain, self.only_reader(group, node))
        if chooses_matrices(node, producer, group.nodes) and self.only_reader(group, node):
            return None
        last = producer.tensor_type.rank - 1
        if group.kind not in (Kind.MAP, Kind.ROWS) or (group.kind is Kind.ROWS and group.rows != (last,)):
            return "operands of a product are read many times"
        if group.domain != producer.shape:
            return "the shapes of the kernels differ"
        return refuse_rows(node, producer, group.nodes, self.escaping(group, node))

    def escaping(self, group: Group, node: Node) -> list[Node]:
        """The values of a group that others than the node read, or the caller."""
        members = {*group.nodes, node}
        users = self.graph.users
        return [n for n in group.nodes if n in self.roots or any(u not in members for u in users[n])]

    def reads_back(self, home: Group, group: Group) -> bool:
        """Whether something after a product would read what is computed before it, where it is at other columns."""
        before = group.before | home.before
        later = (n for n in (*group.nodes, *home.nodes) if n not in before)
        reads = (x for n in later if not n.has(Trait.CONTRACTION, Trait.ATTENTION) for x in n.inputs)
        return bool(before) and any(through_views(x, self.group_of) in before for x in reads)

    def refuse_map(self, home: Group, group: Group, node: Node, producer: Node) -> str | None:
        """A group of pointwise work before the node."""
        if self.read_plainly(node, producer) and group.domain == home.domain and not node.is_a(ops.rope):
            return None
        if home.kind not in (Kind.MAP, Kind.ROWS):
            return f"{_a(home.kind)} kernel computes nothing before its product"
        if not self.only_reader(group, node):
            return "its value is read elsewhere too"
        if any(n.has(Trait.GATHER, Trait.CONCAT) for n in group.nodes):
            return "an indexed value is read through a view"
        cheap = all(isinstance(n.op.flops(n), int) or n.has(Trait.POINTWISE) for n in group.nodes)
        if product(group.domain) == product(home.domain) and not node.is_a(ops.rope):
            return None
        cost = sum(_flops_per_element(n) for n in group.nodes)
        return None if cheap and cost <= CHEAP_FLOPS else "it would be computed again for each element it is used for"

    def refuse_epilogue(self, home: Group, group: Group, node: Node, producer: Node) -> str | None:
        """A row reduction or a product before the node."""
        if node.is_a(ops.rope) or not node.has(Trait.POINTWISE, Trait.REDUCTION, Trait.SCAN):
            return f"{node.op.name} cannot follow a {group.kind.value} in its kernel"
        if not all(self.read_plainly(node, x) for x in group.nodes):
            return "the value is read through a view"
        if home.kind is Kind.MAP and home.domain not in self.result_shapes(group):
            return "the shapes of the kernels differ"
        if home.kind is Kind.ROWS and (home.domain, home.rows) != (group.domain, group.rows):
            return "the rows of the kernels differ"
        return None

    @staticmethod
    def result_shapes(group: Group) -> tuple[Shape, ...]:
        """The shapes that a kernel of this group can store."""
        if group.kind is not Kind.ROWS:
            return (group.domain,)
        kept = tuple(1 if i in group.rows else d for i, d in enumerate(group.domain))
        dropped = tuple(d for i, d in enumerate(group.domain) if i not in group.rows)
        return (group.domain, kept, dropped)

    @staticmethod
    def read_plainly(node: Node, producer: Node) -> bool:
        """Whether the node reads the producer's value directly, at no other position than its own."""
        return all(x is producer for x in node.inputs if through_views(x) is producer)

    def only_reader(self, group: Group, node: Node) -> bool:
        """Whether nothing but the node reads what the group computes, through whatever views."""
        members = set(group.nodes)
        stack = [user for member in group.nodes for user in self.graph.users[member] if user not in members]
        if any(member in self.roots for member in group.nodes):
            return False
        while stack:
            user = stack.pop()
            if user is node:
                continue
            if user in self.roots or not user.has(Trait.VIEW):
                return False
            stack.extend(self.graph.users[user])
        return True

    def separated(self, group: Group, home: Group) -> bool:
        """Whether one of two kernels needs the other through a third."""
        levels, both = self.levels, (group, home)
        floor = min(levels.of(group), levels.of(home))
        stack = [unit for x in both for unit in map(levels.unit, levels.needs(x)) if unit not in both]
        seen = set(stack)
        while stack:
            unit = stack.pop()
            if levels.of(unit) <= floor:
                continue
            for needed in map(levels.unit, levels.needs(unit)):
                if needed in both:
                    return True
                if needed not in seen:
                    seen.add(needed)
                    stack.append(needed)
        return False

    def bases(self, node: Node) -> Iterable[Node]:
        """The values that a node reads, through whatever views."""
        return (through_views(x, self.group_of) for x in node.inputs)


def _a(kind: Kind) -> str:
    """A kind of kernel with its article."""
    return f"an {kind.value}" if kind is Kind.ATTENTION else f"a {kind.value}"


def _flops_per_element(node: Node) -> int:
    flops, size = node.op.flops(node), node.tensor_type.numel
    ratio = sympy.cancel(sympy.sympify(flops) / size) if size != 0 else 0
    return int(ratio) if sympy.sympify(ratio).is_Integer else CHEAP_FLOPS + 1
