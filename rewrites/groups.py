"""Groups of operators that become one kernel each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..ir.node import Node
from ..ir.types import Shape


class Kind(Enum):
    """What a group's kernel looks like; it decides what may join."""

    MAP = "map"
    ROWS = "rows"
    MATMUL = "matmul"
    ATTENTION = "attention"
    RECURRENCE = "recurrence"
    SCATTER = "scatter"


@dataclass(eq=False)
class Group:
    """Operators that become one kernel. ``domain`` is the shape its loops run over, ``rows`` the axes it combines."""

    kind: Kind
    domain: Shape
    nodes: list[Node]
    rows: tuple[int, ...] = ()
    before: frozenset[Node] = frozenset()  # what is computed before the product or the attention of the kernel
