"""What the parts of lowering share: one region on its way to a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.types import Dim, Shape
from .bounds import Bounds
from .program import Axis, Expr, Index, Ref, Stage

Position: TypeAlias = tuple[Index, ...]


@dataclass(frozen=True)
class Operand:
    """How one operand of a region lies in memory: element strides, and whether it is a weight (packed ahead)."""

    strides: Shape
    weight: bool = False


@dataclass
class Rows:
    """The rows of a region with reductions: the shape that is combined, its axes, which of them are combined."""

    shape: Shape
    axes: tuple[Axis, ...]
    reduced: tuple[int, ...]

    def axes_of(self, shape: Shape) -> tuple[Axis, ...] | None:
        """The axes of a result: of the whole shape, of its rows, or of its rows with the combined dims as 1."""
        kept = tuple(a for i, a in enumerate(self.axes) if i not in self.reduced)
        if shape == self.shape:
            return self.axes
        if shape == tuple(a.size for a in kept):
            return kept
        units = tuple(Axis(a.name, 1) if i in self.reduced else a for i, a in enumerate(self.axes))
        return units if shape == tuple(a.size for a in units) else None


class Lowering(Protocol):
    """A region, what was made of it so far, and how to ask for more.

    Attributes:
        region: the region.
        operands: how its operands lie in memory.
        bounds: what is known of indices.
        stages: the stages so far, in order.
        anchors: the axes and the stage of each product: its result is read from there.
        packed: the parameters in panels, and whether of the transpose.
        rows: the rows that reductions combine.
        held: the index and the stage of what a product reads of its own kernel.
    """

    region: Graph
    operands: tuple[Operand, ...]
    bounds: Bounds
    stages: list[Stage]
    anchors: dict[Node, tuple[tuple[Axis, ...], Ref]]
    packed: dict[str, bool]
    rows: Rows | None
    held: dict[Node, tuple[Position, Ref]]

    def value(self, node: Node, index: Position) -> Expr:
        """The value of a node at an index."""

    def axis(self, name: str, size: Dim) -> Axis:
        """A new axis."""

    def axes_for(self, shape: Shape) -> tuple[Axis, ...]:
        """The axes of a shape: the same for equal shapes, of other names for other shapes."""


def index_of(axes: tuple[Axis, ...]) -> Position:
    """The index whose every position is the axis itself."""
    return tuple(0 if a.size == 1 else a.symbol for a in axes)


def loops(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The axes that are more than one point."""
    return tuple(a for a in axes if a.size != 1)
