"""Size expressions: their one normal form, their value for given sizes, and their text.

An expression is built of sympy's ``Add``, ``Mul``, ``Pow``, ``floor``, ``ceiling``, ``Mod``, ``Max`` and ``Min``.
PyTorch's shape environment has functions of its own for most of these; the normal form replaces them, so that one size
has one expression whoever computed it.
"""

from __future__ import annotations

import functools
import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import sympy
import torch.utils._sympy.functions as torch_sympy

from .errors import TypeRuleError

FUNCTIONS: dict[str, Any] = {
    "floor": sympy.floor,
    "ceil": sympy.ceiling,
    "Mod": sympy.Mod,
    "Max": sympy.Max,
    "Min": sympy.Min,
}
PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _floor_of_quotient(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    return sympy.floor(a / b)


_FROM_TORCH: dict[Any, Callable[..., sympy.Expr]] = {
    torch_sympy.FloorDiv: _floor_of_quotient,
    torch_sympy.CleanDiv: operator.truediv,
    torch_sympy.IntTrueDiv: operator.truediv,
    torch_sympy.ModularIndexing: lambda base, divisor, modulus: sympy.Mod(sympy.floor(base / divisor), modulus),
    torch_sympy.Mod: sympy.Mod,
    torch_sympy.PythonMod: sympy.Mod,
    torch_sympy.Max: sympy.Max,
    torch_sympy.Min: sympy.Min,
    torch_sympy.PowByNatural: operator.pow,
    torch_sympy.CeilToInt: sympy.ceiling,
    torch_sympy.FloorToInt: sympy.floor,
    torch_sympy.Identity: lambda x: x,
}


@functools.lru_cache(maxsize=65536)
def normal_form(dim: sympy.Expr) -> int | sympy.Expr:
    """The expanded expression in sympy's own functions; an ``int`` where it is a number.

    Raises:
        TypeRuleError: the expression is a number that is not whole, or uses a function that sizes do not have.
    """
    expanded = _settled(dim)
    if expanded.is_Integer:
        return int(expanded)
    if expanded.is_number:
        raise TypeRuleError(f"{dim} is not a size: it is not a whole number")
    for part in sympy.preorder_traversal(expanded):
        whole_power = not part.is_Pow or part.exp.is_Integer
        if not whole_power or not (part.is_Symbol or part.is_Rational or part.func in _MEANING):
            raise TypeRuleError(f"{dim} is not a size: it uses {part.func.__name__}")
    return expanded


def _settled(dim: sympy.Expr) -> sympy.Expr:
    """The expression that building anew leaves as it is: sympy simplifies as it builds, and not always all at once."""
    for _ in range(8):
        again = sympy.expand(_rebuilt(dim))
        if again == dim:
            break
        dim = again
    return dim


def _rebuilt(dim: Any) -> Any:
    """The expression built anew from its leaves, in sympy's functions."""
    if not dim.args:
        return dim
    args = [_rebuilt(arg) for arg in dim.args]
    if dim.func in (sympy.Max, sympy.Min):
        # which simplifications these find depends on the order of their arguments, and the order on the process
        args.sort(key=str)
    return _FROM_TORCH.get(dim.func, dim.func)(*args)


# --- value ------------------------------------------------------------------------------------------------------------

_MEANING: dict[Any, Callable[..., Any]] = {
    sympy.Add: lambda *terms: sum(terms),
    sympy.Mul: lambda *factors: math.prod(factors),
    sympy.Pow: lambda base, exponent: Fraction(base) ** exponent,
    sympy.floor: math.floor,
    sympy.ceiling: math.ceil,
    sympy.Mod: operator.mod,
    sympy.Max: max,
    sympy.Min: min,
}


def value_of(dim: sympy.Expr, sizes: Mapping[sympy.Symbol, int]) -> int:
    """An expression's value, computed without sympy's machinery, which takes a hundred times as long.

    Raises:
        TypeRuleError: a symbol has no size, or the value is not a whole number.
    """
    try:
        value = _value(dim, sizes)
    except ZeroDivisionError as error:
        raise TypeRuleError(f"the size {dim} divides by zero") from error
    if isinstance(value, Fraction) and value.denominator == 1:
        return value.numerator
    if not isinstance(value, int):
        raise TypeRuleError(f"the size {dim} is {value}: not a whole number")
    return value


def _value(dim: Any, sizes: Mapping[sympy.Symbol, int]) -> int | Fraction:
    if dim.is_Symbol:
        if dim not in sizes:
            raise TypeRuleError(f"the size of {dim} is not known")
        return sizes[dim]
    if dim.is_Integer:
        return int(dim)
    if dim.is_Rational:
        return Fraction(dim.p, dim.q)
    return _MEANING[dim.func](*(_value(arg, sizes) for arg in dim.args))  # type: ignore[no-any-return]


# --- text -------------------------------------------------------------------------------------------------------------

# words that mean something else in the text of a graph
RESERVED = {"none", "true", "false", "inf", "nan", "in", "graph", "device", "layout", "memory_format", *FUNCTIONS}
_DTYPE_LIKE = re.compile(r"bool|(bf|[fiuc])[0-9]+")
_SUM, _QUOTIENT, _PRODUCT, _POWER, _ATOM = range(5)


@functools.lru_cache(maxsize=65536)
def print_dim(dim: int | sympy.Expr) -> str:
    """The text of a dim in normal form: Python's operators, and the names in ``FUNCTIONS``. ``ir.parse`` reads it."""
    return str(dim) if isinstance(dim, int) else _text(dim)[0]


def print_symbol(name: str) -> str:
    """A symbol's name, quoted where it would read as something else."""
    plain = PLAIN_NAME.fullmatch(name) and name not in RESERVED and not _DTYPE_LIKE.fullmatch(name)
    return name if plain else f"${json.dumps(name)}"


def _text(dim: Any) -> tuple[str, int]:
    """An expression's text and how strongly its outermost operator binds."""
    if dim.is_Symbol:
        return print_symbol(dim.name), _ATOM
    if dim.is_Rational:
        return str(dim), _ATOM if dim.is_Integer and dim >= 0 else _SUM
    if dim.is_Add:
        return _sum_text(dim), _SUM
    if dim.is_Mul or (dim.is_Pow and dim.exp.is_negative):
        return _product_text(dim)
    if dim.is_Pow and dim.exp.is_Integer:
        return f"{_within(dim.base, _ATOM)}**{dim.exp}", _POWER
    return _floor_text(dim) if isinstance(dim, sympy.floor) else (_call_text(dim), _ATOM)


def _within(dim: Any, strength: int) -> str:
    text, binds = _text(dim)
    return text if binds >= strength else f"({text})"


def _negative(term: Any) -> bool:
    return bool(term.as_coeff_Mul()[0] < 0)


def _sum_text(dim: Any) -> str:
    first, *rest = dim.as_ordered_terms()
    signed = [f" - {_within(-t, _QUOTIENT)}" if _negative(t) else f" + {_within(t, _QUOTIENT)}" for t in rest]
    return (_text(first)[0] if first.is_Rational else _within(first, _QUOTIENT)) + "".join(signed)


def _product_text(dim: Any) -> tuple[str, int]:
    if _negative(dim):
        # a leading minus binds as in Python: -(a//b), not -a//b
        return "-" + _within(-dim, _PRODUCT), _QUOTIENT
    over, under = sympy.fraction(dim)
    text = "*".join(_within(factor, _POWER) for factor in over.as_ordered_factors())
    return (text, _PRODUCT) if under == 1 else (f"{text}/{_within(under, _ATOM)}", _QUOTIENT)


def _floor_text(dim: Any) -> tuple[str, int]:
    over, under = dim.args[0].as_numer_denom()
    # a//b where that is read back as the same expression
    if under != 1 and normal_form(_floor_of_quotient(over, under)) == dim:
        return f"{_within(over, _POWER)}//{_within(under, _ATOM)}", _QUOTIENT
    return _call_text(dim), _ATOM


def _call_text(dim: Any) -> str:
    name = next(name for name, function in FUNCTIONS.items() if dim.func is function)
    args = sorted(dim.args, key=str) if name in ("Max", "Min") else dim.args
    return f"{name}({', '.join(_text(arg)[0] for arg in args)})"
