"""Program expressions as TIR text.

Values are computed in their dtype, half types in float32. A subexpression that is used twice is bound to a name first,
so the text grows with the expression, not with the number of paths through it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import sympy
import torch

from ...ir.errors import UnsupportedError
from ...ir.types import DTYPE_NAMES
from ..program import (
    Affine,
    Apply,
    Checked,
    Const,
    Expr,
    Guard,
    Index,
    IndexValue,
    Load,
    Param,
    Program,
    Ref,
    as_fraction,
    is_guard,
    operands,
    postorder,
)
from .names import BOOLS, FLOATS, INTEGERS
from .source import Source, size_name
from .storage import HALF, STORAGE, cast_text, compute_type, const_text, from_storage, to_storage

__all__ = [
    "ERROR_PARAM",
    "HALF",
    "STORAGE",
    "Scope",
    "bound",
    "compute_type",
    "const_text",
    "element_text",
    "from_storage",
    "index_text",
    "load_text",
    "offset_text",
    "scalar",
    "scalars",
    "store_line",
    "supports",
    "to_storage",
]

ERROR_PARAM = "err"  # the cell that kernels set when an index is out of range


@dataclass(frozen=True)
class Scope:
    """How names are spelled at one place in a kernel.

    ``axes`` gives the TIR text of each axis symbol, ``refs`` that of each stage's value here, ``known`` that of
    expressions which were computed before. Bindings are written to ``src``.
    """

    program: Program
    src: Source
    axes: Mapping[sympy.Symbol, str] = field(default_factory=dict)
    refs: Mapping[str, str] = field(default_factory=dict)
    known: Mapping[Expr, str] = field(default_factory=dict)

    def at(self, axes: Mapping[sympy.Symbol, str]) -> Scope:
        """This scope with more axes named."""
        return replace(self, axes={**self.axes, **axes})

    def knowing(self, refs: Mapping[str, str]) -> Scope:
        """This scope with more stages named."""
        return replace(self, refs={**self.refs, **refs})

    def having(self, known: Mapping[Expr, str]) -> Scope:
        """This scope with more expressions computed."""
        return replace(self, known={**self.known, **known})


# --- index expressions ------------------------------------------------------------------------------------------------


def index_text(index: Affine, scope: Scope) -> str:
    """The TIR text of an index expression: int64.

    Raises:
        UnsupportedError: it uses a function that sizes do not have.
    """
    if isinstance(index, int) or index.is_Integer:
        return f"T.int64({int(index)})"
    if index.is_Symbol:
        known = scope.axes.get(index)
        return known or (size_name(index) if index in scope.program.symbols else str(index))
    if isinstance(index, sympy.floor):
        return _quotient_text(*as_fraction(index.args[0]), scope)
    if isinstance(index, sympy.ceiling):
        numerator, denominator = as_fraction(index.args[0])
        return f"(T.int64(0) - {_quotient_text(-numerator, denominator, scope)})"
    numerator, denominator = as_fraction(index)
    if denominator != 1:  # exact by construction: only sizes known to divide come here
        return _quotient_text(numerator, denominator, scope)
    return _arithmetic_text(index, scope)


def _quotient_text(numerator: sympy.Expr, denominator: sympy.Expr, scope: Scope) -> str:
    return f"T.floordiv({index_text(numerator, scope)}, {index_text(denominator, scope)})"


def _arithmetic_text(index: sympy.Expr, scope: Scope) -> str:
    if isinstance(index, sympy.Pow):
        return f"({' * '.join([index_text(index.base, scope)] * int(index.exp))})"
    args = [index_text(a, scope) for a in index.args]
    match index:
        case sympy.Add():
            return f"({' + '.join(args)})"
        case sympy.Mul():
            return f"({' * '.join(args)})"
        case sympy.Mod():
            return f"T.floormod({args[0]}, {args[1]})"
        case sympy.Max() | sympy.Min():
            name = "T.max" if isinstance(index, sympy.Max) else "T.min"
            text = args[0]
            for other in args[1:]:
                text = f"{name}({text}, {other})"
            return text
    raise UnsupportedError(f"TVM: an index expression of kind {type(index).__name__}: {index}")


def offset_text(param: Param, index: Sequence[Affine], scope: Scope) -> str:
    """The TIR text of an element's offset in its flat buffer."""
    return _offset_text(param, index, {}, scope)


