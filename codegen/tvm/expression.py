"""Program expressions as TIR text.

Values are computed in their dtype, half types in float32. A subexpression that is used twice is bound to a name first,
so the text grows with the expression, not with the number of paths through it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import sympy
import torch

from ...ir.errors import UnsupportedError
from ..program import Apply, Checked, Const, Expr, Guard, Index, IndexValue, Load, Param, Program, Ref, operands
from .source import Source

HALF = (torch.float16, torch.bfloat16)

# how elements lie in memory; bool as bytes and bfloat16 as its bits, for TIR has no vectors of them in memory
STORAGE: dict[torch.dtype, str] = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "uint16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "int8",
}


ERROR_PARAM = "err"  # the cell that kernels set when an index is out of range


def compute_type(dtype: torch.dtype) -> str:
    """The TIR type that values of a dtype are computed in."""
    if dtype == torch.bool:
        return "bool"
    return "float32" if dtype in HALF else STORAGE[dtype]


@dataclass(frozen=True)
class Scope:
    """How names are spelled at one place in a kernel.

    ``axes`` gives the TIR text of each axis symbol, ``refs`` that of each stage's value here. Bindings are written to
    ``src``.
    """

    program: Program
    src: Source
    axes: Mapping[sympy.Symbol, str] = field(default_factory=dict)
    refs: Mapping[str, str] = field(default_factory=dict)

    def at(self, axes: Mapping[sympy.Symbol, str]) -> Scope:
        """This scope with more axes named."""
        return replace(self, axes={**self.axes, **axes})

    def knowing(self, refs: Mapping[str, str]) -> Scope:
        """This scope with more stages named."""
        return replace(self, refs={**self.refs, **refs})


# --- index expressions ------------------------------------------------------------------------------------------------


def index_text(index: sympy.Expr | int, scope: Scope) -> str:
    """The TIR text of an index expression: int64."""
    if isinstance(index, int) or index.is_Integer:
        return f"T.int64({int(index)})"
    if index.is_Symbol:
        return scope.axes.get(index, str(index))
    args = [index_text(a, scope) for a in index.args] if not isinstance(index, sympy.floor) else []
    match index:
        case sympy.Add():
            return f"({' + '.join(args)})"
        case sympy.Mul():
            return _product_text(index, scope)
        case sympy.Pow():
            return f"({' * '.join([args[0]] * int(index.exp))})"
        case sympy.Mod():
            return f"T.floormod({args[0]}, {args[1]})"
        case sympy.floor():
            numerator, denominator = sympy.fraction(sympy.together(index.args[0]))
            return f"T.floordiv({index_text(numerator, scope)}, {index_text(denominator, scope)})"
        case sympy.Max() | sympy.Min():
            name = "T.max" if isinstance(index, sympy.Max) else "T.min"
            text = args[0]
            for other in args[1:]:
                text = f"{name}({text}, {other})"
            return text
    raise UnsupportedError(f"an index expression of kind {type(index).__name__}: {index}")


def _product_text(index: sympy.Expr, scope: Scope) -> str:
    numerator, denominator = sympy.fraction(index)
    if denominator != 1:  # exact by construction: only sizes known to divide come here
        return f"T.floordiv({index_text(numerator, scope)}, {index_text(denominator, scope)})"
    return f"({' * '.join(index_text(a, scope) for a in index.args)})"


def offset_text(param: Param, index: tuple[sympy.Expr | int, ...], scope: Scope) -> str:
    """The TIR text of an element's offset in its flat buffer."""
    return _offset_text(param, index, {}, scope)


def _offset_text(param: Param, index: tuple[Index, ...], texts: Mapping[Expr, str], scope: Scope) -> str:
    affine: sympy.Expr | int = 0
    computed = []
    for i, stride in zip(index, param.strides, strict=True):
        if isinstance(i, sympy.Expr | int):
            affine = affine + i * stride
        else:
            computed.append(f"{texts[i]} * {index_text(stride, scope)}")
    known = sympy.expand(affine)
    return " + ".join(([index_text(known, scope)] if known != 0 or not computed else []) + computed)


# --- values -----------------------------------------------------------------------------------------------------------

