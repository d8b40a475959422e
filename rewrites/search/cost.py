"""What the search minimises: the time that the nodes of a graph take at least, each counted once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import sympy

from ...ir import ops
from ...ir.cost import NO_WORK, Cost, Roofs
from ...ir.node import Node, Trait, topological
from ..hoist import is_worth_keeping

PICOSECONDS = 1e12
# Costs are whole numbers, so that sums do not depend on their order. The last digits count nodes: of two terms that
# take the same time the one with fewer nodes is cheaper.
NODE = 1
TIME = 1 << 24
# How many weights below a constant are looked for.
REACH = 256


class CostModel:
    """The cost of single nodes, at some sizes and for a machine.

    A product or a reduction is a kernel: its operations or its bytes, and a launch. So is work on elements, except that
    what follows a product is done in that product's kernel, where only its operations count. Views are free, and so is
    what depends on weights alone and is small enough to be computed once at load.
    """

    def __init__(self, sizes: Mapping[sympy.Symbol, int], roofs: Roofs) -> None:
        self.sizes, self.roofs = sizes, roofs
        self._sources: dict[Node, frozenset[Node] | None] = {}
        self._known: dict[tuple[Node, bool], int] = {}

    def of(self, node: Node, follows: bool) -> int:
        """The cost of one node, without its operands; ``follows`` says whether it is done in a product's kernel."""
        key = (node, follows)
        if key not in self._known:
            self._known[key] = self._time(node, follows) * TIME + NODE
        return self._known[key]

    def total(self, roots: Iterable[Node]) -> int:
        """The cost of everything that the roots need."""
        total, products = 0, set[Node]()
        for node in topological(tuple(roots)):
            follows = any(x in products and may_follow(node, x) for x in node.inputs)
            if follows or self.is_product(node):
                products.add(node)
            total += self.of(node, follows)
        return total

    def is_product(self, node: Node) -> bool:
        """Whether a node is a kernel that others may be done in."""
        return node.has(Trait.CONTRACTION) and not self._is_hoisted(node)

    def seconds(self, total: int) -> float:
        """The time that is meant by a cost."""
        return (total // TIME) / PICOSECONDS

    def _time(self, node: Node, follows: bool) -> int:
        if node.has(*NO_WORK) or self._is_hoisted(node):
            return 0
        flops, written = node.op.flops(node), node.tensor_type.nbytes
        if node.has(Trait.POINTWISE) and follows:
            seconds = Cost(0, flops, 0).seconds(self.roofs, self.sizes) - self.roofs.launch_seconds
            return round(seconds * PICOSECONDS)
        moved = sum((x.tensor_type.nbytes for x in dict.fromkeys(node.inputs)), start=written)
        cost = Cost(flops, 0, moved) if node.has(Trait.CONTRACTION) else Cost(0, flops, moved)
        return round(cost.seconds(self.roofs, self.sizes) * PICOSECONDS)

    def _is_hoisted(self, node: Node) -> bool:
        sources = self._below(node)
        return sources is not None and is_worth_keeping(node, sources)

    def _below(self, node: Node) -> frozenset[Node] | None:
        """The weights that a node is computed from; None where it needs something else, or too many of them."""
        stack = [node]
        while stack:
            missing = [y for y in stack[-1].inputs if y not in self._sources]
            if missing:
                stack.extend(missing)
                continue
            x = stack.pop()
            if x not in self._sources:
                self._sources[x] = self._sources_of(x)
        return self._sources[node]

    def _sources_of(self, node: Node) -> frozenset[Node] | None:
        if node.op is ops.weight:
            return frozenset((node,))
        if node.op is ops.full and not node.shape:
            return frozenset()
        below = [self._sources[x] for x in node.inputs]
        if not below or any(found is None for found in below):
            return None
        union = frozenset[Node]().union(*(found for found in below if found is not None))
        return union if len(union) <= REACH else None


def may_follow(node: Node, operand: Node) -> bool:
    """Whether a node may be done in the kernel of an operand: the same elements, or a view of them."""
    return node.has(Trait.VIEW) or (node.has(Trait.POINTWISE) and node.shape == operand.shape)