def _offset_text(param: Param, index: Sequence[Index], texts: Mapping[Expr, str], scope: Scope) -> str:
    affine: Affine = 0
    computed = []
    for i, stride in zip(index, param.strides, strict=True):
        if isinstance(i, Expr):
            computed.append(f"{texts[i]} * {index_text(stride, scope)}")
        else:
            affine = affine + i * stride
    known = sympy.expand(affine)
    return " + ".join(([index_text(known, scope)] if known != 0 or not computed else []) + computed)


# --- values -----------------------------------------------------------------------------------------------------------


def functions_for(dtype: torch.dtype) -> tuple[str, frozenset[str]]:
    """The pointwise operators on operands of a dtype, and the name by which kernels call the table."""
    if dtype == torch.bool:
        return "bools", BOOLS
    return ("floats", FLOATS) if dtype.is_floating_point else ("integers", INTEGERS)


def supports(op: str, dtype: torch.dtype) -> bool:
    """Whether a pointwise primitive on operands of a dtype can be written as TIR."""
    return dtype in STORAGE and (op in ("where", "cast") or op in functions_for(dtype)[1])


def scalar(expr: Expr, scope: Scope) -> str:
    """The TIR text of an expression, in its compute type; bindings are written to the scope's source."""
    return scalars([expr], scope)[0]


def scalars(exprs: Sequence[Expr], scope: Scope) -> list[str]:
    """:func:`scalar` of several expressions, what they share bound once."""
    # a guarded load must not run unguarded: what stands under a guard is written there, never bound before it
    order = list(postorder(exprs, lambda e: is_guard(e) or e in scope.known))
    uses = Counter([*exprs, *(x for e in order if not is_guard(e) for x in operands(e))])
    uses.update(x for e in order if _repeats_operands(e) for x in operands(e))
    texts: dict[Expr, str] = {}
    for expr in order:
        text = scope.known.get(expr) or _text(expr, texts, scope)
        if uses[expr] > 1 and not isinstance(expr, Const | Ref | Checked) and expr not in scope.known:
            text = bound(text, expr.dtype, scope)
        texts[expr] = text
    return [texts[e] for e in exprs]


# operators whose code has its operands more than once
_REPEATING = {"maximum", "minimum", "sign", "abs", "floor_div", "trunc_div", "remainder", "fmod"}


def _repeats_operands(expr: Expr) -> bool:
    return isinstance(expr, Apply) and (expr.op in _REPEATING or (expr.op == "cast" and expr.dtype == torch.bfloat16))


def bound(text: str, dtype: torch.dtype, scope: Scope) -> str:
    """The text of a value that was written to a cell first."""
    is_bool = dtype == torch.bool
    cell = scope.src.cell("v", "int8" if is_bool else compute_type(dtype))
    scope.src.line(f"{cell} = " + (f'T.Cast("int8", {text})' if is_bool else text))
    return f"({cell} != T.int8(0))" if is_bool else cell


def _text(expr: Expr, texts: Mapping[Expr, str], scope: Scope) -> str:
    match expr:
        case Const():
            return const_text(expr.value, expr.dtype)
        case IndexValue():
            text = index_text(expr.index, scope)
            return text if expr.dtype == torch.int64 else f'T.Cast("{compute_type(expr.dtype)}", {text})'
        case Load():
            param = scope.program.param(expr.param)
            return from_storage(f"{param.name}[{_offset_text(param, expr.index, texts, scope)}]", param.type.dtype)
        case Ref():
            return scope.refs[expr.stage]
        case Checked():
            return _checked_text(expr, texts[expr.value], scope)
        case Guard():
            return _guard_text(expr, scope)
        case Apply():
            return _apply_text(expr, [texts[a] for a in expr.args])


def _apply_text(expr: Apply, args: Sequence[str]) -> str:
    operand = expr.args[0].dtype
    if expr.op == "where":
        return f"T.Select({args[0]}, {args[1]}, {args[2]})"
    if expr.op == "cast":
        return cast_text(args[0], operand, expr.dtype)
    table, functions = functions_for(operand)
    if expr.op not in functions:
        raise UnsupportedError(f"TVM: no code for {expr.op} on {DTYPE_NAMES.get(operand, str(operand))}")
    return f"{table}.{expr.op}({', '.join(args)})"


