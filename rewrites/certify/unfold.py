"""What a node is made of: its composites by their definition, the sizes in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sympy

from ...ir.node import Node, topological
from ...ir.types import Dim


def decomposed(node: Node) -> Node:
    """A node with every composite replaced by its definition, down to primitives."""
    made: dict[Node, Node] = {}
    todo = [node]
    while todo:
        x = todo[-1]
        missing = [y for y in x.inputs if y not in made]
        if x in made or missing:
            todo.extend(missing) if x not in made else todo.pop()
            continue
        same = x.with_inputs(tuple(made[y] for y in x.inputs))
        if same.op.decompose is None:
            made[x] = same
        else:
            opened = same.op.decompose(*same.inputs, **same.attrs)
            made[x] = opened if all(y.op.decompose is None for y in topological([opened])) else decomposed(opened)
        todo.pop()
    return made[node]


def sizes_of(node: Node) -> Iterator[Dim]:
    """All sizes in a node's shape and attributes."""
    waiting: list[Any] = [node.shape, *node.attrs.values()]
    while waiting:
        value = waiting.pop()
        if isinstance(value, tuple):
            waiting.extend(value)
        elif isinstance(value, sympy.Expr):
            yield value
