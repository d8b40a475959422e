"""Levels: a number for each kernel that is greater than those of all kernels that it needs, kept while kernels join.

Whether one kernel needs another is then asked of few: nothing at or below a kernel's level needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

from ..ir.graph import Graph
from ..ir.node import Node, Trait
from .groups import Group

Unit: TypeAlias = Group | Node  # a kernel, or a node that is in none


class Levels:
    """The levels of the kernels of a graph while they are made.

    Args:
        graph: the graph.
        group_of: the kernel that each node is in, kept by the caller.
        bases: the values that a node reads, through whatever views.
    """

    def __init__(self, graph: Graph, group_of: Mapping[Node, Group], bases: Callable[[Node], Iterable[Node]]) -> None:
        self.graph, self.group_of, self.bases = graph, group_of, bases
        self.level: dict[Unit, int] = {}

    def of(self, unit: Unit) -> int:
        """The level of a kernel or node; 0 for what needs nothing."""
        return self.level.get(unit, 0)

    def add(self, unit: Unit) -> None:
        """Enter what nothing needs yet."""
        self.level[unit] = self._above(unit)

    def join(self, merged: Unit, parts: Iterable[Unit]) -> None:
        """Enter a kernel in place of those that it is made of, and raise what needs it where it must be."""
        for part in parts:
            self.level.pop(part, None)
        self.level[merged] = self._above(merged)
        waiting = [merged]
        while waiting:
            unit = waiting.pop()
            for reader in self._readers(unit):
                if self.level[reader] <= self.level[unit]:
                    self.level[reader] = self.level[unit] + 1
                    waiting.append(reader)

    def needs(self, unit: Unit) -> Iterator[Node]:
        """The values that a kernel reads and does not make."""
        return (x for node in _nodes(unit) for x in self.bases(node) if self.unit(x) is not unit)

    def unit(self, node: Node) -> Unit:
        """The kernel that makes a value, or the node itself."""
        return self.group_of.get(node, node)

    def _above(self, unit: Unit) -> int:
        return 1 + max((self.of(self.unit(x)) for x in self.needs(unit)), default=0)

    def _readers(self, unit: Unit) -> Iterator[Unit]:
        stack = [user for node in _nodes(unit) for user in self.graph.users[node]]
        while stack:
            user = stack.pop()
            if user.has(Trait.VIEW) and user not in self.group_of:
                stack.extend(self.graph.users[user])
            elif self.unit(user) is not unit and self.unit(user) in self.level:
                yield self.unit(user)


def _nodes(unit: Unit) -> Iterable[Node]:
    return (unit,) if isinstance(unit, Node) else unit.nodes
