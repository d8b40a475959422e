"""From a fused region to its kernel program.

Values are pulled: the value of a node at an index is an expression over its operands' values at theirs. Views only
change indices, composites lower through their definitions, and a reduction becomes a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch

from ..ir import ops
from ..ir.errors import UnsupportedError
from ..ir.graph import Graph
from ..ir.node import Node, Trait
from ..ir.types import Dim, Shape, contiguous_strides
from .indexing import Bounds, affine, broadcast_index, permute_index, reshape_index, sliced
from .program import (
    Apply,
    Axis,
    Checked,
    Combine,
    Combiner,
    Const,
    Expr,
    Format,
    Guard,
    Index,
    IndexValue,
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


@dataclass(frozen=True)
class Operand:
    """How one operand of a region lies in memory: element strides, and whether it is a weight (packed ahead)."""

    strides: Shape
    weight: bool = False


def strides_of(shape: Shape, layout: Sequence[int]) -> Shape:
    """The strides of a dense tensor whose axes lie in memory in the order ``layout``, the slowest first."""
    inner = contiguous_strides(tuple(shape[axis] for axis in layout))
    strides: list[Dim] = [0] * len(shape)
    for position, axis in enumerate(layout):
        strides[axis] = inner[position]
    return tuple(strides)


def lower(region: Graph, operands: Sequence[Operand], layouts: Sequence[Sequence[int]]) -> Program:
    """The program of a region whose operands and results lie in memory as given.

    Raises:
        UnsupportedError: the region is none that a kernel can be made of.
    """
    lowering = _Lowering(region, tuple(operands), tuple(tuple(x) for x in layouts))
    return simplify_program(lowering.run())


def skeleton_of(region: Graph) -> Skeleton:
    """Which skeleton a region needs, by its heaviest operator."""
    nodes = region.nodes
    if any(n.has(Trait.RECURRENCE) for n in nodes):
        return Skeleton.RECURRENCE
    if any(n.has(Trait.ATTENTION) for n in nodes):
        return Skeleton.ATTENTION
    if any(n.has(Trait.CONTRACTION) for n in nodes):
        return Skeleton.MATMUL
    return Skeleton.ROWS if any(n.has(Trait.REDUCTION, Trait.SCAN) for n in nodes) else Skeleton.MAP


@dataclass
class _Lowering:
    region: Graph
    operands: tuple[Operand, ...]
    layouts: tuple[tuple[int, ...], ...]
    stages: list[Stage] = field(default_factory=list)
    bounds: dict[sympy.Symbol, Dim] = field(default_factory=dict)
    axes: dict[sympy.Symbol, Axis] = field(default_factory=dict)
    anchors: dict[Node, tuple[tuple[Axis, ...], Ref]] = field(default_factory=dict)
    memo: dict[tuple[Node, tuple[Index, ...]], Expr] = field(default_factory=dict)
    panels: set[str] = field(default_factory=set)
    transposed: set[str] = field(default_factory=set)
    row_axes: tuple[Shape, tuple[Axis, ...], frozenset[int]] | None = None

    def run(self) -> Program:
        skeleton = skeleton_of(self.region)
        recurrence = None
        stores: tuple[Store, ...] = ()
        if skeleton is Skeleton.RECURRENCE:
            recurrence = self.recurrence()
        else:
            if skeleton is Skeleton.ROWS:
                self.find_rows()
            for node in self.region.nodes:
                if node.has(Trait.CONTRACTION):
                    self.contraction(node)
                elif node.has(Trait.ATTENTION):
                    self.attention(node)
            stores = tuple(self.store(i) for i in range(len(self.region.outputs)))
        params = self.params()
        symbols = tuple(r.symbol for r in self.region.symbols)
        return Program(skeleton, params, tuple(self.stages), stores, symbols, recurrence)

    # --- axes, parameters, stores -------------------------------------------------------------------------------------

    def axis(self, name: str, size: Dim) -> Axis:
        axis = Axis(name, size)
        self.bounds[axis.symbol] = size
        self.axes[axis.symbol] = axis
        return axis

    def axes_for(self, shape: Shape, prefix: str = "i") -> tuple[Axis, ...]:
        return tuple(self.axis(f"{prefix}{d}", size) for d, size in enumerate(shape))

    def params(self) -> tuple[Param, ...]:
        found = []
        for i, (node, operand) in enumerate(zip(self.region.inputs, self.operands, strict=True)):
            name = f"in{i}"
            if name in self.panels:
                n, k = node.shape if name in self.transposed else node.shape[::-1]
                type_ = node.tensor_type.with_shape((k, n))
                found.append(
                    Param(name, type_, contiguous_strides((k, n)), Role.IN, Format.PANELS, name in self.transposed)
                )
            else:
                found.append(Param(name, node.tensor_type, operand.strides, Role.IN))
        for i, (type_, layout) in enumerate(zip(self.output_types(), self.layouts, strict=True)):
            found.append(Param(f"out{i}", type_, strides_of(type_.shape, layout), Role.OUT))
        return tuple(found)

    def output_types(self) -> list[Any]:
        return [node.tensor_type for node in self.region.outputs]

    def store(self, position: int) -> Store:
        node = self.region.outputs[position]
        axes = self.output_axes(node)
        index = tuple(0 if a.size == 1 else a.symbol for a in axes)
        loops = tuple(a for a in axes if a.size != 1)
        return Store(f"out{position}", loops, index, self.value(node, index))

    def output_axes(self, node: Node) -> tuple[Axis, ...]:
        for anchor, (axes, _) in self.anchors.items():
            if anchor.shape != node.shape:
                raise UnsupportedError(f"a {anchor.op.name} of {anchor.type} with a result of {node.type}")
            return axes
        if self.row_axes is not None:
            return self.rows_of_output(node)
        return self.axes_for(node.shape)

    # --- rows ---------------------------------------------------------------------------------------------------------

    def find_rows(self) -> None:
        """The axes of the rows: those of the operand of the first reduction, which all others must share."""
        for node in self.region.nodes:
            if node.has(Trait.REDUCTION, Trait.SCAN):
                shape = node.inputs[0].shape
                self.row_axes = (shape, self.axes_for(shape), frozenset(ops.reduced_axes(node)))
                return

    def rows_of_output(self, node: Node) -> tuple[Axis, ...]:
        assert self.row_axes is not None
        shape, axes, reduced = self.row_axes
        if node.shape == shape:
            return axes
        if node.shape == tuple(1 if i in reduced else d for i, d in enumerate(shape)):
            return tuple(Axis(f"u{i}", 1) if i in reduced else a for i, a in enumerate(axes))
        if node.shape == tuple(d for i, d in enumerate(shape) if i not in reduced):
            return tuple(a for i, a in enumerate(axes) if i not in reduced)
        raise UnsupportedError(f"rows of {list(shape)} with a result of {node.type}")

    def reduction(self, node: Node, index: tuple[Index, ...]) -> Expr:
        operand = node.inputs[0]
        reduced = ops.reduced_axes(node)
        if self.row_axes is None or operand.shape != self.row_axes[0] or frozenset(reduced) != self.row_axes[2]:
            raise UnsupportedError(f"{node.op.name} of {operand.type} over axes {reduced}: not the rows of this kernel")
        axes = self.row_axes[1]
        kept = [a for i, a in enumerate(axes) if i not in reduced]
        at = [affine(i) for i in self.kept_index(node, index)]
        if any(x != (0 if a.size == 1 else a.symbol) for x, a in zip(at, kept, strict=True)):
            raise UnsupportedError(f"{node.op.name} is read at another row than its own")
        inner = tuple(axes[d] for d in reduced)
        full = tuple(0 if a.size == 1 and i not in reduced else a.symbol for i, a in enumerate(axes))
        kind = _REDUCERS[node.op]
        outer = tuple(a for a in kept if a.size != 1)
        if kind is Combiner.CUMSUM:
            outer = (*outer, *inner)
        stage = Stage(f"t{len(self.stages)}", outer, self.value(operand, full), Combine(kind, inner))
        found = next((s for s in self.stages if (s.value, s.combine) == (stage.value, stage.combine)), None)
        if found is None:
            stage = Stage(f"t{len(self.stages)}", stage.axes, stage.value, stage.combine)
            self.stages.append(stage)
            found = stage
        return Ref(found.name, tuple(a.symbol for a in found.axes), node.dtype)

    @staticmethod
    def kept_index(node: Node, index: tuple[Index, ...]) -> list[Index]:
        if node.is_a(ops.cumsum):
            return [i for d, i in enumerate(index) if d != node.attrs["dim"]]
        if node.attrs["keepdim"]:
            reduced = ops.reduced_axes(node)
            return [i for d, i in enumerate(index) if d not in reduced]
        return list(index)

    # --- products -----------------------------------------------------------------------------------------------------

    def contraction(self, node: Node) -> None:
        axes = self.axes_for(node.shape)
        index = tuple(0 if a.size == 1 else a.symbol for a in axes)
        k = self.axis("k", node.inputs[0].shape[-1])
        a, b = node.inputs[:2]
        if node.is_a(ops.linear):
            right_index: tuple[Index, ...] = (index[-1], k.symbol)
            left_index: tuple[Index, ...] = (*index[:-1], k.symbol)
        else:
            left_index = (*broadcast_index(a.shape[:-1], index[:-1]), k.symbol)
            right_index = (*broadcast_index(b.shape[:-2], index[:-2]), k.symbol, index[-1])
        product = Apply("mul", (self.value(a, left_index), self.right(b, right_index, node)), node.dtype)
        name = f"t{len(self.stages)}"
        loops = tuple(x for x in axes if x.size != 1)
        self.stages.append(Stage(name, loops, product, Combine(Combiner.DOT, (k,))))
        self.anchors[node] = (axes, Ref(name, tuple(x.symbol for x in loops), node.dtype))

    def right(self, b: Node, index: tuple[Index, ...], node: Node) -> Expr:
        """The right operand of a product: a weight that only this product reads is packed in panels."""
        base, transposed = b, node.is_a(ops.linear)
        if base.is_a(ops.permute) and base.attrs["dims"] == (1, 0):
            base, transposed = base.inputs[0], not transposed
        if base in self.region.inputs and base.tensor_type.rank == 2:
            position = self.region.inputs.index(base)
            if self.operands[position].weight and len(self.region.users[base]) == 1:
                name = f"in{position}"
                self.panels.add(name)
                if transposed:
                    self.transposed.add(name)
                k, n = index[-2:] if not node.is_a(ops.linear) else index[::-1]
                return Load(name, (k, n), base.dtype)
        return self.value(b, index)

    def attention(self, node: Node) -> None:
        q, k, v, *mask = node.inputs
        b, h, s, e = self.axes_for(node.shape)
        t, d = self.axis("t", k.shape[2]), self.axis("d", q.shape[3])
        wide = torch.float32 if node.dtype in ops.HALF else node.dtype

        def at(x: Node, *index: Index) -> Expr:
            return self.value(x, tuple(0 if size == 1 else i for size, i in zip(x.shape, index, strict=True)))

        groups = 1 if q.shape[1] == k.shape[1] else int(q.shape[1]) // int(k.shape[1])
        kv_head: Index = h.symbol if groups == 1 else sympy.floor(h.symbol / groups)
        dot = Apply(
            "mul", (at(q, b.symbol, h.symbol, s.symbol, d.symbol), at(k, b.symbol, kv_head, t.symbol, d.symbol)), wide
        )
        scores = Stage("t0", (b, h, s, t), dot, Combine(Combiner.DOT, (d,)))
        score: Expr = Ref("t0", (b.symbol, h.symbol, s.symbol, t.symbol), wide)
        score = Apply("mul", (score, Const(node.attrs["scale"], wide)), wide)
        low = Const(float("-inf"), wide)
        for m in mask:
            m_value = self.value(m, broadcast_index(m.shape, (b.symbol, h.symbol, s.symbol, t.symbol)))
            score = (
                Apply("where", (m_value, score, low), wide)
                if m.dtype == torch.bool
                else Apply("add", (score, m_value), wide)
            )
        bound = None
        if node.attrs["causal"]:
            seen = Apply(
                "le", (IndexValue(t.symbol, torch.int64), IndexValue(s.symbol, torch.int64)), torch.bool
            )
            score, bound = Apply("where", (seen, score, low), wide), s.symbol + 1
        value = at(v, b.symbol, kv_head, t.symbol, e.symbol)
        out = Stage("t1", (b, h, s, e), value, Combine(Combiner.SOFTMAX_SUM, (t,), score, bound))
        self.stages += [scores, out]
        self.anchors[node] = ((b, h, s, e), Ref("t1", (b.symbol, h.symbol, s.symbol, e.symbol), wide))

    def recurrence(self) -> Recurrence:
        node = next(n for n in self.region.nodes if n.has(Trait.RECURRENCE))
        names = []
        for x in node.inputs:
            if x not in self.region.inputs:
                raise UnsupportedError("a recurrence reads computed operands: they need a kernel of their own")
            names.append(f"in{self.region.inputs.index(x)}")
        if any(x is not r for x, r in zip(self.region.outputs, ops.results(node), strict=True)):
            raise UnsupportedError("a recurrence with anything after it in one kernel")
        gates, w = node.inputs[:2]
        self.panels.add(names[1])
        self.transposed.add(names[1])
        return Recurrence(
            kind=str(node.attrs["kind"]),
            reverse=bool(node.attrs["reverse"]),
            time=self.axis("i0", gates.shape[0]),
            batch=self.axis("i1", gates.shape[1]),
            hidden=self.axis("i2", w.shape[1]),
            gates=names[0],
            weight=names[1],
            bias=names[2],
            states=tuple(names[3:]),
            outputs=tuple(f"out{i}" for i in range(len(self.region.outputs))),
        )

    # --- values -------------------------------------------------------------------------------------------------------

    def value(self, node: Node, index: tuple[Index, ...]) -> Expr:
        """The value of a node at an index."""
        key = (node, index)
        if key not in self.memo:
            self.memo[key] = self.compute(node, index)
        return self.memo[key]

    def compute(self, node: Node, index: tuple[Index, ...]) -> Expr:
        if node in self.anchors:
            return self.anchor_value(node, index)
        if node in self.region.inputs:
            return Load(f"in{self.region.inputs.index(node)}", index, node.dtype)
        if node.op in _REDUCERS:
            return self.reduction(node, index)
        if node.has(Trait.VIEW):
            return self.value(node.inputs[0], view_index(node, index, self.bounds))
        rule = _VALUES.get(node.op.name)
        if rule is not None:
            return rule(self, node, index)
        if node.op.decompose is not None:
            return self.value(node.op.decompose(*node.inputs, **node.attrs), index)
        if node.has(Trait.POINTWISE):
            args = tuple(self.value(x, broadcast_index(x.shape, index)) for x in node.inputs)
            return Apply(node.op.name, args, node.dtype)
        raise UnsupportedError(f"no kernel program for {node.op.name}")

    def anchor_value(self, node: Node, index: tuple[Index, ...]) -> Expr:
        axes, ref = self.anchors[node]
        if any(i != (0 if a.size == 1 else a.symbol) for i, a in zip(index, axes, strict=True)):
            raise UnsupportedError(f"the result of {node.op.name} is read at another point than its own")
        if node.is_a(ops.linear) and len(node.inputs) == 3:
            bias = self.value(node.inputs[2], (index[-1],))
            return Apply("add", (ref, bias), node.dtype)
        return ref


def view_index(node: Node, index: tuple[Index, ...], bounds: Bounds) -> tuple[Index, ...]:
    """The index into a view's operand."""
    operand = node.inputs[0]
    attrs = node.attrs
    if node.is_a(ops.reshape):
        return reshape_index(operand.shape, node.shape, index, bounds)
    if node.is_a(ops.permute):
        return permute_index(attrs["dims"], index)  # type: ignore[arg-type]
    if node.is_a(ops.expand):
        return broadcast_index(operand.shape, index)
    dims = attrs["dims"] if node.is_a(ops.flip) else (attrs["dim"],)
    result = list(index)
    for d in dims:  # type: ignore[union-attr]
        if node.is_a(ops.flip):
            result[d] = operand.shape[d] - 1 - affine(index[d])
        else:
            result[d] = sliced(index[d], attrs["start"], attrs["step"])  # type: ignore[arg-type]
    return tuple(result)


