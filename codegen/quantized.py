"""Lowering of products with weights of few bits, and what a kernel program says of such a weight.

The product is a DOT stage whose right operand is what ``dequantize`` means: numbers become floats in registers, term by
term. Scales of whole rows are left to what follows the sum; scales of groups of terms are a factor inside it, which a
kernel may take out of the sum over one group. Products of int8 rows are sums of int32, those of float8 rows of float32,
scaled afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy
import torch

from ..ir import ops
from ..ir.errors import UnsupportedError
from ..ir.node import Node
from ..ir.ops.quantize import WORD
from ..ir.types import DTYPE_NAMES, Dim
from . import attrs
from .lowering import Lowering, Position, index_of, loops
from .products import anchor, is_read_once, left_rows, stage_name
from .program import (
    Apply,
    Axis,
    Combine,
    Combiner,
    Const,
    Expr,
    Format,
    IndexValue,
    Load,
    Program,
    Stage,
    as_fraction,
    postorder,
)
from .prologue import rows_stage

QUANTIZED = (ops.quantized_linear, ops.int8_linear, ops.float8_linear)
_SCALED_ROWS = (ops.int8_linear, ops.float8_linear)  # whose rows have scales of their own
_MIDDLE = 8.0  # what stands for 0 in four bits without zeros


# --- lowering ---------------------------------------------------------------------------------------------------------


def contraction(lowering: Lowering, node: Node) -> None:
    """Make a product with a weight of few bits the stage that its result is read from.

    Raises:
        UnsupportedError: it is of a half type.
    """
    if node.dtype in ops.HALF:
        raise UnsupportedError(f"{node.op.name} of {DTYPE_NAMES[node.dtype]}: its operands are to be float32")
    axes = lowering.axes_for(node.shape)
    k = lowering.axis("k", node.inputs[0].shape[-1])
    column = index_of(axes)[-1]
    assert not isinstance(column, Expr)
    if node.is_a(ops.int8_linear):
        left = lowering.value(node.inputs[0], (*index_of(axes)[:-1], k.symbol))
        (right,) = _elements(lowering, [(node.inputs[2], column, k.symbol)])
        dtype = torch.int32
        value = Apply("mul", (Apply("cast", (left,), dtype), Apply("cast", (right,), dtype)), dtype)
    elif node.is_a(ops.float8_linear):
        (right,) = _elements(lowering, [(node.inputs[2], column, k.symbol)])
        value = Apply("mul", (_float8_rows(lowering, node, axes, k), _float8(right, node.dtype)), node.dtype)
    else:
        left = left_rows(lowering, node, axes, k)
        value = Apply("mul", (left, _weight(lowering, node, column, k.symbol)), node.dtype)
    stage = Stage(stage_name(lowering), loops(axes), value, Combine(Combiner.DOT, (k,)))
    anchor(lowering, node, axes, stage)


def _weight(lowering: Lowering, node: Node, n: Dim, k: sympy.Symbol) -> Expr:
    """The weight at column n and term k, without the scale of a whole row."""
    bits, group, dtype = attrs.integer(node, "bits"), attrs.integer(node, "group"), node.dtype
    grouped = int(node.inputs[2].shape[1]) > 1
    at = sympy.floor(k / group) if grouped else 0
    wanted = [(node.inputs[1], n, k if bits == 8 else sympy.floor(k / WORD))]
    wanted += [(node.inputs[3], n, at)] if node.attrs["zeros"] else []
    wanted += [(node.inputs[2], n, at)] if grouped else []
    q, *rest = _elements(lowering, wanted)
    whole = q if bits == 8 else _place_of(q, k)
    value = _float8(q, dtype) if node.attrs["float8"] else Apply("cast", (whole,), dtype)
    if node.attrs["zeros"]:
        value = Apply("sub", (value, Apply("cast", (rest[0],), dtype)), dtype)
    elif bits == 4:
        value = Apply("sub", (value, Const(_MIDDLE, dtype)), dtype)
    return Apply("mul", (value, rest[-1]), dtype) if grouped else value


def _float8(bits: Expr, dtype: torch.dtype) -> Expr:
    value = Apply("float8_value", (bits,), torch.float32)
    return value if dtype == torch.float32 else Apply("cast", (value,), dtype)


def _float8_rows(lowering: Lowering, node: Node, axes: tuple[Axis, ...], k: Axis) -> Expr:
    """Rows of float8 as numbers: made once each, not for every panel of columns that reads them."""
    x = node.inputs[0]
    if isinstance(k.size, int) and k.size > 1:
        rows: Expr = rows_stage(lowering, ops.float8_value(x), (*axes[:-1], k))
    else:
        rows = Apply("float8_value", (lowering.value(x, (*index_of(axes)[:-1], k.symbol)),), torch.float32)
    return rows if node.dtype == torch.float32 else Apply("cast", (rows,), node.dtype)


def _place_of(word: Expr, k: sympy.Symbol) -> Expr:
    """The four bits of a word that are term k."""
    place = IndexValue(sympy.Mod(k, WORD), torch.int64)
    value = _bits_at(word, WORD - 1)
    for at in reversed(range(WORD - 1)):
        here = Apply("eq", (place, Const(at, torch.int64)), torch.bool)
        value = Apply("where", (here, _bits_at(word, at), value), value.dtype)
    return value


def _bits_at(word: Expr, place: int) -> Expr:
    shifted = Apply("floor_div", (word, Const(16**place, word.dtype)), word.dtype)
    return Apply("bit_and", (shifted, Const(15, word.dtype)), word.dtype)


def _elements(lowering: Lowering, wanted: Sequence[tuple[Node, Dim, Dim]]) -> list[Expr]:
    """Elements of matrices that are held as [N, ...]: all packed in panels, or none."""
    region = lowering.region
    if not all(_may_be_packed(lowering, x) for x, _, _ in wanted):
        return [lowering.value(x, (n, k)) for x, n, k in wanted]
    found: list[Expr] = []
    for x, n, k in wanted:
        name = f"in{region.inputs.index(x)}"
        lowering.packed[name] = True
        found.append(Load(name, (k, n), x.dtype))
    return found


def _may_be_packed(lowering: Lowering, x: Node) -> bool:
    region = lowering.region
    if x not in region.inputs or not lowering.operands[region.inputs.index(x)].weight:
        return False
    return is_read_once(region, x)


def result(lowering: Lowering, node: Node, index: Position) -> Expr:
    """What the product is at an index: the sum with the scales that are not inside it, and the bias.

    Raises:
        UnsupportedError: it is another point than the kernel is at.
    """
    axes, ref = lowering.anchors[node]
    if index != index_of(axes):
        raise UnsupportedError(f"the result of {node.op.name} is read at another point than its own")
    total, dtype, column = ref, node.dtype, index[-1]
    value: Expr = total
    if node.is_a(*_SCALED_ROWS):
        rows = lowering.value(node.inputs[1], (*index[:-1], 0))
        value = Apply("mul", (total if total.dtype == dtype else Apply("cast", (total,), dtype), rows), dtype)
        value = Apply("mul", (value, lowering.value(node.inputs[3], (column, 0))), dtype)
        bias = node.inputs[4:]
    else:
        if int(node.inputs[2].shape[1]) == 1:
            value = Apply("mul", (value, lowering.value(node.inputs[2], (column, 0))), dtype)
        bias = node.inputs[4 if node.attrs["zeros"] else 3 :]
    return Apply("add", (value, lowering.value(bias[0], (column,))), dtype) if bias else value


# --- what a program says of its weight --------------------------------------------------------------------------------


@dataclass(frozen=True)
class FewBits:
    """The right operand of a DOT stage that is a packed weight of few bits.

    Attributes:
        q: the load of its numbers, or of words that hold several terms each.
        value: the number that it stands for, without ``scale``.
        scale: the load of a factor that is the same for each ``group`` of terms; None where there is none.
        zero: the load of what stands for 0; None where that is one number for all.
        group: the terms that share a scale and a zero; None where all of them do.
        word: the terms in an element of ``q``.
    """

    q: Load
    value: Expr
    scale: Load | None
    zero: Load | None
    group: int | None
    word: int


def few_bits(program: Program, stage: Stage) -> FewBits | None:
    """The packed weight of few bits that a DOT stage of floats reads, if it reads one."""
    if not isinstance(stage.value, Apply) or not stage.dtype.is_floating_point:
        return None
    for right in stage.value.args:
        loads = [e for e in postorder([right]) if isinstance(e, Load) and _is_panels(program, e)]
        if loads and not loads[0].dtype.is_floating_point:
            return _few_bits(right, loads)
    return None


def _few_bits(right: Expr, loads: Sequence[Load]) -> FewBits:
    scale = None
    value = right
    if isinstance(right, Apply) and right.op == "mul" and isinstance(right.args[1], Load):
        value, scale = right.args[0], right.args[1]
    zero = next((load for load in loads[1:] if load is not scale), None)
    groups = [_divisor(load) for load in loads[1:]]
    word = WORD if loads[0].dtype == torch.int32 else 1
    return FewBits(loads[0], value, scale, zero, next(filter(None, groups), None), word)


def _is_panels(program: Program, load: Load) -> bool:
    return program.param(load.param).format is Format.PANELS


def _divisor(load: Load) -> int | None:
    """g of an index floor(k / g)."""
    at = load.index[0]
    if not isinstance(at, sympy.floor):
        return None
    return int(as_fraction(at.args[0])[1])


def at_place(expr: Expr, place: int) -> Expr:
    """The value of the term at a place in its word, without asking which it is."""
    if not isinstance(expr, Apply):
        return expr
    if expr.op == "where" and isinstance(expr.args[0], Apply) and isinstance(expr.args[0].args[0], IndexValue):
        asked = expr.args[0].args[1]
        assert isinstance(asked, Const)
        return expr.args[1] if asked.value == place else at_place(expr.args[2], place)
    return Apply(expr.op, tuple(at_place(a, place) for a in expr.args), expr.dtype)
