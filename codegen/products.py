"""Lowering of matrix products, attention and recurrent layers: what becomes stages or a recurrence."""

from __future__ import annotations

import sympy
import torch

from ..ir import ops
from ..ir.errors import UnsupportedError
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.types import Dim
from . import attrs
from .indexing import broadcast_index
from .lowering import Lowering, Position, index_of, loops
from .program import (
    Apply,
    Axis,
    Combine,
    Combiner,
    Const,
    Expr,
    Index,
    IndexValue,
    Load,
    Param,
    Recurrence,
    Ref,
    Role,
    Stage,
)
from .prologue import is_computed, rows_stage
from .runs import SHORTEST, runs_along

MANY_COLUMNS = 128  # of a product, from which on its rows are brought together first

# --- products ---------------------------------------------------------------------------------------------------------


def contraction(lowering: Lowering, node: Node) -> None:
    """Make a product the stage that its result is read from."""
    axes = lowering.axes_for(node.shape)
    index = index_of(axes)
    k = lowering.axis("k", node.inputs[0].shape[-1])
    a, b = node.inputs[:2]
    if node.is_a(ops.linear):
        right: Position = (index[-1], k.symbol)
        rows = left_rows(lowering, node, axes, k)
    else:
        left = (*broadcast_index(a.shape[:-1], index[:-1]), k.symbol)
        right = (*broadcast_index(b.shape[:-2], index[:-2]), k.symbol, index[-1])
        rows = lowering.value(a, left)
    product = Apply("mul", (rows, _right(lowering, b, right, node)), node.dtype)
    anchor(lowering, node, axes, Stage(stage_name(lowering), loops(axes), product, Combine(Combiner.DOT, (k,))))


def left_rows(lowering: Lowering, node: Node, axes: tuple[Axis, ...], k: Axis) -> Expr:
    """The left operand of a product with a weight: read where it lies, or brought together row by row first.

    That is what becomes of rows that are computed, and of those whose terms lie apart in memory, as the patches of an
    image, which every panel of columns would gather again.
    """
    a = node.inputs[0]
    source = a.inputs[0] if _is_widening(a) else a  # bytes stay bytes where rows are held
    rows: Expr | None = None
    if not is_computed(lowering, source):
        rows = lowering.value(source, (*index_of(axes)[:-1], k.symbol))
    if isinstance(k.size, int) and k.size > 1 and (rows is None or _is_gathered(lowering, rows, k, node.shape[-1])):
        rows = rows_stage(lowering, source, (*axes[:-1], k))
    elif rows is None:
        rows = lowering.value(source, (*index_of(axes)[:-1], k.symbol))
    return rows if source is a else Apply("cast", (rows,), a.dtype)


def _is_gathered(lowering: Lowering, rows: Expr, k: Axis, columns: Dim) -> bool:
    """Whether the terms of a row lie apart, by an index that is not linear in ``k``, and are read many times.

    Long runs of terms, as of windows that slide along a sequence, are read where they lie.
    """
    if not isinstance(rows, Load) or (isinstance(columns, int) and columns < MANY_COLUMNS):
        return False
    parts = [atom for i in rows.index if isinstance(i, sympy.Expr) for atom in i.atoms(sympy.floor, sympy.Mod)]
    if not any(k.symbol in part.free_symbols for part in parts):
        return False
    found = runs_along(_parameter(lowering, rows), rows.index, k)
    return found is None or 0 < found.length < SHORTEST


def _parameter(lowering: Lowering, load: Load) -> Param:
    """An operand as the parameter that a load names."""
    position = int(load.param.removeprefix("in"))
    type_ = lowering.region.inputs[position].tensor_type
    return Param(load.param, type_, lowering.operands[position].strides, Role.IN)


def stage_name(lowering: Lowering) -> str:
    """The name of the stage that is made next."""
    return f"t{len(lowering.stages)}"


def anchor(lowering: Lowering, node: Node, axes: tuple[Axis, ...], stage: Stage) -> None:
    """Make a stage the one that a product's result is read from."""
    lowering.stages.append(stage)
    lowering.anchors[node] = (axes, Ref(stage.name, index_of(stage.axes), stage.dtype))


def _right(lowering: Lowering, b: Node, index: Position, node: Node) -> Expr:
    """The right operand of a product: a weight that only this product reads is packed in panels.

    Of bytes that are widened for the product, the bytes are packed.
    """
    base, transposed, region = b, node.is_a(ops.linear), lowering.region
    between = {b}
    while base.is_a(ops.permute, ops.cast) and (_is_transpose(base) or _is_widening(base)):
        base, transposed = base.inputs[0], transposed ^ _is_transpose(base)
        between.add(base)
    if base in region.inputs and base.tensor_type.rank == 2:
        position = region.inputs.index(base)
        if lowering.operands[position].weight and all(is_read_once(region, x) for x in between):
            lowering.packed[f"in{position}"] = transposed
            k, n = index[::-1] if node.is_a(ops.linear) else index
            load = Load(f"in{position}", (k, n), base.dtype)
            return load if base.dtype == b.dtype else Apply("cast", (load,), b.dtype)
    return lowering.value(b, index)


def _is_transpose(node: Node) -> bool:
    return node.is_a(ops.permute) and node.attrs["dims"] == (1, 0)


