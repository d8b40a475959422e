"""Scalar expressions of kernel programs, and the index arithmetic in them.

Expressions are values, interned: equal ones are one object, so that comparing them is cheap however much they share.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, TypeAlias, TypeVar, Union, cast

import sympy
import torch

from ..ir.node import attr_key
from ..ir.types import Dim

Affine: TypeAlias = Dim  # arithmetic on axes and sizes
Index: TypeAlias = Union[Affine, "Expr"]  # or a value that comes from data


@cache
def axis_symbol(name: str) -> sympy.Symbol:
    """The symbol that stands for an axis in index maps. The underscore sets it apart from a size of the same name."""
    return sympy.Symbol(f"_{name}", integer=True, nonnegative=True)


@dataclass(frozen=True)
class Axis:
    """A loop of a kernel: indices 0 .. size - 1."""

    name: str
    size: Dim

    @property
    def symbol(self) -> sympy.Symbol:
        """What stands for the axis in index maps."""
        return axis_symbol(self.name)


def as_fraction(index: sympy.Expr) -> tuple[sympy.Expr, sympy.Expr]:
    """Numerator and denominator, both without divisions of their own: (a + b) / 2 is not a / 2 + b / 2 in integers."""
    factors = (f for term in sympy.Add.make_args(index) for f in sympy.Mul.make_args(term))
    if any((f.is_Rational and not f.is_Integer) or (f.is_Pow and f.exp.is_negative) for f in factors):
        numerator, denominator = sympy.fraction(sympy.together(index))
        return numerator, denominator
    return index, sympy.Integer(1)


_INTERNED: weakref.WeakValueDictionary[tuple[Any, ...], Any] = weakref.WeakValueDictionary()
_LOCK = threading.RLock()  # setdefault of a weak dictionary is not atomic
_T = TypeVar("_T")


def _interned(cls: type[_T]) -> type[_T]:
    """Make equal expressions one object: comparing and hashing them is then cheap however much they share."""
    names = [f.name for f in fields(cls)]  # type: ignore[arg-type]

    def new(kind: type[_T], *args: Any, **kwargs: Any) -> _T:
        values = (*args, *(kwargs[name] for name in names[len(args) :]))
        key = (kind, tuple(attr_key(v) for v in values))
        found = _INTERNED.get(key)
        if found is None:
            with _LOCK:
                found = _INTERNED.setdefault(key, object.__new__(kind))
        return cast(_T, found)

    cls.__new__ = new  # type: ignore[method-assign, assignment]
    return cls


@_interned
@dataclass(frozen=True, eq=False)
class Const:
    """A number."""

    value: float | int | bool
    dtype: torch.dtype


@_interned
@dataclass(frozen=True, eq=False)
class IndexValue:
    """An index expression (axes and sizes) as a number."""

    index: Affine
    dtype: torch.dtype


@_interned
@dataclass(frozen=True, eq=False)
class Load:
    """An element of a parameter. An index that is an expression comes from data, by way of :class:`Checked`."""

    param: str
    index: tuple[Index, ...]
    dtype: torch.dtype


@_interned
@dataclass(frozen=True, eq=False)
class Ref:
    """The value of an earlier stage at a point of its axes."""

    stage: str
    index: tuple[Affine, ...]
    dtype: torch.dtype


@_interned
@dataclass(frozen=True, eq=False)
class Apply:
    """A pointwise primitive of the IR, by name, on expressions of one dtype. ``dtype`` is the result's."""

    op: str
    args: tuple[Expr, ...]
    dtype: torch.dtype


@_interned
@dataclass(frozen=True, eq=False)
class Guard:
    """``then`` where 0 <= index < size, ``otherwise`` elsewhere; the side not taken is not evaluated (no load)."""

    index: Affine
    size: Dim
    then: Expr
    otherwise: Expr

    @property
    def dtype(self) -> torch.dtype:
        """That of both sides."""
        return self.then.dtype


@_interned
@dataclass(frozen=True, eq=False)
class Checked:
    """An index that comes from data: wrapped once if negative (``wrap``), reported and made 0 if outside [0, size)."""

    value: Expr
    size: Dim
    wrap: bool

    @property
    def dtype(self) -> torch.dtype:
        """int64, whatever the data is."""
        return torch.int64


Expr: TypeAlias = Const | IndexValue | Load | Ref | Apply | Guard | Checked


def operands(expr: Expr) -> tuple[Expr, ...]:
    """The expressions directly inside an expression, indices included."""
    match expr:
        case Apply():
            return expr.args
        case Guard():
            return (expr.then, expr.otherwise)
        case Checked():
            return (expr.value,)
        case Load():
            return tuple(i for i in expr.index if isinstance(i, Expr))
        case _:
            return ()


def postorder(roots: Iterable[Expr], stop: Callable[[Expr], bool] | None = None) -> Iterator[Expr]:
    """Every expression in the roots once, operands first; what is below one that ``stop`` accepts is left out.

    Not recursive.
    """
    roots = tuple(roots)
    seen: set[Expr] = set()
    stack: list[tuple[Expr, bool]] = [(root, False) for root in reversed(roots)]
    while stack:
        expr, ready = stack.pop()
        if ready:
            yield expr
        elif expr not in seen:
            seen.add(expr)
            stack.append((expr, True))
            if stop is None or not stop(expr):
                stack.extend((x, False) for x in reversed(operands(expr)) if x not in seen)


def is_guard(expr: Expr) -> bool:
    """Whether an expression evaluates one of its operands only: what ``postorder`` may have to stop at."""
    return isinstance(expr, Guard)
