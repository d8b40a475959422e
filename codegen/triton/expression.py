"""Program expressions as Triton text.

Values are computed in their dtype, half types in float32. What is loaded, and what is used twice, gets a name. Both
sides of a guard are computed, for loads are masked: no branch is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch

from ...ir.errors import UnsupportedError
from ...ir.types import DTYPE_NAMES
from ..contraction import axes_of
from ..program import (
    Apply,
    Axis,
    Checked,
    Const,
    Expr,
    Guard,
    Index,
    IndexValue,
    Load,
    Param,
    Ref,
    is_guard,
    operands,
    postorder,
)
from .few_bits import Nibble, nibble
from .functions import functions_for, takes_literals
from .indexing import atom, is_number, offset
from .scope import NONE, Dims, Scope, Value
from .source import bare
from .storage import TYPES, cast_text, compute_type, const_text, from_storage, has_literals, number_text, to_storage

ERROR = "err"  # the cell that kernels set when an index is out of range
LONG = 72  # characters of a text that is given a name


def supports(op: str, dtype: torch.dtype) -> bool:
    """Whether a pointwise primitive on operands of a dtype can be written."""
    return dtype in TYPES and (op in ("where", "cast") or op in functions_for(dtype))


def value_of(expr: Expr, scope: Scope) -> Value:
    """An expression in its compute type; what it needs is written to the scope's source."""
    return values_of([expr], scope)[0]


def values_of(exprs: Sequence[Expr], scope: Scope) -> list[Value]:
    """:func:`value_of` of several expressions."""
    order = list(postorder(exprs, lambda e: is_guard(e) or e in scope.known or nibble(e) is not None))
    uses = Counter([*exprs, *(x for e in order if not is_guard(e) and nibble(e) is None for x in operands(e))])
    texts: dict[Expr, Value] = {}
    for expr in order:
        value = scope.known.get(expr)
        if value is None:
            value = _value(expr, texts, scope)
            if _is_named(expr, value, uses[expr]):
                value = Value(scope.src.let(_name(expr), bare(value.text)), value.dims)
            if not isinstance(expr, Const | Ref):
                scope.known[expr] = value
        texts[expr] = value
    return [texts[e] for e in exprs]


def _is_named(expr: Expr, value: Value, uses: int) -> bool:
    if value.text.isidentifier() or value.full is not None or isinstance(expr, Const):
        return False
    return uses > 1 or isinstance(expr, Load) or len(value.text) > LONG


def _name(expr: Expr) -> str:
    return f"x{expr.param.removeprefix('in')}" if isinstance(expr, Load) else "v"


def _value(expr: Expr, texts: Mapping[Expr, Value], scope: Scope) -> Value:
    match expr:
        case Const():
            full = const_text(expr.value, expr.dtype)
            return Value(number_text(expr.value, expr.dtype) if has_literals(expr.dtype) else full, NONE, full)
        case IndexValue():
            return _number(expr, scope)
        case Load():
            return _load(expr, texts, scope)
        case Ref():
            return scope.refs[expr.stage]
        case Checked():
            return _checked(expr, texts[expr.value], scope)
        case Guard():
            return _guard(expr, scope)
        case Apply():
            bits = nibble(expr)
            return _apply(expr, [texts[a] for a in expr.args]) if bits is None else _four_bits(bits, scope)


def _four_bits(bits: Nibble, scope: Scope) -> Value:
    """Four bits of a word: shifted down, others cleared."""
    word, place = value_of(bits.word, scope), atom(bits.place, scope)
    return Value(f"(({word.typed} >> ({place.text} * 4).to(tl.int32)) & 15)", word.dims | place.dims)


def _number(expr: IndexValue, scope: Scope) -> Value:
    value, kind = atom(expr.index, scope), compute_type(expr.dtype)
    if is_number(expr.index):
        return Value(f"tl.full((), {value.text}, {kind})")
    return value if kind == scope.index_type else Value(f"{value.text}.to({kind})", value.dims)


def _apply(expr: Apply, args: Sequence[Value]) -> Value:
    dims = NONE.union(*(a.dims for a in args))
    operand = expr.args[0].dtype
    if expr.op == "cast":
        return Value(cast_text(args[0].typed, operand, expr.dtype), dims)
    if expr.op == "where":
        return Value(f"tl.where({args[0].typed}, {', '.join(_beside(args[1:], True))})", dims)
    functions = functions_for(operand)
    if expr.op not in functions:
        raise UnsupportedError(f"Triton: no code for {expr.op} on {DTYPE_NAMES.get(operand, str(operand))}")
    template = functions[expr.op]
    return Value(template.format(*_beside(args, takes_literals(template))), dims)


def _beside(args: Sequence[Value], literals: bool) -> list[str]:
    """Operands of one type: a literal is one where the other tells the type."""
    if literals and sum(a.full is None for a in args) == 1 and len(args) == 2:
        return [a.text for a in args]
    return [a.typed for a in args]


# --- memory -----------------------------------------------------------------------------------------------------------