def _is_widening(node: Node) -> bool:
    """Whether a node makes int32 of bytes."""
    return node.is_a(ops.cast) and node.dtype == torch.int32 and node.inputs[0].dtype in (torch.int8, torch.uint8)


def is_read_once(region: Graph, node: Node) -> bool:
    """Whether a value has one reader, which reads it as one operand."""
    reads = sum(user.inputs.count(node) for user in region.users[node])
    return reads == 1 and node not in region.outputs


def result(lowering: Lowering, node: Node, index: Position) -> Expr:
    """What a product is at an index.

    Raises:
        UnsupportedError: it is another point than the kernel is at.
    """
    axes, ref = lowering.anchors[node]
    if index != index_of(axes):
        raise UnsupportedError(f"the result of {node.op.name} is read at another point than its own")
    if node.is_a(ops.linear) and len(node.inputs) == 3:
        return Apply("add", (ref, lowering.value(node.inputs[2], (index[-1],))), node.dtype)
    return ref


# --- attention --------------------------------------------------------------------------------------------------------


def attention(lowering: Lowering, node: Node) -> None:
    """Make attention two stages: scores, and the sum of values that their softmax weighs."""
    q, k, v = node.inputs[:3]
    axes = lowering.axes_for(node.shape)
    b, h, s, e = axes
    t, d = lowering.axis("t", k.shape[2]), lowering.axis("d", q.shape[3])
    wide = torch.float32 if node.dtype in ops.HALF else node.dtype

    def at(x: Node, *index: Index) -> Expr:
        return lowering.value(x, tuple(0 if size == 1 else i for size, i in zip(x.shape, index, strict=True)))

    kv_head = _kv_head(h, q.shape[1], k.shape[1])
    dot = Apply(
        "mul", (at(q, b.symbol, h.symbol, s.symbol, d.symbol), at(k, b.symbol, kv_head, t.symbol, d.symbol)), wide
    )
    scores = Stage("t0", (b, h, s, t), dot, Combine(Combiner.DOT, (d,)))
    lowering.stages.append(scores)
    point = (b.symbol, h.symbol, s.symbol, t.symbol)
    offset = ops.mask_and_offset(node)[1]
    start = None if offset is None else lowering.value(offset, ())
    score, bound = _masked(lowering, node, start, Ref("t0", point, wide), point)
    value = at(v, b.symbol, kv_head, t.symbol, e.symbol)
    anchor(lowering, node, axes, Stage("t1", axes, value, Combine(Combiner.SOFTMAX_SUM, (t,), score, bound, start)))


def _kv_head(head: Axis, heads: Dim, groups: Dim) -> Index:
    """The head of keys and values that a head of queries reads."""
    return head.symbol if heads == groups else sympy.floor(head.symbol / (int(heads) // int(groups)))


def _masked(
    lowering: Lowering, node: Node, start: Expr | None, score: Expr, point: tuple[sympy.Symbol, ...]
) -> tuple[Expr, sympy.Expr | None]:
    """A score scaled and masked, and the position along the keys from which on every score is -inf.

    ``start`` is what queries are counted from, 0 for None.
    """
    wide, (*_, s, t) = score.dtype, point
    score, low = (
        Apply("mul", (score, Const(float(attrs.number(node, "scale")), wide)), wide),
        Const(float("-inf"), wide),
    )
    cap = attrs.number(node, "softcap")
    if cap:
        score = Apply("mul", (score, Const(1.0 / float(cap), wide)), wide)
        score = Apply("mul", (Apply("tanh", (score,), wide), Const(float(cap), wide)), wide)
    m, _ = ops.mask_and_offset(node)
    if m is not None:
        value = lowering.value(m, broadcast_index(m.shape, point))
        boolean = m.dtype == torch.bool
        score = Apply("where", (value, score, low), wide) if boolean else Apply("add", (score, value), wide)
    if not node.attrs["causal"]:
        return score, None
    last: Expr = IndexValue(s, torch.int64)
    last = last if start is None else Apply("add", (last, start), torch.int64)
    seen = Apply("le", (IndexValue(t, torch.int64), last), torch.bool)
    return Apply("where", (seen, score, low), wide), s + 1


# --- recurrent layers -------------------------------------------------------------------------------------------------


def recurrence(lowering: Lowering) -> Recurrence:
    """The recurrence of a region that is nothing else.

    Raises:
        UnsupportedError: something else is in the region.
    """
    region = lowering.region
    node = next(n for n in region.nodes if n.op is ops.recurrence)
    names = []
    for x in node.inputs:
        if x not in region.inputs:
            raise UnsupportedError("a recurrence reads computed operands: they need a kernel of their own")
        names.append(f"in{region.inputs.index(x)}")
    if any(x is not r for x, r in zip(region.outputs, ops.results(node), strict=True)):
        raise UnsupportedError("a recurrence with anything after it in one kernel")
    gates, w = node.inputs[:2]
    lowering.packed[names[1]] = True
    return Recurrence(
        kind=str(node.attrs["kind"]),
        reverse=attrs.flag(node, "reverse"),
        time=lowering.axis("i0", gates.shape[0]),
        batch=lowering.axis("i1", gates.shape[1]),
        hidden=lowering.axis("i2", w.shape[1]),
        gates=names[0],
        weight=names[1],
        bias=names[2],
        states=tuple(names[3:]),
        outputs=tuple(f"out{i}" for i in range(len(region.outputs))),
    )
