"""What one element is to the solver: three readings, each of which is sound for what it is used for.

- :class:`Free`: operators on floating-point elements are functions of which nothing is known, so what is proved holds
  in every dtype and rounding, NaN and infinities included. Logic is read as it is. Integers are read as whole numbers
  where they come from ranges and sizes alone (which are taken not to overflow), and as unknown values elsewhere.
- :class:`Bits`: floating-point arithmetic as IEEE 754 has it in the dtype, integers as bits that wrap around.
- :class:`Reals`: floating-point elements are real numbers, and dtypes of them are not told apart. Proofs hold where a
  rule promises the same real function, for finite operands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sympy
import torch
import z3

from ...ir import ops
from ...ir.node import Node, OpDef, attr_key
from ...ir.types import DTYPE_NAMES
from ..pattern import COMMUTATIVE
from .positions import BeyondProofError

Term = Any  # of z3, which has no types

_FLIPPED = {ops.gt: ops.lt, ops.ge: ops.le}
_FORMATS = {torch.float16: (5, 11), torch.bfloat16: (8, 8), torch.float32: (8, 24), torch.float64: (11, 53)}


def whole_number(x: Any) -> Term:
    """A size or position as an integer of the solver.

    Raises:
        BeyondProofError: it uses a function that has no counterpart.
    """
    x = sympy.sympify(x)
    if x.is_Integer:
        return z3.IntVal(int(x))
    if x.is_Symbol:
        return z3.Int(x.name)
    if x.is_Add or x.is_Mul:
        numerator, denominator = x.as_numer_denom()
        if denominator != 1:
            raise BeyondProofError(f"{x} is not a polynomial with whole coefficients")
        parts = [whole_number(arg) for arg in x.args]
        return z3.Sum(parts) if x.is_Add else z3.Product(parts)
    if x.is_Pow and x.exp.is_Integer and x.exp > 0:
        return z3.Product([whole_number(x.base)] * int(x.exp))
    if isinstance(x, sympy.floor | sympy.ceiling):
        numerator, denominator = x.args[0].as_numer_denom()
        if denominator.is_Integer and denominator > 0:
            top = whole_number(sympy.expand(numerator)) + (int(denominator) - 1 if isinstance(x, sympy.ceiling) else 0)
            return top / int(denominator)
    if isinstance(x, sympy.Max | sympy.Min):
        first, *others = map(whole_number, x.args)
        for y in others:
            first = z3.If(first >= y if isinstance(x, sympy.Max) else first <= y, first, y)
        return first
    raise BeyondProofError(f"the size {x} has no reading")


class Free:
    """Operators on numbers as unknown functions."""

    name = "any arithmetic"

    def __init__(self, whole: bool) -> None:
        self.whole = whole  # read integers as whole numbers

    def sort(self, dtype: torch.dtype) -> Any:
        """The sort of elements of a dtype."""
        if dtype == torch.bool:
            return z3.BoolSort()
        if self.whole and not dtype.is_floating_point:
            return z3.IntSort()
        return z3.DeclareSort(DTYPE_NAMES[dtype])

    def constant(self, value: Any, dtype: torch.dtype) -> Term:
        """A constant that an attribute holds: a number or a size."""
        if isinstance(value, sympy.Expr):
            return self.size(value, dtype)
        if dtype == torch.bool:
            return z3.BoolVal(bool(value))
        if self.whole and isinstance(value, int) and not isinstance(value, bool):
            return z3.IntVal(value)
        if isinstance(value, float) and value.is_integer() and math.copysign(1, value) > 0:
            return self.size(int(value), dtype)
        return z3.Const(f"{DTYPE_NAMES[dtype]} {attr_key(value)}", self.sort(dtype))

    def size(self, value: Any, dtype: torch.dtype) -> Term:
        """A size or an element of a range in some dtype."""
        number = whole_number(value)
        return number if self.sort(dtype) == z3.IntSort() else self._number(dtype)(number)

    def _number(self, dtype: torch.dtype) -> Any:
        return z3.Function(f"number {DTYPE_NAMES[dtype]}", z3.IntSort(), self.sort(dtype))

    def apply(self, node: Node, args: Sequence[Term]) -> Term:
        """An operator on elements; ``node`` says which, with what attributes and dtypes."""
        op = node.op
        if op in _FLIPPED:
            op, args = _FLIPPED[op], args[::-1]
        if op is ops.where:
            return _chosen(*args)
        if op is ops.cast:
            return self.cast(node.inputs[0].dtype, node.dtype, args[0])
        if node.inputs[0].dtype == torch.bool and op in _LOGIC:
            return _LOGIC[op](*args)
        return self.number(op, node, args)

    def generalised(self, claim: Term) -> Term:
        """A claim that implies the given one and may be easier to decide."""
        return claim

    def number(self, op: OpDef, node: Node, args: Sequence[Term]) -> Term:
        """An operator on numbers."""
        if self.whole and not node.inputs[0].dtype.is_floating_point and op in _WHOLE:
            return _WHOLE[op](*args)
        return self.unknown(op, node, args)

    def unknown(self, op: OpDef, node: Node, args: Sequence[Term]) -> Term:
        """An operator as a function of which nothing is known but that operands of some commute."""
        if op in COMMUTATIVE:
            args = sorted(args, key=lambda term: term.get_id())
        attrs = {k: attr_key(v) for k, v in node.attrs.items()}
        name = f"{op.name} {attrs or ''} {'.'.join(DTYPE_NAMES[x.dtype] for x in node.inputs)}"
        return z3.Function(name, *(x.sort() for x in args), self.sort(node.dtype))(*args)

    def combine(self, name: str, node: Node, rows: Sequence[Term], lengths: Sequence[Term]) -> Term:
        """What rows of elements, as functions of their positions, are combined to: an unknown function of them."""
        if name in ("all", "any") and z3.is_false(rows[0].body()):
            # true of no elements alone
            return z3.Or(*(n == 0 for n in lengths)) if name == "all" else z3.BoolVal(False)
        args = [*rows, *lengths]
        result = self.sort(node.dtype)
        return z3.Function(f"{name} of {result}", *(x.sort() for x in args), result)(*args)

    def cast(self, source: torch.dtype, target: torch.dtype, x: Term) -> Term:
        """An element in another dtype."""
        if source == target:
            return x
        if source == torch.bool:
            return z3.If(x, self.constant(1, target), self.constant(0, target))
        if self.whole and x.sort() == z3.IntSort() and target in (torch.float32, torch.float64):
            return self._number(target)(x)
        return z3.Function(f"cast {DTYPE_NAMES[source]} {DTYPE_NAMES[target]}", x.sort(), self.sort(target))(x)


class Bits(Free):
    """IEEE 754 arithmetic, and integers that wrap around."""

    name = "IEEE 754 and machine integers"

    def __init__(self) -> None:
        super().__init__(whole=False)

    def sort(self, dtype: torch.dtype) -> Any:
        """The sort of elements of a dtype."""
        if dtype in _FORMATS:
            return z3.FPSort(*_FORMATS[dtype])
        return z3.BoolSort() if dtype == torch.bool else z3.BitVecSort(torch.iinfo(dtype).bits)

    def constant(self, value: Any, dtype: torch.dtype) -> Term:
        """A constant that an attribute holds: a number or a size."""
        if dtype == torch.bool:
            return z3.BoolVal(bool(value))
        if isinstance(value, sympy.Expr):
            return self.size(value, dtype)
        if dtype in _FORMATS:
            # an attribute is a double, which the dtype may round
            number = z3.FPVal(float(value), z3.FPSort(11, 53))
            return z3.simplify(z3.fpFPToFP(z3.RNE(), number, self.sort(dtype)))
        return z3.BitVecVal(int(value), self.sort(dtype))

    def size(self, value: Any, dtype: torch.dtype) -> Term:
        """A size in an integer dtype: any bits at all, since nothing is known of how it relates to positions."""
        if dtype in _FORMATS:
            raise BeyondProofError("a size as a floating-point number")
        x = sympy.sympify(value)
        if x.is_Integer:
            return z3.BitVecVal(int(x), self.sort(dtype))
        if x.is_Symbol:
            return z3.Const(f"size {x.name}", self.sort(dtype))
        if not (x.is_Add or x.is_Mul):
            raise BeyondProofError(f"the size {x} as bits")
        total, *others = (self.size(arg, dtype) for arg in x.args)
        for y in others:
            total = total + y if x.is_Add else total * y
        return total

    def generalised(self, claim: Term) -> Term:
        """The claim for elements that are any values, which leaves one theory to the solver."""
        reads = list(_reads(claim))
        return z3.substitute(claim, *((x, z3.FreshConst(x.sort())) for x in reads))

    def number(self, op: OpDef, node: Node, args: Sequence[Term]) -> Term:
        """An operator on numbers."""
        table = _IEEE if node.inputs[0].dtype in _FORMATS else _INTEGER
        return table[op](*args) if op in table else self.unknown(op, node, args)

    def cast(self, source: torch.dtype, target: torch.dtype, x: Term) -> Term:
        """An element in another dtype; what a cast gives that is out of range is not defined."""
        if source == target:
            return x
        if source == torch.bool:
            return z3.If(x, self.constant(1, target), self.constant(0, target))
        sort = self.sort(target)
        if source in _FORMATS:
            return z3.fpFPToFP(z3.RNE(), x, sort) if target in _FORMATS else self._truncated(source, target, x)
        if target in _FORMATS:
            convert = z3.fpSignedToFP if torch.iinfo(source).min else z3.fpUnsignedToFP
            return convert(z3.RNE(), x, sort)
        if target == torch.bool:
            return x != 0
        more = sort.size() - x.size()
        if more <= 0:
            return z3.Extract(sort.size() - 1, 0, x)
        return z3.SignExt(more, x) if torch.iinfo(source).min else z3.ZeroExt(more, x)

    def _truncated(self, source: torch.dtype, target: torch.dtype, x: Term) -> Term:
        """A floating-point number as an integer; of what is out of range nothing is known."""
        unknown = super().cast(source, target, x)
        if target == torch.bool or not torch.iinfo(target).min:
            return unknown
        limit = 2.0 ** (torch.iinfo(target).bits - 1)
        low, high = (self.constant(v, torch.float64) for v in (-limit, limit))
        wide = z3.fpFPToFP(z3.RNE(), x, z3.FPSort(11, 53))
        inside = z3.And(z3.fpLEQ(low, wide), z3.fpLT(wide, high))
        return z3.If(inside, z3.fpToSBV(z3.RTZ(), x, self.sort(target)), unknown)


class Reals(Free):
    """Floating-point elements as real numbers. What is computed from an infinity or a NaN is an unknown function."""

    name = "real numbers"

    def __init__(self, whole: bool) -> None:
        super().__init__(whole)
        self._infinite: dict[int, Term] = {}  # by the id of a term, which holding the term keeps its own

    def sort(self, dtype: torch.dtype) -> Any:
        """The sort of elements of a dtype."""
        return z3.RealSort() if dtype.is_floating_point else super().sort(dtype)

    def constant(self, value: Any, dtype: torch.dtype) -> Term:
        """A constant that an attribute holds: a number or a size."""
        if not dtype.is_floating_point:
            return super().constant(value, dtype)
        if isinstance(value, sympy.Expr):
            return self.size(value, dtype)
        if not math.isfinite(value):
            return self._mark(z3.Const(f"real {value}", z3.RealSort()))
        return z3.RatVal(*float(value).as_integer_ratio())

    def size(self, value: Any, dtype: torch.dtype) -> Term:
        """A size or an element of a range in some dtype."""
        return z3.ToReal(whole_number(value)) if dtype.is_floating_point else super().size(value, dtype)

    def apply(self, node: Node, args: Sequence[Term]) -> Term:
        """An operator on elements; ``node`` says which, with what attributes and dtypes."""
        marked = [x for x in args if x.get_id() in self._infinite]
        if not marked:
            return super().apply(node, args)
        if node.op in (ops.eq, ops.ne) and len(marked) == 1 and z3.is_const(marked[0]):
            return z3.BoolVal(node.op is ops.ne)  # a number is no infinity
        found = super().apply(node, args) if node.op in (ops.where, ops.cast) else self._unknown_real(node, args)
        return self._mark(found)

    def combine(self, name: str, node: Node, rows: Sequence[Term], lengths: Sequence[Term]) -> Term:
        """What rows of elements are combined to."""
        found = super().combine(name, node, rows, lengths)
        # a row is a function: its body is what may be marked
        return self._mark(found) if any(x.body().get_id() in self._infinite for x in rows) else found

    def number(self, op: OpDef, node: Node, args: Sequence[Term]) -> Term:
        """An operator on numbers."""
        if not node.inputs[0].dtype.is_floating_point:
            return super().number(op, node, args)
        return _REAL[op](*args) if op in _REAL else self._unknown_real(node, args)

    def _unknown_real(self, node: Node, args: Sequence[Term]) -> Term:
        if node.op in COMMUTATIVE:
            args = sorted(args, key=lambda term: term.get_id())
        name = f"{node.op.name} {({k: attr_key(v) for k, v in node.attrs.items()}) or ''}"
        return z3.Function(name, *(x.sort() for x in args), self.sort(node.dtype))(*args)

    def _mark(self, term: Term) -> Term:
        self._infinite[term.get_id()] = term
        return term

    def cast(self, source: torch.dtype, target: torch.dtype, x: Term) -> Term:
        """An element in another dtype: the same number, where both are floating-point."""
        if source.is_floating_point and target.is_floating_point:
            return x
        if self.whole and x.sort() == z3.IntSort() and target.is_floating_point:
            return z3.ToReal(x)
        return super().cast(source, target, x)


def _chosen(condition: Term, x: Term, y: Term) -> Term:
    """One of two elements."""
    if z3.is_true(condition) or z3.is_false(condition):
        return x if z3.is_true(condition) else y
    return z3.If(condition, x, y)


def _reads(claim: Term) -> Iterator[Term]:
    """The elements of operands in a claim, each once."""
    seen: set[int] = set()
    waiting = [claim]
    while waiting:
        x = waiting.pop()
        if x.get_id() in seen or not z3.is_app(x):
            continue
        seen.add(x.get_id())
        if x.decl().kind() == z3.Z3_OP_UNINTERPRETED and x.num_args() == 1 and x.arg(0).sort() == z3.IntSort():
            yield x
        else:
            waiting.extend(x.children())


_LOGIC: dict[OpDef, Callable[..., Term]] = {
    ops.bit_and: z3.And,
    ops.bit_or: z3.Or,
    ops.bit_xor: z3.Xor,
    ops.bit_not: z3.Not,
    ops.eq: lambda a, b: a == b,
    ops.ne: lambda a, b: z3.Not(a == b),
}
_ARITHMETIC: dict[OpDef, Callable[..., Term]] = {
    ops.add: lambda a, b: a + b,
    ops.sub: lambda a, b: a - b,
    ops.mul: lambda a, b: a * b,
    ops.neg: lambda a: -a,
}
_ORDER: dict[OpDef, Callable[..., Term]] = {
    ops.lt: lambda a, b: a < b,
    ops.le: lambda a, b: a <= b,
    ops.eq: lambda a, b: a == b,
    ops.ne: lambda a, b: z3.Not(a == b),
    ops.maximum: lambda a, b: z3.If(a < b, b, a),
    ops.minimum: lambda a, b: z3.If(b < a, b, a),
}
_WHOLE = _ARITHMETIC | _ORDER
_INTEGER = _WHOLE | {
    ops.bit_and: lambda a, b: a & b,
    ops.bit_or: lambda a, b: a | b,
    ops.bit_xor: lambda a, b: a ^ b,
    ops.bit_not: lambda a: ~a,
}


def _nan_or(choice: Callable[[Term, Term], Term]) -> Callable[[Term, Term], Term]:
    return lambda a, b: z3.If(z3.fpIsNaN(a), a, z3.If(z3.fpIsNaN(b), b, choice(a, b)))


_IEEE: dict[OpDef, Callable[..., Term]] = {
    ops.add: lambda a, b: z3.fpAdd(z3.RNE(), a, b),
    ops.sub: lambda a, b: z3.fpSub(z3.RNE(), a, b),
    ops.mul: lambda a, b: z3.fpMul(z3.RNE(), a, b),
    ops.div: lambda a, b: z3.fpDiv(z3.RNE(), a, b),
    ops.neg: z3.fpNeg,
    ops.abs: z3.fpAbs,
    ops.sqrt: lambda a: z3.fpSqrt(z3.RNE(), a),
    ops.reciprocal: lambda a: z3.fpDiv(z3.RNE(), z3.FPVal(1, a.sort()), a),
    ops.lt: z3.fpLT,
    ops.le: z3.fpLEQ,
    ops.eq: z3.fpEQ,
    ops.ne: lambda a, b: z3.Not(z3.fpEQ(a, b)),
    ops.isnan: z3.fpIsNaN,
    ops.maximum: _nan_or(lambda a, b: z3.If(z3.fpLT(a, b), b, a)),
    ops.minimum: _nan_or(lambda a, b: z3.If(z3.fpLT(b, a), b, a)),
}


def _normal(x: Term) -> Term:
    """A polynomial as a sum of monomials, so that equal ones are arguments of one function."""
    return z3.simplify(x, som=True)


def _inverse(x: Term) -> Term:
    """1 / x as a function of which nothing is known: zero has none."""
    x = _normal(x)
    if z3.is_rational_value(x) and x.as_fraction() != 0:
        return z3.RatVal(x.denominator_as_long(), x.numerator_as_long())
    return z3.Function("inverse", z3.RealSort(), z3.RealSort())(x)


def _power(x: Term, exponent: Term) -> Term:
    """x to a constant power that is whole or a half."""
    e = z3.simplify(exponent)
    if not z3.is_rational_value(e) or e.as_fraction() not in (1, 2, 3, -1, -2, 0.5, -0.5):
        return z3.Function("pow", z3.RealSort(), z3.RealSort(), z3.RealSort())(x, exponent)
    power = e.as_fraction()
    root = _real("sqrt")(x) if power.denominator == 2 else x
    found = z3.Product([root] * abs(power.numerator))
    return _inverse(found) if power < 0 else found


def _real(name: str) -> Callable[[Term], Term]:
    return lambda x: z3.Function(name, z3.RealSort(), z3.RealSort())(_normal(x))


_REAL = (
    _ARITHMETIC
    | _ORDER
    | {
        ops.div: lambda a, b: a * _inverse(b),
        ops.reciprocal: lambda a: _inverse(a),
        ops.rsqrt: lambda a: _inverse(_real("sqrt")(a)),
        ops.sqrt: _real("sqrt"),
        ops.pow: _power,
        ops.exp: _real("exp"),
        ops.erf: _real("erf"),
        ops.tanh: _real("tanh"),
        ops.sigmoid: lambda a: _inverse(1 + _real("exp")(-a)),
    }
)
