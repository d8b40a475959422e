"""Exact evaluation over finite fields: both sides of a rule as rational functions, at random points.

A floating-point element is a pair of residues modulo two primes P and Q, where Q divides P - 1, so that
``exp(x) = G ** x`` takes residues modulo Q to residues modulo P and keeps ``exp(a + b) = exp(a) exp(b)`` (the method of
Mirage, Wu et al., OSDI 2025). What has no algebra here is a fixed random function of its operand (tanh, erf, a square
root), and the order of elements is a fixed random one. Minus infinity is kept apart: ``a - inf = -inf`` and
``exp(-inf) = 0``, as for operands that are finite.

Two sides that differ as such functions agree at a random point with at most the probability that :func:`agree` reports
(``degree.py``; for exponentials it takes their results for independent variables, as Mirage does). Rounding is no part
of it, so this is evidence for rules that promise the same real function, and not for those that promise the same bits.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import sympy

from ...ir import ops
from ...ir.node import Node, OpDef, Trait, topological
from .degree import error_bound
from .positions import BeyondProofError
from .unfold import decomposed, sizes_of

Q = 2**61 - 1
P = 52 * Q + 1
G = pow(2, 52, P)  # of order Q

Element = Any  # a pair of residues modulo P and Q, the second None where there is none; or LOW
Array = Any  # of numpy: elements, or bool, or integers
LOW = "-inf"


def agree(before: Node, after: Node, seed: int) -> float:
    """The probability, at most, that two different functions agree at a random point as these two nodes do.

    All sizes are numbers. The points are drawn by ``seed``.

    Raises:
        DisagreeError: they differ there, and so as functions.
        BeyondProofError: an operator has no meaning over a field.
    """
    before, after = decomposed(before), decomposed(after)
    if any(isinstance(size, sympy.Expr) for node in topological([before, after]) for size in sizes_of(node)):
        raise BeyondProofError("a size that is a symbol over a field")
    values = _Values(random.Random(seed))
    expected, found = values.of(before), values.of(after)
    if expected.shape != found.shape or not all(map(_same, expected.flat, found.flat)):
        raise DisagreeError("they differ as functions")
    return error_bound(before, after, Q)


class DisagreeError(BeyondProofError):
    """Two nodes have different values at some point."""


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        return bool(a[0] == b[0])
    return bool(a == b)


class _Values:
    """Values of nodes at one random point."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.known: dict[Node, Array] = {}

    def of(self, root: Node) -> Array:
        for node in topological([root]):
            if node not in self.known:
                self.known[node] = self._value(node)
        return self.known[root]

    def _value(self, node: Node) -> Array:
        if node.op in (ops.input, ops.weight):
            return self._random(node)
        if node.op is ops.full:
            return _filled(node.shape, _constant(node.attrs["value"], node.dtype.is_floating_point))
        args = [self.known[x] for x in node.inputs]
        if node.op in _VIEWS:
            return _VIEWS[node.op](node, *args)
        if node.op in _ROWS:
            return _reduced(_ROWS[node.op], node, args[0])
        if node.has(Trait.POINTWISE):
            return self._pointwise(node, args)
        raise BeyondProofError(f"{node.op.name} has no meaning over a field")

    def _random(self, node: Node) -> Array:
        count = math.prod(int(n) for n in node.shape)
        if node.dtype.is_floating_point:
            drawn: list[Any] = [(self.draw.randrange(P), self.draw.randrange(Q)) for _ in range(count)]
        elif node.dtype.is_signed:
            drawn = [self.draw.randint(-9, 9) for _ in range(count)]
        else:
            drawn = [bool(self.draw.getrandbits(1)) for _ in range(count)]
        return _array(drawn, node.shape)

    def _pointwise(self, node: Node, args: list[Array]) -> Array:
        if node.op is ops.cast:
            return _cast(node, args[0])
        floats = node.inputs[-1].dtype.is_floating_point
        table = _FLOATS if floats else _OTHERS
        function = table.get(node.op) or (_CHOICE if node.op is ops.where else None)
        if function is None and floats and node.dtype.is_floating_point:
            function = _oracle(f"{node.op.name} {dict(node.attrs)}")
        if function is None:
            raise BeyondProofError(f"{node.op.name} has no meaning over a field")
        return _broadcast(function, args)


def _array(elements: list[Any], shape: Any) -> Array:
    found = np.empty(len(elements), dtype=object)
    found[:] = elements
    return found.reshape(tuple(int(n) for n in shape))


def _filled(shape: Any, element: Any) -> Array:
    return _array([element] * math.prod(int(n) for n in shape), shape)


def _broadcast(function: Callable[..., Any], args: list[Array]) -> Array:
    wide = np.broadcast_arrays(*args)
    return _array([function(*xs) for xs in zip(*(x.flat for x in wide), strict=True)], wide[0].shape)


# --- elements ---------------------------------------------------------------------------------------------------------