# --- indices from data, guards ----------------------------------------------------------------------------------------


def checked_index(expr: Checked, value: str, scope: Scope) -> tuple[str, str]:
    """An index from data, and the condition that it is inside. Writes both down, and reports it where it is outside."""
    index, size = scope.src.cell("index", "int64"), index_text(expr.size, scope)
    wide = value if expr.value.dtype == torch.int64 else f'T.Cast("int64", {value})'
    scope.src.line(f"{index} = " + (f"helpers.wrapped({wide}, {size})" if expr.wrap else wide))
    inside = f"T.And({index} >= T.int64(0), {index} < {size})"
    with scope.src.block(f"if T.Not({inside})"):
        scope.src.line(f"{ERROR_PARAM}[0] = T.int64(1)")
    return index, inside


def _checked_text(expr: Checked, value: str, scope: Scope) -> str:
    index, inside = checked_index(expr, value, scope)
    return f"T.Select({inside}, {index}, T.int64(0))"


def condition_text(expr: Guard, scope: Scope) -> str:
    """Whether a guard lets its first value pass."""
    index = index_text(expr.index, scope)
    return f"T.And({index} >= T.int64(0), {index} < {index_text(expr.size, scope)})"


def _guard_text(expr: Guard, scope: Scope) -> str:
    condition = condition_text(expr, scope)
    if _is_one_expression([expr.then, expr.otherwise]):
        return f"T.if_then_else({condition}, {_in_place(expr.then, scope)}, {_in_place(expr.otherwise, scope)})"
    is_bool = expr.dtype == torch.bool
    cell = scope.src.cell("cell", "int8" if is_bool else compute_type(expr.dtype))
    for head, value in ((f"if {condition}", expr.then), ("else", expr.otherwise)):
        with scope.src.block(head):
            text = scalar(value, scope)
            scope.src.line(f"{cell} = " + (f'T.Cast("int8", {text})' if is_bool else text))
    return f"({cell} != T.int8(0))" if is_bool else cell


# operators that write no statements of their own while they are parsed
_ONE_EXPRESSION = {
    *("add", "sub", "mul", "div", "neg", "where", "cast", "isnan", "eq", "ne", "lt", "le", "gt", "ge"),
    *("bit_and", "bit_or", "bit_xor", "bit_not", "floor", "ceil", "round", "trunc", "reciprocal", "float8_value"),
    "float8_of",
}


def _is_one_expression(exprs: Iterable[Expr]) -> bool:
    """Whether expressions need no statement before them, which would run whatever the guard says."""
    return not any(
        isinstance(e, Checked) or (isinstance(e, Apply) and e.op not in _ONE_EXPRESSION) for e in postorder(exprs)
    )


def _in_place(root: Expr, scope: Scope) -> str:
    texts: dict[Expr, str] = {}
    for expr in postorder([root], lambda e: is_guard(e) or e in scope.known):
        texts[expr] = scope.known.get(expr) or _text(expr, texts, scope)
    return texts[root]


# --- memory -----------------------------------------------------------------------------------------------------------


def load_text(param: Param, index: Sequence[Index], scope: Scope) -> str:
    """The TIR text of an element, in the param's compute type."""
    return from_storage(f"{param.name}[{element_text(param, index, scope)}]", param.type.dtype)


def element_text(param: Param, index: Sequence[Index], scope: Scope) -> str:
    """The TIR text of an element's offset in its flat buffer; an index may come from data."""
    return _offset_text(param, index, {i: scalar(i, scope) for i in index if isinstance(i, Expr)}, scope)


def store_line(param: Param, index: Sequence[Index], value: str, scope: Scope) -> str:
    """One TIR statement that stores a value."""
    element = element_text(param, index, scope)
    if param.type.dtype == torch.bfloat16:  # its rounding has the value more than once
        value = bound(value, torch.float32, scope)
    return f"{param.name}[{element}] = {to_storage(value, param.type.dtype)}"