def _load(expr: Load, texts: Mapping[Expr, Value], scope: Scope) -> Value:
    value = _element(expr, texts, scope)
    return Value(from_storage(value.text, scope.program.param(expr.param).type.dtype), value.dims)


def _element(expr: Load, texts: Mapping[Expr, Value], scope: Scope) -> Value:
    pointer, mask = _pointer(scope.program.param(expr.param), expr.index, texts, NONE, scope)
    text = pointer.text
    if mask is not None:
        text += f", mask={mask.text}" + (", other=0" if scope.fill else "")
    return Value(f"tl.load({text})", pointer.dims)


def element(expr: Load, scope: Scope) -> Value:
    """A load as it is stored, not yet in its compute type."""
    return _element(expr, {i: value_of(i, scope) for i in expr.index if isinstance(i, Expr)}, scope)


def hoist(exprs: Sequence[Expr], axes: Sequence[Axis], scope: Scope) -> None:
    """Write, before a loop over some axes, what does not vary along them."""
    varying = {a.symbol for a in axes}
    for expr in postorder(exprs, is_guard):
        is_work = isinstance(expr, Load | Checked | Apply) and not (isinstance(expr, Apply) and _is_small(expr))
        if is_work and not axes_of(expr) & varying and not _reads_stage(expr):
            value_of(expr, scope)


def _is_small(expr: Apply) -> bool:
    return not any(isinstance(e, Load) for e in postorder([expr]))


def _reads_stage(expr: Expr) -> bool:
    return any(isinstance(e, Ref) for e in postorder([expr]))


def _pointer(
    param: Param, index: Sequence[Index], texts: Mapping[Expr, Value], least: Dims, scope: Scope
) -> tuple[Value, Value | None]:
    """The address of an element, which varies along ``least`` at the least, and which points are there."""
    at = offset(param, index, texts, scope)
    mask = scope.mask(at.dims | least)
    dims = at.dims | least | (NONE if mask is None else mask.dims)
    text = param.name if at.text == "0" else f"{param.name} + {at.text}"
    if dims != at.dims:  # a block of addresses is never narrower than its mask
        text += f" + tl.zeros({scope.extents(dims)}, tl.int32)"
    return Value(text, dims), mask


def store(param: Param, index: Sequence[Index], value: Value, scope: Scope) -> None:
    """Write a store of a value at every point of the block."""
    texts = {i: value_of(i, scope) for i in index if isinstance(i, Expr)}
    pointer, mask = _pointer(param, index, texts, value.dims, scope)
    masked = "" if mask is None else f", mask={mask.text}"
    scope.src.line(f"tl.store({pointer.text}, {bare(to_storage(value.typed, param.type.dtype))}{masked})")


# --- indices from data, guards ----------------------------------------------------------------------------------------


def _checked(expr: Checked, value: Value, scope: Scope) -> Value:
    return checked_index(expr, value, scope)[0]


def checked_index(expr: Checked, value: Value, scope: Scope) -> tuple[Value, Value]:
    """An index from data, 0 where it is outside of its dim, and whether it is inside; reported where it is not."""
    src, size = scope.src, atom(expr.size, scope).text
    text = value.typed if expr.value.dtype == torch.int64 else f"{value.typed}.to(tl.int64)"
    index = src.let("at", f"tl.where({text} < 0, {text} + {size}, {text})" if expr.wrap else text)
    inside = src.let("inside", f"({index} >= 0) & ({index} < {size})")
    mask = scope.mask(value.dims)
    wrong = f"({inside} == 0)" + ("" if mask is None else f" & {mask.text}")
    if value.dims or (mask is not None and mask.dims):
        src.line(f"lib.report({ERROR}, {wrong})")
    else:
        src.line(f"tl.store({ERROR}, 1, mask={wrong})")
    narrow = "" if scope.bits == 64 else ".to(tl.int32)"
    chosen = src.let("at", f"tl.where({inside}, {index}, 0){narrow}")
    return Value(chosen, value.dims), Value(inside, value.dims)


def condition(expr: Guard, scope: Scope) -> Value | None:
    """Which points a guard lets pass; None for all."""
    index = atom(expr.index, scope)
    parts = []
    if not scope.bounds.never_negative(expr.index):
        parts.append(f"({index.text} >= 0)")
    if not scope.bounds.never_negative(expr.size - 1 - expr.index):
        parts.append(f"({index.text} < {atom(expr.size, scope).text})")
    return Value(" & ".join(parts), index.dims) if parts else None


def _guard(expr: Guard, scope: Scope) -> Value:
    found = condition(expr, scope)
    if found is None:
        return value_of(expr.then, scope)
    inside = Value(scope.src.let("inside", found.text), found.dims)
    outside = Value(f"({inside.text} == 0)", inside.dims)
    chosen = []
    for side, value in ((inside, expr.then), (outside, expr.otherwise)):
        guard = (
            side if scope.guard is None else Value(f"{scope.guard.text} & {side.text}", side.dims | scope.guard.dims)
        )
        chosen.append(value_of(value, scope.under(guard)))
    texts = _beside(chosen, True)
    return Value(f"tl.where({inside.text}, {', '.join(texts)})", inside.dims.union(*(c.dims for c in chosen)))