def _constant(value: Any, is_float: bool) -> Any:
    if not is_float:
        return value
    if value == -math.inf:
        return LOW
    if not math.isfinite(value):
        raise BeyondProofError(f"the constant {value} over a field")
    number = Fraction(value)
    return tuple(number.numerator * pow(number.denominator, -1, m) % m for m in (P, Q))


ZERO, ONE = (0, 0), (1, 1)


def _cast(node: Node, x: Array) -> Array:
    source, target = node.inputs[0].dtype, node.dtype
    if source.is_floating_point and target.is_floating_point:
        return x
    if target.is_floating_point:
        return _broadcast(lambda e: _constant(int(e), True), [x])
    if source.is_floating_point:
        raise BeyondProofError("a cast to integers over a field")
    raise BeyondProofError("a cast of integers over a field")


def _both(function: Callable[..., int]) -> Callable[..., Element]:
    """A function of residues, modulo P and modulo Q."""

    def of(*xs: Element) -> Element:
        if LOW in xs:
            raise BeyondProofError("a product with an infinity over a field")
        second = None if any(x[1] is None for x in xs) else function(Q, *(x[1] for x in xs)) % Q
        return function(P, *(x[0] for x in xs)) % P, second

    return of


_plus = _both(lambda m, a, b: a + b)
_minus = _both(lambda m, a, b: a - b)


def _add(a: Element, b: Element) -> Element:
    return LOW if LOW in (a, b) else _plus(a, b)


def _sub(a: Element, b: Element) -> Element:
    if b == LOW:
        raise BeyondProofError("an infinity subtracted over a field")
    return LOW if a == LOW else _minus(a, b)


def _quotient(m: int, a: int, b: int) -> int:
    if b % m == 0:
        raise BeyondProofError("a division by zero over a field")
    return a * pow(b, -1, m)


_div = _both(_quotient)


def _exp(x: Element) -> Element:
    if x == LOW:
        return ZERO
    return _oracle("exp")(x) if x[1] is None else (pow(G, x[1], P), None)


def _oracle(name: str) -> Callable[..., Element]:
    """A fixed random function of residues modulo P, with values in both fields."""

    def of(*xs: Element) -> Element:
        if LOW in xs:
            raise BeyondProofError(f"{name} of an infinity over a field")
        digest = hashlib.sha256(f"{name} {[x[0] for x in xs]}".encode()).digest()
        return int.from_bytes(digest[:16], "big") % P, int.from_bytes(digest[16:], "big") % Q

    return of


def _rank(x: Element) -> tuple[int, Any]:
    """Where an element stands in the random order."""
    return (0, 0) if x == LOW else (1, hashlib.sha256(str(x[0]).encode()).digest())


def _larger(a: Element, b: Element) -> Element:
    return a if _rank(a) >= _rank(b) else b


def _smaller(a: Element, b: Element) -> Element:
    return a if _rank(a) <= _rank(b) else b


def _power(x: Element, exponent: Element) -> Element:
    for n in (1, 2, 3):
        if exponent == _constant(n, True):
            return _both(lambda m, a: a**n)(x)  # noqa: B023 - called at once
        if exponent == _constant(-n, True):
            return _both(lambda m, a: _quotient(m, 1, a**n))(x)  # noqa: B023 - called at once
    raise BeyondProofError("a power that is no small number over a field")


_sqrt = _oracle("sqrt")
_FLOATS: dict[OpDef, Callable[..., Any]] = {
    ops.add: _add,
    ops.sub: _sub,
    ops.mul: _both(lambda m, a, b: a * b),
    ops.div: _div,
    ops.neg: _both(lambda m, a: -a),
    ops.reciprocal: lambda x: _div(ONE, x),
    ops.exp: _exp,
    ops.sqrt: _sqrt,
    ops.rsqrt: lambda x: _div(ONE, _sqrt(x)),
    ops.sigmoid: lambda x: _div(ONE, _plus(ONE, _exp(_sub(ZERO, x)))),
    ops.pow: _power,
    ops.maximum: _larger,
    ops.minimum: _smaller,
    ops.eq: _same,
    ops.ne: lambda a, b: not _same(a, b),
    ops.lt: lambda a, b: _rank(a) < _rank(b),
    ops.le: lambda a, b: _rank(a) <= _rank(b),
    ops.gt: lambda a, b: _rank(a) > _rank(b),
    ops.ge: lambda a, b: _rank(a) >= _rank(b),
    ops.where: lambda c, a, b: a if c else b,
}
_CHOICE = _FLOATS[ops.where]
_OTHERS: dict[OpDef, Callable[..., Any]] = {
    ops.eq: lambda a, b: a == b,
    ops.ne: lambda a, b: a != b,
    ops.lt: lambda a, b: a < b,
    ops.le: lambda a, b: a <= b,
    ops.gt: lambda a, b: a > b,
    ops.ge: lambda a, b: a >= b,
    ops.bit_and: lambda a, b: a & b,
    ops.bit_or: lambda a, b: a | b,
    ops.bit_xor: lambda a, b: a ^ b,
    ops.bit_not: lambda a: not a if isinstance(a, bool) else ~a,
}