_BINARY = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "eq": "({0} == {1})",
    "ne": "({0} != {1})",
    "lt": "({0} < {1})",
    "le": "({0} <= {1})",
    "gt": "({0} > {1})",
    "ge": "({0} >= {1})",
}
_FLOAT = {
    "maximum": "helpers.maximum({0}, {1})",
    "minimum": "helpers.minimum({0}, {1})",
    "neg": "(-{0})",
    "abs": "T.fabs({0})",
    "sign": "helpers.sign({0})",
    "reciprocal": "(helpers.one({0}) / {0})",
    "floor": "T.floor({0})",
    "ceil": "T.ceil({0})",
    "round": "T.nearbyint({0})",
    "trunc": "T.trunc({0})",
    "isnan": "T.isnan({0})",
    "pow": "T.pow({0}, {1})",
    "fmod": "T.fmod({0}, {1})",
    "remainder": "helpers.float_remainder({0}, {1})",
    "floor_div": "helpers.float_floor_div({0}, {1})",
    "trunc_div": "T.trunc({0} / {1})",
    "atan2": "T.atan2({0}, {1})",
    "sqrt": "T.sqrt({0})",
    "tan": "T.tan({0})",
    "log2": "T.log2({0})",
    "exp2": "T.exp2({0})",
    **{
        name: f"vmath.{name}({{0}})"
        for name in ("exp", "expm1", "log", "log1p", "tanh", "erf", "sigmoid", "sin", "cos", "rsqrt")
    },
}
_INTEGER = {
    "maximum": "helpers.maximum({0}, {1})",
    "minimum": "helpers.minimum({0}, {1})",
    "neg": "(-{0})",
    "abs": "T.abs({0})",
    "sign": "helpers.sign({0})",
    "floor_div": "helpers.int_floor_div({0}, {1})",
    "trunc_div": "helpers.int_trunc_div({0}, {1})",
    "remainder": "helpers.int_remainder({0}, {1})",
    "fmod": "helpers.int_fmod({0}, {1})",
    "bit_and": "({0} & {1})",
    "bit_or": "({0} | {1})",
    "bit_xor": "({0} ^ {1})",
    "bit_not": "(~{0})",
}
_BOOL = {
    "bit_and": "T.And({0}, {1})",
    "bit_or": "T.Or({0}, {1})",
    "bit_xor": "({0} != {1})",
    "bit_not": "T.Not({0})",
    "maximum": "T.Or({0}, {1})",
    "minimum": "T.And({0}, {1})",
    "add": "T.Or({0}, {1})",
    "mul": "T.And({0}, {1})",
    "eq": "({0} == {1})",
    "ne": "({0} != {1})",
}


def supports(op: str, dtype: torch.dtype) -> bool:
    """Whether a pointwise primitive on operands of a dtype can be written as TIR."""
    return dtype in STORAGE and (op in ("where", "cast") or op in _templates(dtype))


def _templates(dtype: torch.dtype) -> Mapping[str, str]:
    if dtype == torch.bool:
        return _BOOL
    if dtype.is_floating_point:
        return {**_BINARY, **_FLOAT}
    return {**_BINARY, **_INTEGER}


def scalar(expr: Expr, scope: Scope) -> str:
    """The TIR text of an expression, in its compute type; bindings are written to the scope's source."""
    return scalars([expr], scope)[0]


def scalars(exprs: list[Expr], scope: Scope) -> list[str]:
    """:func:`scalar` of several expressions, what they share bound once."""
    order = _outside_guards(exprs)
    uses = Counter(x for e in order for x in _operands_outside_guards(e))
    texts: dict[Expr, str] = {}
    for expr in order:
        text = _text(expr, texts, scope)
        if uses[expr] > 1 and not isinstance(expr, Const | Ref | Checked):
            name = scope.src.fresh("v")
            scope.src.line(f"{name}: T.let = {text}")
            text = name
        texts[expr] = text
    return [texts[e] for e in exprs]


def _operands_outside_guards(expr: Expr) -> tuple[Expr, ...]:
    # a guarded load must not run unguarded: what stands under a guard is written in place, never bound before it
    if isinstance(expr, Guard):
        return ()
    return operands(expr)


def _outside_guards(exprs: list[Expr]) -> list[Expr]:
    found: list[Expr] = []
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(e, False) for e in reversed(exprs)]
    while stack:
        expr, ready = stack.pop()
        if ready:
            found.append(expr)
        elif expr not in seen:
            seen.add(expr)
            stack.append((expr, True))
            stack.extend((x, False) for x in reversed(_operands_outside_guards(expr)) if x not in seen)
    return found