def _full(lowering: _Lowering, node: Node, index: tuple[Index, ...]) -> Expr:
    value = node.attrs["value"]
    if isinstance(value, sympy.Expr):
        return _number(value, node.dtype)
    return Const(value, node.dtype)


def _number(value: sympy.Expr | int, dtype: torch.dtype) -> Expr:
    if dtype.is_floating_point:
        return Apply("cast", (IndexValue(value, torch.int64),), dtype)
    return IndexValue(value, dtype)


def _arange(lowering: _Lowering, node: Node, index: tuple[Index, ...]) -> Expr:
    start, step = node.attrs["start"], node.attrs["step"]
    if all(isinstance(x, int | sympy.Expr) for x in (start, step)):
        return _number(affine(index[0]) * step + start, node.dtype)
    position = Apply("cast", (IndexValue(affine(index[0]), torch.int64),), torch.float64)
    scaled = Apply("mul", (position, Const(float(step), torch.float64)), torch.float64)  # type: ignore[arg-type]
    total = Apply("add", (scaled, Const(float(start), torch.float64)), torch.float64)  # type: ignore[arg-type]
    return total if node.dtype == torch.float64 else Apply("cast", (total,), node.dtype)


def _concat(lowering: _Lowering, node: Node, index: tuple[Index, ...]) -> Expr:
    dim = int(node.attrs["dim"])  # type: ignore[arg-type]
    start: Dim = 0
    pieces = []
    for x in node.inputs:
        local = sliced(index[dim], -start if start != 0 else 0, 1)
        pieces.append((local, x))
        start = start + x.shape[dim]
    local, last = pieces[-1]
    result = lowering.value(last, (*index[:dim], local, *index[dim + 1 :]))
    for local, x in reversed(pieces[:-1]):
        then = lowering.value(x, (*index[:dim], local, *index[dim + 1 :]))
        result = Guard(affine(local), x.shape[dim], then, result)
    return result