# --- rows and views ---------------------------------------------------------------------------------------------------

_ROWS: dict[OpDef, tuple[Callable[[Any, Any], Any], Any]] = {
    ops.sum: (_add, ZERO),
    ops.prod: (_FLOATS[ops.mul], ONE),
    ops.amax: (_larger, None),
    ops.amin: (_smaller, None),
    ops.all: (lambda a, b: a and b, True),
    ops.any: (lambda a, b: a or b, False),
}


def _reduced(how: tuple[Callable[[Any, Any], Any], Any], node: Node, x: Array) -> Array:
    combine, start = how
    if node.op in (ops.sum, ops.prod, ops.amax, ops.amin) and not node.dtype.is_floating_point:
        raise BeyondProofError(f"{node.op.name} of integers over a field")
    dims: Any = node.attrs["dims"]
    rest = [d for d in range(x.ndim) if d not in dims]
    rows = x.transpose(*rest, *dims).reshape(*(x.shape[d] for d in rest), -1 if x.size else 0)
    found = [_folded(combine, start, row) for row in rows.reshape(-1, rows.shape[-1])] if x.size else []
    if not x.size:
        found = [_folded(combine, start, [])] * math.prod(int(n) for n in node.shape)
    return _array(found, node.shape)


def _folded(combine: Callable[[Any, Any], Any], start: Any, row: Any) -> Any:
    items: Iterator[Any] = iter(row)
    if start is None:
        start = next(items, None)
        if start is None:
            raise BeyondProofError("the largest of no elements")
    for x in items:
        start = combine(start, x)
    return start


def _matmul(node: Node, a: Array, b: Array) -> Array:
    if not node.dtype.is_floating_point:
        raise BeyondProofError("a product of integers over a field")
    shape = tuple(int(n) for n in node.shape)
    batch, times = shape[:-2], _FLOATS[ops.mul]
    left, right = np.broadcast_to(a, (*batch, *a.shape[-2:])), np.broadcast_to(b, (*batch, *b.shape[-2:]))
    found = []
    for position in itertools.product(*map(range, shape)):
        across: Any = (*position[:-2], position[-2])
        down: Any = (*position[:-2], slice(None), position[-1])
        row, column = left[across], right[down]
        found.append(_folded(_add, ZERO, (times(x, y) for x, y in zip(row, column, strict=True))))
    return _array(found, shape)


def _slice(node: Node, x: Array) -> Array:
    at: list[Any] = [slice(None)] * x.ndim
    dim, start, stop, step = _numbers(node, "dim", "start", "stop", "step")
    at[dim] = slice(start, stop, step)
    return x[tuple(at)]


def _windows(node: Node, x: Array) -> Array:
    dim, size, step, apart, count = _numbers(node, "dim", "size", "step", "apart", "count")
    return np.take(x, np.arange(count)[:, None] * step + np.arange(size) * apart, dim)


def _numbers(node: Node, *names: str) -> Any:
    """Attributes that are numbers here."""
    return [node.attrs[name] for name in names]


def _pad(node: Node, x: Array) -> Array:
    low, high = _numbers(node, "low", "high")
    if any(n < 0 for n in (*low, *high)):
        raise BeyondProofError("a crop over a field")
    found = _filled(node.shape, _constant(node.attrs["value"], node.dtype.is_floating_point))
    inside: Any = tuple(slice(lo, lo + n) for lo, n in zip(low, x.shape, strict=True))
    found[inside] = x
    return found


def _arange(node: Node) -> Array:
    start, step = _numbers(node, "start", "step")
    whole = [start + step * i for i in range(int(node.shape[0]))]
    return _array([_constant(v, node.dtype.is_floating_point) for v in whole], node.shape)


def _index(node: Node, x: Array, *indices: Array) -> Array:
    dim: Any = node.attrs["dim"]
    at: Any = (slice(None),) * dim + tuple(i.astype(np.int64) for i in indices)
    return x[at]


_VIEWS: dict[OpDef, Callable[..., Array]] = {
    ops.reshape: lambda node, x: x.reshape(tuple(int(n) for n in node.shape)),
    ops.permute: lambda node, x: x.transpose(node.attrs["dims"]),
    ops.expand: lambda node, x: np.broadcast_to(x, tuple(int(n) for n in node.shape)),
    ops.flip: lambda node, x: np.flip(x, node.attrs["dims"]),
    ops.slice_: _slice,
    ops.windows: _windows,
    ops.concat: lambda node, *xs: np.concatenate(xs, node.attrs["dim"]),
    ops.pad: _pad,
    ops.arange: _arange,
    ops.index: _index,
    ops.matmul: _matmul,
}