def _text(expr: Expr, texts: dict[Expr, str], scope: Scope) -> str:
    match expr:
        case Const():
            return const_text(expr)
        case IndexValue():
            return f'T.Cast("{compute_type(expr.dtype)}", {index_text(expr.index, scope)})'
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


def _checked_text(expr: Checked, value: str, scope: Scope) -> str:
    index, size = scope.src.fresh("index"), index_text(expr.size, scope)
    wide = value if expr.dtype == torch.int64 else f'T.Cast("int64", {value})'
    scope.src.line(f"{index}: T.let = " + (f"helpers.wrapped({wide}, {size})" if expr.wrap else wide))
    with scope.src.block(f"if T.Or({index} < T.int64(0), {index} >= {size})"):
        scope.src.line(f"{ERROR_PARAM}[0] = T.int64(1)")
    return f"helpers.inside({index}, {size})"


def _guard_text(expr: Guard, scope: Scope) -> str:
    index = index_text(expr.index, scope)
    inside = f"T.And({index} >= T.int64(0), {index} < {index_text(expr.size, scope)})"
    return f"T.if_then_else({inside}, {_nested(expr.then, scope)}, {_nested(expr.otherwise, scope)})"


def _nested(expr: Expr, scope: Scope) -> str:
    texts: dict[Expr, str] = {}
    for e in _outside_guards([expr]):
        if isinstance(e, Checked):
            raise UnsupportedError("TVM: an index from data under a guard")
        texts[e] = _text(e, texts, scope)
    return texts[expr]


def const_text(expr: Const) -> str:
    """The TIR text of a constant."""
    kind = compute_type(expr.dtype)
    if kind == "bool":
        return "T.bool(True)" if expr.value else "T.bool(False)"
    if not kind.startswith("float"):
        return f"T.{kind}({int(expr.value)})"
    value = float(expr.value)
    if math.isnan(value) or math.isinf(value):
        return f'T.{kind}("{value}")'
    return f"T.{kind}({value!r})"


def load_text(param: Param, index: tuple[sympy.Expr | int, ...], scope: Scope) -> str:
    """The TIR text of an element, in the param's compute type."""
    text = f"{param.name}[{offset_text(param, index, scope)}]"
    return from_storage(text, param.type.dtype)


def from_storage(text: str, dtype: torch.dtype) -> str:
    """An element as stored, as a value."""
    if dtype == torch.bool:
        return f"({text} != T.int8(0))"
    if dtype == torch.bfloat16:
        return f"helpers.from_bf16({text})"
    return f'T.Cast("float32", {text})' if dtype == torch.float16 else text


def to_storage(text: str, dtype: torch.dtype) -> str:
    """A value as it is stored."""
    if dtype == torch.bool:
        return f'T.Cast("int8", {text})'
    if dtype == torch.bfloat16:
        return f"helpers.to_bf16({text})"
    return f'T.Cast("float16", {text})' if dtype == torch.float16 else text


def store_line(param: Param, index: tuple[sympy.Expr | int, ...], value: str, scope: Scope) -> str:
    """One TIR statement that stores a value."""
    return f"{param.name}[{offset_text(param, index, scope)}] = {to_storage(value, param.type.dtype)}"


def _apply_text(expr: Apply, args: list[str]) -> str:
    operand = expr.args[0].dtype
    if expr.op == "where":
        return f"T.Select({args[0]}, {args[1]}, {args[2]})"
    if expr.op == "cast":
        return _cast_text(args[0], operand, expr.dtype)
    try:
        return _templates(operand)[expr.op].format(*args)
    except KeyError:
        raise UnsupportedError(f"TVM: no code for {expr.op} on {operand}") from None


def _cast_text(text: str, source: torch.dtype, target: torch.dtype) -> str:
    if target == torch.bool:
        zero = "T.bool(False)" if source == torch.bool else f"T.{compute_type(source)}(0)"
        return f"({text} != {zero})"
    if target in HALF:  # an explicit cast rounds
        wide = text if compute_type(source) == "float32" else f'T.Cast("float32", {text})'
        return from_storage(to_storage(wide, target), target)
    if compute_type(source) == compute_type(target):
        return text
    if source.is_floating_point and not target.is_floating_point:
        return f'helpers.float_to_int({text}, "{STORAGE[target]}")'
    return f'T.Cast("{compute_type(target)}", {text})'