def _pad(lowering: _Lowering, node: Node, index: tuple[Index, ...]) -> Expr:
    x = node.inputs[0]
    inner = tuple(sliced(i, -lo if lo != 0 else 0, 1) for i, lo in zip(index, node.attrs["low"], strict=True))  # type: ignore[arg-type]
    result = lowering.value(x, inner)
    outside = Const(node.attrs["value"], node.dtype)  # type: ignore[arg-type]
    for i, size, width in zip(inner, x.shape, zip(node.attrs["low"], node.attrs["high"], strict=True), strict=True):  # type: ignore[arg-type]
        if width != (0, 0):
            result = Guard(affine(i), size, result, outside)
    return result


def _slice_put(lowering: _Lowering, node: Node, index: tuple[Index, ...]) -> Expr:
    x, src = node.inputs
    dim, start, step = (node.attrs[name] for name in ("dim", "start", "step"))
    if step != 1:
        raise UnsupportedError("slice_put with a step")
    local = affine(index[dim]) - start  # type: ignore[index, operator]
    then = lowering.value(src, (*index[:dim], local, *index[dim + 1 :]))  # type: ignore[index, operator]
    return Guard(local, src.shape[dim], then, lowering.value(x, index))  # type: ignore[index]


def _index(lowering: _Lowering, node: Node, index: tuple[Index, ...]) -> Expr:
    x, *indices = node.inputs
    dim, wrap = int(node.attrs["dim"]), bool(node.attrs["wrap"])  # type: ignore[arg-type]
    picked = node.tensor_type.rank - (x.tensor_type.rank - len(indices))
    at = index[dim : dim + picked]
    chosen = [
        Checked(lowering.value(i, broadcast_index(i.shape, at)), x.shape[dim + n], wrap)
        for n, i in enumerate(indices)
    ]
    return lowering.value(x, (*index[:dim], *chosen, *index[dim + picked :]))


