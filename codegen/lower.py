"""From a fused region to its kernel program.

Values are pulled: the value of a node at an index is an expression over its operands' values at theirs. Views only
change indices, composites lower through their definitions, and a reduction becomes a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..ir import ops
from ..ir.errors import UnsupportedError
from ..ir.graph import Graph
from ..ir.node import Node, Trait
from ..ir.types import Dim, Shape, contiguous_strides
from . import products, quantized, scatter
from .bounds import Bounds
from .indexing import affine, broadcast_index, plus
from .inplace import InPlace, updating
from .lowering import Operand, Position, Rows, index_of, loops
from .pieces import Box, boxes_of
from .program import (
    Apply,
    Axis,
    Combine,
    Combiner,
    Expr,
    Format,
    Index,
    Load,
    Param,
    Program,
    Recurrence,
    Ref,
    Role,
    Skeleton,
    Stage,
    Store,
)
from .simplify import simplify_program
from .values import RULES, view_index

_REDUCERS = {
    ops.sum: Combiner.SUM,
    ops.prod: Combiner.PROD,
    ops.amax: Combiner.MAX,
    ops.amin: Combiner.MIN,
    ops.any: Combiner.ANY,
    ops.all: Combiner.ALL,
    ops.argmax: Combiner.ARGMAX,
    ops.argmin: Combiner.ARGMIN,
    ops.cumsum: Combiner.CUMSUM,
}


def strides_of(shape: Shape, layout: Sequence[int]) -> Shape:
    """The strides of a dense tensor whose axes lie in memory in the order ``layout``, the slowest first."""
    inner = contiguous_strides(tuple(shape[axis] for axis in layout))
    strides: list[Dim] = [0] * len(shape)
    for position, axis in enumerate(layout):
        strides[axis] = inner[position]
    return tuple(strides)


def lower(
    region: Graph, operands: Sequence[Operand], layouts: Sequence[Sequence[int]], in_place: InPlace = ()
) -> Program:
    """The program of a region whose operands and results lie in memory as given.

    ``in_place`` are pairs of a result and the operand whose memory it takes over.

    Raises:
        UnsupportedError: the region is none that a kernel can be made of, or not in place.
    """
    return simplify_program(updating(lower_plainly(region, operands, layouts), in_place))


def lower_plainly(region: Graph, operands: Sequence[Operand], layouts: Sequence[Sequence[int]]) -> Program:
    """The program as it first comes: the dims of the region, an axis for each."""
    return _Lowering(region, tuple(operands), tuple(tuple(x) for x in layouts)).run()


def skeleton_of(region: Graph) -> Skeleton:
    """Which skeleton a region needs, by its heaviest operator."""
    nodes = region.nodes
    if any(n.has(Trait.RECURRENCE) for n in nodes):
        return Skeleton.RECURRENCE
    if any(n.has(Trait.SCATTER) and not n.is_a(ops.slice_put) for n in nodes):
        return Skeleton.SCATTER
    if any(n.has(Trait.ATTENTION) for n in nodes):
        return Skeleton.ATTENTION
    if any(n.has(Trait.CONTRACTION) for n in nodes):
        return Skeleton.MATMUL
    return Skeleton.ROWS if any(n.has(Trait.REDUCTION, Trait.SCAN) for n in nodes) else Skeleton.MAP


@dataclass
class _Lowering:
    """The lowering of one region."""

    region: Graph
    operands: tuple[Operand, ...]
    layouts: tuple[tuple[int, ...], ...]
    stages: list[Stage] = field(default_factory=list)
    anchors: dict[Node, tuple[tuple[Axis, ...], Ref]] = field(default_factory=dict)
    packed: dict[str, bool] = field(default_factory=dict)  # parameters in panels, and whether of the transpose
    rows: Rows | None = None
    held: dict[Node, tuple[Position, Ref]] = field(default_factory=dict)  # rows that a product reads

    bounds: Bounds = field(default_factory=Bounds)

    def __post_init__(self) -> None:
        self.bounds = Bounds(self.region.symbols)
        self._values: dict[tuple[Node, Position], Expr] = {}
        self._axes: dict[Shape, tuple[Axis, ...]] = {}

    def run(self) -> Program:
        """The whole program, not simplified."""
        skeleton = skeleton_of(self.region)
        recurrence: Recurrence | None = None
        stores: list[Store] = []
        if skeleton is Skeleton.RECURRENCE:
            recurrence = products.recurrence(self)
        elif skeleton is Skeleton.SCATTER:
            stores = scatter.stores(self)
        else:
            if skeleton is Skeleton.ROWS:
                self._find_rows()
            for node in self.region.nodes:
                if node.is_a(*quantized.QUANTIZED):
                    quantized.contraction(self, node)
                elif node.has(Trait.CONTRACTION):
                    products.contraction(self, node)
                elif node.has(Trait.ATTENTION):
                    products.attention(self, node)
            by_boxes = skeleton is Skeleton.MAP
            stores = [s for i in range(len(self.region.outputs)) for s in self._stores(i, by_boxes)]
        if skeleton is Skeleton.ROWS and not self.stages:
            skeleton = Skeleton.MAP  # the sum of a 0-d tensor combines nothing
        symbols = tuple(r.symbol for r in self.region.symbols)
        return Program(skeleton, self._params(), tuple(self.stages), tuple(stores), symbols, recurrence)

    # --- axes, parameters, stores -------------------------------------------------------------------------------------

    def axis(self, name: str, size: Dim) -> Axis:
        """A new axis."""
        return self.bounds.add(Axis(name, size))

    def axes_for(self, shape: Shape) -> tuple[Axis, ...]:
        """The axes of a shape: the same for equal shapes, of other names for other shapes."""
        if shape not in self._axes:
            prefix = f"p{len(self._axes)}_" if self._axes else "i"
            self._axes[shape] = tuple(self.axis(f"{prefix}{d}", size) for d, size in enumerate(shape))
        return self._axes[shape]

    def _params(self) -> tuple[Param, ...]:
        found = []
        for i, (node, operand) in enumerate(zip(self.region.inputs, self.operands, strict=True)):
            name, type_ = f"in{i}", node.tensor_type
            if name in self.packed:
                n, k = node.shape if self.packed[name] else node.shape[::-1]
                matrix, dense = type_.with_shape((k, n)), contiguous_strides((k, n))
                found.append(Param(name, matrix, dense, Role.IN, Format.PANELS, self.packed[name]))
            else:
                found.append(Param(name, type_, operand.strides, Role.IN))
        for i, (node, layout) in enumerate(zip(self.region.outputs, self.layouts, strict=True)):
            type_ = node.tensor_type
            found.append(Param(f"out{i}", type_, strides_of(type_.shape, layout), Role.OUT))
        return tuple(found)

    def _stores(self, position: int, by_boxes: bool) -> list[Store]:
        node = self.region.outputs[position]
        if by_boxes:
            boxes = boxes_of(node, self.bounds)
            return [self._store(position, self.axes_for(tuple(n for _, n in box)), box) for box in boxes]
        axes = self._output_axes(node)
        return [self._store(position, axes, tuple((0, a.size) for a in axes))]

    def _store(self, position: int, axes: tuple[Axis, ...], box: Box) -> Store:
        """The store of one box of a result, of which ``axes`` are the axes."""
        index = tuple(plus(start, at) for (start, _), at in zip(box, index_of(axes), strict=True))
        return Store(f"out{position}", loops(axes), index, self.value(self.region.outputs[position], index))

    def _output_axes(self, node: Node) -> tuple[Axis, ...]:
        for anchor, (axes, _) in self.anchors.items():
            if self.held and anchor not in Graph([], [node]).nodes:
                break  # one of the rows that the product reads, or of what they are computed with
            if anchor.shape != node.shape:
                raise UnsupportedError(f"a {anchor.op.name} of {anchor.type} with a result of {node.type}")
            return axes
        if self.rows is None:
            return self.axes_for(node.shape)
        found = self.rows.axes_of(node.shape)
        if found is None:
            raise UnsupportedError(f"rows of {list(self.rows.shape)} with a result of {node.type}")
        return found

    # --- values -------------------------------------------------------------------------------------------------------

    def value(self, node: Node, index: Position) -> Expr:
        """The value of a node at an index."""
        if node in self.held:
            return self._held_value(node, index)
        key = (node, index)
        if key not in self._values:
            self._values[key] = self._compute(node, index)
        return self._values[key]

    def _held_value(self, node: Node, index: Position) -> Expr:
        own, ref = self.held[node]
        if index != own:
            raise UnsupportedError(f"what a product reads, {node.op.name}, is read at another point too")
        return ref

    def _compute(self, node: Node, index: Position) -> Expr:
        if node in self.anchors:
            if node.is_a(*quantized.QUANTIZED):
                return quantized.result(self, node, index)
            return products.result(self, node, index)
        if node in self.region.inputs:
            return Load(f"in{self.region.inputs.index(node)}", index, node.dtype)
        if node.op in _REDUCERS:
            return self._reduction(node, index)
        if node.has(Trait.VIEW):
            return self.value(node.inputs[0], view_index(node, index, self.bounds))
        rule = RULES.get(node.op.name)
        if rule is not None:
            return rule(self, node, index)
        if node.op.decompose is not None:
            return self.value(node.op.decompose(*node.inputs, **node.attrs), index)
        if node.has(Trait.POINTWISE):
            args = tuple(self.value(x, broadcast_index(x.shape, index)) for x in node.inputs)
            return Apply(node.op.name, args, node.dtype)
        raise UnsupportedError(f"no kernel program for {node.op.name}")

    # --- rows ---------------------------------------------------------------------------------------------------------

    def _find_rows(self) -> None:
        """The rows are those of the first reduction, which all others must share."""
        for node in self.region.nodes:
            if node.has(Trait.REDUCTION, Trait.SCAN):
                shape = node.inputs[0].shape
                self.rows = Rows(shape, self.axes_for(shape), _reduced(node))
                return

    def _reduction(self, node: Node, index: Position) -> Expr:
        operand, reduced = node.inputs[0], _reduced(node)
        if not reduced:  # of one element each
            return self.value(operand, index)
        rows = self.rows
        if rows is None or operand.shape != rows.shape or reduced != rows.reduced:
            raise UnsupportedError(f"{node.op.name} of {operand.type} over axes {reduced}: not the rows of this kernel")
        if node.is_a(ops.cumsum) and rows.axes[reduced[0]].size == 1:
            return self.value(operand, index)  # an axis of size 1 is no loop that a sum could run along
        own = index_of(rows.axes)
        if _kept(node, index) != [i for d, i in enumerate(own) if d not in reduced or node.is_a(ops.cumsum)]:
            raise UnsupportedError(f"{node.op.name} is read at another point than its own")
        kind, combined = _REDUCERS[node.op], tuple(rows.axes[d] for d in reduced)
        kept = tuple(a for d, a in enumerate(rows.axes) if d not in reduced and a.size != 1)
        # the position along an axis of size 1 is 0, but argmax needs it as an axis
        value, combine = self.value(operand, own), Combine(kind, combined)
        return self._stage((*kept, *combined) if kind is Combiner.CUMSUM else kept, value, combine, node)

    def _stage(self, axes: tuple[Axis, ...], value: Expr, combine: Combine, node: Node) -> Ref:
        for stage in self.stages:
            if (stage.value, stage.combine) == (value, combine):
                return Ref(stage.name, tuple(a.symbol for a in stage.axes), node.dtype)
        stage = Stage(f"t{len(self.stages)}", axes, value, combine)
        self.stages.append(stage)
        return Ref(stage.name, tuple(a.symbol for a in axes), node.dtype)


def _reduced(node: Node) -> tuple[int, ...]:
    """The axes that a node combines; none for a tensor without axes."""
    return ops.reduced_axes(node) if node.inputs[0].tensor_type.rank else ()


def _kept(node: Node, index: Position) -> list[Index]:
    """The part of a reduction's index that tells its rows; of a running sum's, all of it."""
    reduced = _reduced(node)
    if not node.is_a(ops.cumsum) and node.attrs["keepdim"]:
        index = tuple(i for d, i in enumerate(index) if d not in reduced)
    return [affine(i) for i in index]


__all__ = ["Operand", "lower", "lower_plainly", "skeleton_of", "strides_of"]
