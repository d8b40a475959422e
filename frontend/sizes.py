"""Sizes: PyTorch's symbolic integers in terms of a graph's own symbols, their ranges and the guards between them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ..ir.dims import normal_form
from ..ir.errors import CaptureError
from ..ir.types import Dim, Shape, SymbolRange, TensorType, symbol
from .capture import Guard
from .origins import short

_EQUAL = "equal in the first call, and taken for one size"


class DependsOnData(CaptureError):
    """A size that depends on the values of tensors."""


class Sizes:
    """Translates the sizes of one capture.

    Attributes:
        shape_env: where PyTorch keeps its symbols, what it learnt of them, and the guards.
        renamed: PyTorch's free symbols to ours, in the order in which the inputs show them.
        required: conditions that lowerings rely on, beyond PyTorch's guards, with the line that needs them.
    """

    def __init__(self, shape_env: ShapeEnv | None) -> None:
        self.shape_env = shape_env
        self.renamed: dict[sympy.Symbol, Any] = {}
        self.required: list[tuple[Any, str]] = []
        self._merged: dict[sympy.Symbol, Any] = {}
        self._fixed: dict[sympy.Symbol, str] = {}
        self._cache: dict[Any, Any] = {}
        self._whole: set[Any] = set()  # quotients that a guard says are whole
        self._low: dict[sympy.Symbol, int] = {}
        self._high: dict[sympy.Symbol, int | None] = {}
        self.narrowed: dict[sympy.Symbol, list[str]] = {}  # by which lines

    # --- building ----------------------------------------------------------------------------------------------------

    def torch_expression(self, value: Any) -> Any:
        """What PyTorch knows a size to be, in its own free symbols, merged ones replaced."""
        expression = sympy.sympify(value.node.expr if isinstance(value, torch.SymInt) else value)
        if self.shape_env is not None:
            expression = self.shape_env.replace(expression)
        try:
            return expression.xreplace(self._merged)
        except ZeroDivisionError as error:
            raise CaptureError(f"the size {expression} divides by zero") from error

    def merge(self, one: sympy.Symbol, other: sympy.Symbol, reason: str = _EQUAL) -> None:
        """Assume two of PyTorch's symbols equal, for a reason: the first stands for both."""
        a, b = self.torch_expression(one), self.torch_expression(other)
        if a != b and b.is_Symbol:
            self._replace(b, a)
            self._fixed.setdefault(b, reason)

    def solve(self, condition: Any) -> bool:
        """Replace a symbol of ours by what an equation says it is, where that is a polynomial; whether it did."""
        if not isinstance(condition, sympy.Eq):
            return False
        difference = sympy.expand(condition.lhs - condition.rhs)
        by_name = {ours: free for free, ours in self.renamed.items()}
        for ours in sorted(difference.free_symbols, key=str, reverse=True):
            slope, rest = difference.coeff(ours, 1), difference.coeff(ours, 0)
            if slope == 0 or sympy.expand(slope * ours + rest - difference) != 0:
                continue
            solution = sympy.expand(sympy.cancel(-rest / slope))
            if ours in by_name and _is_integer_polynomial(solution):
                back = {o: f for o, f in by_name.items() if o in solution.free_symbols}
                self._replace(by_name[ours], solution.xreplace(back))
                return True
        return False

    def _replace(self, free: sympy.Symbol, value: Any) -> None:
        self._merged = {s: e.xreplace({free: value}) for s, e in self._merged.items()} | {free: value}
        self._cache.clear()

    def fix(self, free: sympy.Symbol, value: int, reason: str) -> None:
        """Take one of PyTorch's symbols for a number."""
        self._replace(free, sympy.Integer(value))
        self._fixed[free] = reason

    def reason_of(self, size: Any) -> str:
        """Why a size that was symbolic is not: the line of the model, or what a lowering needs."""
        free = size.node._expr if isinstance(size, torch.SymInt) else None
        if self.shape_env is None or free is None:
            return ""
        known = self._fixed.get(self.shape_env.replace(free))
        return known or short(self.shape_env.replacements_slocs.get(free, ""))

    def name(self, free: sympy.Symbol, name: str) -> None:
        """Give a free symbol of PyTorch's its name in the graph, and the range that PyTorch knows."""
        ours = symbol(name)
        self.renamed[free] = ours
        known = self.shape_env.var_to_range[free] if self.shape_env is not None else None
        self.narrowed[ours] = []
        # PyTorch starts at 2 and goes up for the sake of strides; see .branches for why we start at 1
        self._low[ours] = 1
        self._high[ours] = _bound(known.upper, None) if known is not None else None

    def restrict(self, ours: sympy.Symbol, low: int | None = None, high: int | None = None) -> None:
        """Narrow a symbol's range."""
        if low is not None:
            self._low[ours] = max(self._low[ours], low)
        if high is not None:
            now = self._high[ours]
            self._high[ours] = high if now is None else min(now, high)
        self._cache.clear()

    def require(self, condition: Any, where: str = "") -> None:
        """Rely on a condition over our symbols."""
        if condition is not sympy.true and condition is not True:
            self.required.append((condition, where))

    # --- reading -----------------------------------------------------------------------------------------------------

    def expression(self, value: Any) -> Any:
        """A size or condition of PyTorch's over our symbols."""
        expression = self.torch_expression(value)
        if expression not in self._cache:
            strange = expression.free_symbols - self.renamed.keys()
            if strange:
                raise DependsOnData(
                    f"the size {expression} depends on values that are known only when the model runs "
                    f"({', '.join(sorted(map(str, strange)))}): keep such code outside of the compiled part"
                )
            self._cache[expression] = self.simplify(expression.xreplace(self.renamed))
        return self._cache[expression]

    def dim(self, value: Any) -> Dim:
        """An integer of PyTorch's, symbolic or not, as a dim."""
        if isinstance(value, int):
            return int(value)
        found = self.expression(value)
        return normal_form(found) if isinstance(found, sympy.Expr) else int(found)

    def shape(self, dims: Iterable[Any]) -> Shape:
        """:meth:`dim` of each."""
        return tuple(self.dim(d) for d in dims)

    def type_of(self, tensor: torch.Tensor) -> TensorType:
        """The type of a fake tensor."""
        return TensorType(self.shape(tensor.shape), tensor.dtype)

    def simplify(self, expression: Any) -> Any:
        """An expression without the Min and Max that the ranges decide, and without the floors of whole quotients."""
        chosen = expression
        for term in list(sympy.preorder_traversal(expression)):
            if type(term).__name__ in ("FloorDiv", "floor"):
                quotient = normal_form(term.args[0] / term.args[1] if len(term.args) > 1 else term.args[0])
                if quotient in self._whole:
                    chosen = _replaced(chosen, term, quotient)
            elif type(term).__name__ in ("Min", "Max") and len(term.args) == 2:
                decided = self._decide(type(term).__name__, *term.args)
                if decided is not None:
                    chosen = _replaced(chosen, term, decided)
        return chosen

    def _decide(self, name: str, a: Any, b: Any) -> Any:
        (a_low, a_high), (b_low, b_high) = self.bounds(a), self.bounds(b)
        if a_high is not None and b_low is not None and a_high <= b_low:
            return a if name == "Min" else b
        if b_high is not None and a_low is not None and b_high <= a_low:
            return b if name == "Min" else a
        difference_low, difference_high = self.bounds(normal_form(a - b))
        if difference_low is not None and difference_low >= 0:
            return b if name == "Min" else a
        if difference_high is not None and difference_high <= 0:
            return a if name == "Min" else b
        return None

    def bounds(self, dim: Any) -> tuple[int | None, int | None]:
        """The least and the greatest value of a dim that is linear in symbols; None where unbounded or unknown."""
        low: int | None = 0
        high: int | None = 0
        for term in sympy.Add.make_args(sympy.sympify(dim)):
            factor, rest = term.as_coeff_Mul()
            if not factor.is_Integer or not (rest == 1 or rest in self._low):
                return None, None
            ends = (1, 1) if rest == 1 else (self._low[rest], self._high[rest])
            scaled = [None if end is None else int(factor) * end for end in (ends if factor >= 0 else ends[::-1])]
            low = None if low is None or scaled[0] is None else low + scaled[0]
            high = None if high is None or scaled[1] is None else high + scaled[1]
        return low, high

    def ranges(self) -> tuple[SymbolRange, ...]:
        """The range of each symbol."""
        return tuple(SymbolRange(s, self._low[s], self._high[s]) for s in dict.fromkeys(self.renamed.values()))

    # --- guards ------------------------------------------------------------------------------------------------------

    def settle(self, conditions: Iterable[tuple[Any, str]]) -> tuple[Guard, ...]:
        """What remains of PyTorch's guards when those on one symbol have narrowed its range."""
        return self._settle(list(conditions), self.expression)

    def settle_own(self, conditions: Iterable[tuple[Any, str]]) -> tuple[Guard, ...]:
        """:meth:`settle` for conditions over our symbols."""
        return self._settle(list(conditions), lambda condition: condition)

    def _settle(self, pending: list[tuple[Any, str]], translate: Any) -> tuple[Guard, ...]:
        for condition, _ in pending:
            self._learn_whole(translate(condition))
        changed = True
        while changed:
            changed, waiting = False, []
            for condition, where in pending:
                plain = self._plain(translate(condition))
                if plain not in (sympy.true, True):
                    absorbed = self._absorb(plain)
                    for ours in plain.free_symbols if absorbed and where else ():
                        self.narrowed[ours].append(f"{plain}, {where}")
                    changed = changed or absorbed
                    waiting += [] if absorbed else [(condition, where)]
            pending = waiting
        found = {self._plain(translate(condition)): where for condition, where in reversed(pending)}
        return tuple(Guard(c, where) for c, where in reversed(found.items()) if c not in (sympy.true, True))

    def _learn_whole(self, condition: Any) -> None:
        """From ``a % b == 0``, that ``a / b`` is whole."""
        if isinstance(condition, sympy.Eq) and condition.rhs == 0 and type(condition.lhs).__name__.endswith("Mod"):
            quotient = sympy.expand(condition.lhs.args[0] / condition.lhs.args[1])
            if quotient not in self._whole:
                self._whole.add(quotient)
                self._cache.clear()

    def _plain(self, condition: Any) -> Any:
        """A condition over our symbols, its sides in normal form and without what the ranges decide."""
        if isinstance(condition, sympy.core.relational.Relational):
            condition = condition.func(normal_form(condition.lhs), normal_form(condition.rhs))
        return self._decided(self.simplify(condition))

    def _decided(self, condition: Any) -> Any:
        """True for an inequality that the ranges imply."""
        if not isinstance(condition, sympy.Ge | sympy.Gt | sympy.Le | sympy.Lt | sympy.Ne):
            return condition
        low, high = self.bounds(sympy.expand(condition.lhs - condition.rhs))
        above, below = low is not None and low > 0, high is not None and high < 0
        implied = {
            sympy.Ne: above or below,
            sympy.Gt: above,
            sympy.Lt: below,
            sympy.Ge: low is not None and low >= 0,
            sympy.Le: high is not None and high <= 0,
        }[type(condition)]
        return sympy.true if implied else condition

    def _absorb(self, condition: Any) -> bool:
        """Narrow a range by a condition that says no more than that."""
        if isinstance(condition, sympy.And):
            absorbed = [self._absorb(part) for part in condition.args]
            return all(absorbed)
        if isinstance(condition, sympy.Eq):
            return self._absorb_minimum(condition.lhs, condition.rhs) or self._absorb_minimum(
                condition.rhs, condition.lhs
            )
        if isinstance(condition, sympy.Ne):
            return self._absorb_unequal(condition)
        # slope * s + offset {>=, >, <=, <} 0
        if not isinstance(condition, sympy.Ge | sympy.Gt | sympy.Le | sympy.Lt):
            return False
        offset, term = sympy.expand(condition.lhs - condition.rhs).as_coeff_Add()
        slope, s = term.as_coeff_Mul()
        if s not in self._low or not (slope.is_Integer and offset.is_Integer):
            return False
        strict = 1 if isinstance(condition, sympy.Gt | sympy.Lt) else 0
        if isinstance(condition, sympy.Le | sympy.Lt):
            slope, offset = -slope, -offset
        # slope * s + offset >= strict
        if slope > 0:
            self.restrict(s, low=int(sympy.ceiling((strict - offset) / slope)))
        else:
            self.restrict(s, high=int(sympy.floor((offset - strict) / -slope)))
        return True

    def _absorb_minimum(self, minimum: Any, value: Any) -> bool:
        """Min(s, c) == s says that s is at most c."""
        if type(minimum).__name__ != "Min" or value not in minimum.args or value not in self._low:
            return False
        others = [a for a in minimum.args if a != value]
        if not all(a.is_Integer for a in others):
            return False
        self.restrict(value, high=int(min(others)))
        return True

    def _absorb_unequal(self, condition: Any) -> bool:
        """s != low narrows the range by one."""
        value, end = condition.lhs, condition.rhs
        if value not in self._low or not sympy.sympify(end).is_Integer:
            return False
        if int(end) == self._low[value]:
            self.restrict(value, low=int(end) + 1)
            return True
        return int(end) < self._low[value]


def _is_integer_polynomial(expression: Any) -> bool:
    terms = (term.as_coeff_Mul() for term in sympy.Add.make_args(expression))
    return all(factor.is_Integer and (rest == 1 or rest.is_polynomial()) for factor, rest in terms)


def _bound(end: Any, otherwise: int | None) -> int | None:
    return int(end) if getattr(end, "is_Integer", False) or isinstance(end, int) else otherwise


def _replaced(expression: Any, term: Any, by: Any) -> Any:
    """An expression with a part replaced; as it was where PyTorch's functions cannot be built from the new part.

    ``1 // (s // 2)`` is an expression of PyTorch's, ``1 // (s / 2)`` inside of a Max is a ValueError.
    """
    try:
        return expression.xreplace({term: by})
    except ValueError:
        return expression