def _gather(lowering: _Lowering, node: Node, index: tuple[Index, ...]) -> Expr:
    x, i = node.inputs
    dim = int(node.attrs["dim"])  # type: ignore[arg-type]
    chosen = Checked(lowering.value(i, index), x.shape[dim], False)
    return lowering.value(x, (*index[:dim], chosen, *index[dim + 1 :]))


def _rope(lowering: _Lowering, node: Node, index: tuple[Index, ...]) -> Expr:
    """The other half by arithmetic on the index, not by a guard: loads stay plain."""
    x, cos, sin = node.inputs
    size = x.shape[-1]
    half = size // 2
    last = affine(index[-1])
    other = (*index[:-1], sympy.Mod(last + half, size))
    rotated = lowering.value(x, other)
    first = Apply("lt", (IndexValue(last, torch.int64), IndexValue(half, torch.int64)), torch.bool)
    signed = Apply("where", (first, Apply("neg", (rotated,), x.dtype), rotated), x.dtype)
    c, s = (lowering.value(y, broadcast_index(y.shape, index)) for y in (cos, sin))
    kept = Apply("mul", (lowering.value(x, index), c), x.dtype)
    return Apply("add", (kept, Apply("mul", (signed, s), x.dtype)), x.dtype)


_VALUES = {
    "full": _full,
    "arange": _arange,
    "concat": _concat,
    "pad": _pad,
    "slice_put": _slice_put,
    "index": _index,
    "gather": _gather,
    "rope": _rope,
}
