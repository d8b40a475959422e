"""What a replacement changed, cut out of its graph: two small graphs of the same inputs.

Both start at a node and go down to what they share. A shared node becomes an input, unless it is the same for all
calls: constants stay, as rules look at their values.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..ir import ops
from ..ir.graph import Graph
from ..ir.node import Node, attr_key
from ..ir.types import SymbolRange, TupleType

MAX_DEPTH = 16  # of what only one side has: a rule looks no further, and what is below is replaced by an input

_BEFORE, _AFTER = 1, 2


@dataclass(frozen=True)
class Pair:
    """Two graphs that should mean the same: equal inputs, as many outputs of equal types.

    Attributes:
        cut: the nodes of the whole graph that the inputs stand for, in order.
    """

    before: Graph
    after: Graph
    cut: tuple[Node, ...] = ()


class Neighbourhoods:
    """Cuts out neighbourhoods; what it learns of a graph's nodes serves for all of them."""

    def __init__(self, symbols: Sequence[SymbolRange] = ()) -> None:
        self.symbols = tuple(symbols)
        self._height: dict[Node, int] = {}
        self._varies: dict[Node, bool] = {}

    def pair(self, before: Node, after: Node, keep: int = 0, depth: int = MAX_DEPTH) -> Pair:
        """The neighbourhood of a replacement.

        Args:
            before, after: the node and its replacement.
            keep: shared nodes fewer than so many steps below are part of both graphs, and no inputs.
            depth: what one side alone reaches becomes an input so many steps below.
        """
        cut, inside = self._cut((before, after), keep, depth)
        new = {x: ops.input(name=str(i), shape=x.shape, dtype=x.dtype) for i, x in enumerate(cut)}
        inputs = tuple(new.values())
        for node in sorted(inside, key=self._height.__getitem__):
            new[node] = node.with_inputs(tuple(new[x] for x in node.inputs))
        sides = [Graph(inputs, ops.results(new[x]), symbols=self.symbols) for x in (before, after)]
        return Pair(sides[0], sides[1], tuple(cut))

    def _cut(self, roots: tuple[Node, Node], keep: int, depth: int) -> tuple[list[Node], list[Node]]:
        """The nodes to replace by inputs, and those above them. The highest node is looked at first, so that by then
        it is known which sides reach it."""
        self._learn(roots)
        sides: dict[Node, int] = {}
        below: dict[Node, int] = {}
        waiting: list[tuple[int, int, Node]] = []

        def reach(node: Node, side: int, steps: int) -> None:
            if node not in sides:
                heapq.heappush(waiting, (-self._height[node], len(sides), node))
            sides[node] = sides.get(node, 0) | side
            below[node] = min(below.get(node, steps), steps)

        reach(roots[0], _BEFORE, 0)
        reach(roots[1], _AFTER, 0)
        cut: list[Node] = []
        inside: list[Node] = []
        while waiting:
            node = heapq.heappop(waiting)[2]
            shared = sides[node] == _BEFORE | _AFTER and below[node] >= keep
            if self._may_be_input(node) and (shared or below[node] >= depth or not node.inputs):
                cut.append(node)
                continue
            inside.append(node)
            for x in node.inputs:
                reach(x, sides[node], below[node] + 1)
        return cut, inside

    def _may_be_input(self, node: Node) -> bool:
        return self._varies[node] and not isinstance(node.type, TupleType)

    def _learn(self, roots: Iterable[Node]) -> None:
        """The heights of nodes, and whether their values depend on inputs and weights."""
        stack = list(roots)
        while stack:
            node = stack[-1]
            missing = [x for x in node.inputs if x not in self._height]
            if missing and node not in self._height:
                stack.extend(missing)
                continue
            stack.pop()
            self._height[node] = 1 + max((self._height[x] for x in node.inputs), default=-1)
            source = node.op in (ops.input, ops.weight) or bool(node.attrs.get("serial"))
            self._varies[node] = source or any(self._varies[x] for x in node.inputs)


def first_differences(before: Iterable[Node], after: Iterable[Node]) -> list[tuple[Node, Node]]:
    """The lowest pairs of nodes in which two graphs differ, for roots that should be equal one by one.

    Two nodes of one operator with equal attributes differ because of the operands that do.
    """
    found: dict[tuple[Node, Node], None] = {}
    seen: set[tuple[Node, Node]] = set()
    stack = [(b, a) for b, a in zip(before, after, strict=True) if b is not a]
    while stack:
        pair = stack.pop()
        if pair in seen:
            continue
        seen.add(pair)
        b, a = pair
        alike = b.op is a.op and len(b.inputs) == len(a.inputs) and b.type == a.type and _attrs(b) == _attrs(a)
        differing = [(x, y) for x, y in zip(b.inputs, a.inputs, strict=True) if x is not y] if alike else []
        if differing and all(x.type == y.type for x, y in differing):
            stack.extend(differing)
        else:
            found[pair] = None
    return list(found)


def _attrs(node: Node) -> dict[str, object]:
    return {name: attr_key(value) for name, value in node.attrs.items()}
