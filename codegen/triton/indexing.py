"""Index arithmetic and offsets as Triton text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy

from ...ir.errors import UnsupportedError
from ...ir.types import Dim
from ..program import Affine, Axis, Expr, Index, Param, as_fraction
from .scope import NONE, Dims, Scope, Value
from .source import size_name
from .width import strides_of

_SUM, _PRODUCT, _ATOM = range(3)  # how strongly a text holds together


def is_number(index: Affine) -> bool:
    """Whether an index expression is known, and its text a literal."""
    return isinstance(index, int) or bool(index.is_Integer)


def index_value(index: Affine, scope: Scope) -> Value:
    """An index expression.

    Raises:
        UnsupportedError: it uses a function that sizes do not have.
    """
    text, _, dims = _text(index, scope)
    return Value(text, dims)


def atom(index: Affine, scope: Scope) -> Value:
    """:func:`index_value` as a text that can stand in any place."""
    text, strength, dims = _text(index, scope)
    return Value(text if strength == _ATOM else f"({text})", dims)


def dim_text(dim: Dim, scope: Scope) -> str:
    """A size, as a text that can stand in any place."""
    return atom(dim, scope).text


_Text = tuple[str, int, Dims]


def _text(index: Affine, scope: Scope) -> _Text:
    if isinstance(index, int) or index.is_Integer:
        number = int(index)
        return str(number), _ATOM if number >= 0 else _SUM, NONE
    if index.is_Symbol:
        if index in scope.axes:
            value = scope.axes[index]
            return value.text, _ATOM if value.text.isidentifier() or value.text.isdigit() else _SUM, value.dims
        if index not in scope.program.symbols:
            raise UnsupportedError(f"Triton: {index} has no value here")
        return size_name(index), _ATOM, NONE
    if isinstance(index, sympy.floor):
        return _quotient(*as_fraction(index.args[0]), scope)
    if isinstance(index, sympy.ceiling):
        numerator, denominator = as_fraction(index.args[0])
        text, _, dims = _quotient(-numerator, denominator, scope)
        return f"-({text})", _SUM, dims
    numerator, denominator = as_fraction(index)
    if denominator != 1:  # exact by construction: only sizes known to divide come here
        return _quotient(numerator, denominator, scope)
    return _arithmetic(index, scope)


def _quotient(numerator: sympy.Expr, denominator: sympy.Expr, scope: Scope) -> _Text:
    above, below = atom(numerator, scope), atom(denominator, scope)
    dims = above.dims | below.dims
    if scope.bounds.never_negative(numerator):
        return f"{above.text} // {below.text}", _PRODUCT, dims
    return f"lib.int_floor_div({_typed(above, scope)}, {below.text})", _ATOM, dims


def _typed(value: Value, scope: Scope) -> str:
    literal = value.text.strip("()-").isdigit()
    return f"tl.full((), {value.text}, {scope.index_type})" if literal else value.text


def _arithmetic(index: sympy.Expr, scope: Scope) -> _Text:
    match index:
        case sympy.Add():
            return _sum(index, scope)
        case sympy.Mul():
            return _product(index, scope)
        case sympy.Pow():
            base = atom(index.base, scope)
            return " * ".join([base.text] * int(index.exp)), _PRODUCT, base.dims
        case sympy.Mod():
            return _remainder(index.args[0], index.args[1], scope)
        case sympy.Max() | sympy.Min():
            name = "tl.maximum" if isinstance(index, sympy.Max) else "tl.minimum"
            first, *rest = (atom(a, scope) for a in index.args)
            text, dims = first.text, first.dims
            for other in rest:
                text, dims = f"{name}({text}, {other.text})", dims | other.dims
            return text, _ATOM, dims
    raise UnsupportedError(f"Triton: an index expression of kind {type(index).__name__}: {index}")


def _sum(index: sympy.Expr, scope: Scope) -> _Text:
    text, dims = "", NONE
    # numbers last
    for term in sorted(index.args, key=lambda a: bool(a.is_Number)):
        negative = bool(term.could_extract_minus_sign())
        part, strength, found = _text(-term if negative else term, scope)
        part = f"({part})" if strength == _SUM else part
        text = f"{text} {'-' if negative else '+'} {part}" if text else f"-{part}" if negative else part
        dims |= found
    return text, _SUM, dims


def _product(index: sympy.Expr, scope: Scope) -> _Text:
    # numbers last: i0 * 768
    factors = [atom(a, scope) for a in sorted(index.args, key=lambda a: bool(a.is_Number))]
    return " * ".join(f.text for f in factors), _PRODUCT, frozenset[int]().union(*(f.dims for f in factors))


def _remainder(number: sympy.Expr, divisor: sympy.Expr, scope: Scope) -> _Text:
    above, below = atom(number, scope), atom(divisor, scope)
    dims = above.dims | below.dims
    if scope.bounds.never_negative(number):
        return f"{above.text} % {below.text}", _PRODUCT, dims
    return f"lib.int_remainder({_typed(above, scope)}, {below.text})", _ATOM, dims


def offset(param: Param, index: Sequence[Index], texts: Mapping[Expr, Value], scope: Scope) -> Value:
    """An element's offset from its parameter's pointer; ``texts`` has the indices that come from data."""
    affine: Affine = sympy.Integer(0)
    parts, dims = [], NONE
    for i, stride in zip(index, strides_of(param), strict=True):
        if isinstance(i, Expr):
            size = dim_text(stride, scope)
            parts.append(texts[i].typed if size == "1" else f"{texts[i].typed} * {size}")
            dims |= texts[i].dims
        else:
            affine = affine + i * stride
    known = sympy.expand(affine)
    if known != 0 or not parts:
        value = index_value(known, scope)
        parts.insert(0, value.text)
        dims |= value.dims
    return Value(" + ".join(parts), dims)


# --- axes of a flat index ---------------------------------------------------------------------------------------------


def decode(flat: Value, axes: tuple[Axis, ...], scope: Scope) -> dict[sympy.Symbol, Value]:
    """The value of each axis, given the row-major index over all of them; divisions are written to the source."""
    found: dict[sympy.Symbol, Value] = {}
    rest = flat.text
    for axis in reversed(axes[1:]):
        size = dim_text(axis.size, scope)
        found[axis.symbol] = Value(scope.src.let(axis_name(axis), f"{rest} % {size}"), flat.dims)
        rest = f"{rest} // {size}"
    if len(axes) > 1:
        found[axes[0].symbol] = Value(scope.src.let(axis_name(axes[0]), rest), flat.dims)
    elif axes:
        found[axes[0].symbol] = flat
    return found


def axis_name(axis: Axis) -> str:
    """What an axis is called in a kernel."""
    name = axis.name if axis.name.isidentifier() else "i"
    return name if name.startswith("i") else f"i_{name}"
