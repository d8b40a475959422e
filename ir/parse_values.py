"""What stands behind ``name=`` and ``:`` in the text of a graph: attribute values, dims, types."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sympy
import torch

from .dims import FUNCTIONS
from .errors import ParseError, TypeRuleError
from .graph import Graph
from .node import AttrValue
from .tokens import Tokens
from .types import DTYPES, Dim, TensorType, TupleType, Type, canonical_dim

MAX_DEPTH = 40  # of values in values; graphs in graphs count, and take the most frames each
# a dim's normal form multiplies sums out: these bound the work that a short text can ask for
MAX_TERMS = 256
MAX_OPERATORS = 1000
MAX_EXPONENT = 64

_WORDS: dict[str, Any] = {"none": None, "true": True, "false": False, "inf": float("inf"), "nan": float("nan")}
_NAMED: dict[str, dict[str, Any]] = {
    kind.__name__: {str(value).removeprefix("torch."): value for value in vars(torch).values() if type(value) is kind}
    for kind in (torch.layout, torch.memory_format)
}


class ValueParser:
    """Reads values from tokens. ``symbols`` are those in scope; ``region`` reads a graph."""

    def __init__(self, tokens: Tokens, region: Callable[[], Graph]) -> None:
        self.tokens = tokens
        self.symbols: dict[str, sympy.Symbol] = {}
        self._region = region
        self._depth = 0
        self._operators = 0

    @contextmanager
    def deeper(self) -> Iterator[None]:
        """One level further in; an error beyond ``MAX_DEPTH``."""
        if self._depth >= MAX_DEPTH:
            self.tokens.fail(f"nested more than {MAX_DEPTH} deep")
        self._depth += 1
        yield
        self._depth -= 1

    def separated(self, close: str, read: Callable[[], Any]) -> list[Any]:
        """Values between commas, up to and with the closing sign."""
        found: list[Any] = []
        while not self.tokens.accept(close):
            if found:
                self.tokens.expect(",")
            found.append(read())
        return found

    # --- values ---

    def value(self) -> AttrValue:
        """An attribute's value."""
        tokens = self.tokens
        if tokens.next.kind == "string":
            return self.string()
        if tokens.next.kind == "float":
            return float(tokens.take().text)
        if tokens.next.kind == "word":
            return self._word()
        if tokens.at("-") and (tokens.second.kind == "float" or tokens.second.text == "inf"):
            tokens.take()
            return -float(tokens.take().text)
        return self._bracketed()

    def _bracketed(self) -> AttrValue:
        if self.tokens.accept("["):
            with self.deeper():
                return tuple(self.separated("]", self.value))
        if self.tokens.at("(") and (self.tokens.second.text in DTYPES or self.tokens.second.text == ")"):
            return self.type()
        return self.dim()

    def _word(self) -> AttrValue:
        tokens, word = self.tokens, self.tokens.next.text
        if word in DTYPES:
            return self.type() if tokens.second.text == "[" else DTYPES[tokens.take().text]
        if word in _WORDS:
            tokens.take()
            return _WORDS[word]
        if word == "graph":
            with self.deeper():
                return self._region()
        return self._constant() if word == "device" or word in _NAMED else self.dim()

    def string(self) -> str:
        """A quoted string."""
        token = self.tokens.expect_kind("string", "a string")
        try:
            return str(json.loads(token.text))
        except ValueError:
            self.tokens.fail("a string with an escape that JSON does not have", token)

    def _constant(self) -> AttrValue:
        kind, name = self.tokens.take(), self.string()
        if kind.text == "device":
            try:
                return torch.device(name)
            except RuntimeError:
                self.tokens.fail(f"there is no device {name!r}", kind)
        if name not in _NAMED[kind.text]:
            self.tokens.fail(f"there is no {kind.text} {name!r}", kind)
        return _NAMED[kind.text][name]

    # --- types ---

    def type(self) -> Type:
        """``f32[2, s0]``, or several in parentheses."""
        if self.tokens.accept("("):
            return TupleType(tuple(self.separated(")", self._tensor_type)))
        return self._tensor_type()

    def _tensor_type(self) -> TensorType:
        token = self.tokens.expect_kind("word", "a type")
        if token.text not in DTYPES:
            self.tokens.fail(f"there is no dtype {token.text!r}", token)
        self.tokens.expect("[")
        shape = self.separated("]", self.dim)
        try:
            return TensorType(tuple(shape), DTYPES[token.text])
        except TypeRuleError as error:
            self.tokens.fail(str(error), token)

    # --- dims ---

    def dim(self) -> Dim:
        """A size: an integer, a symbol in scope, or an expression of them."""
        tokens, start = self.tokens, self.tokens.next
        if start.kind == "int" and tokens.second.text in (",", "]", ")"):
            return tokens.integer()
        self._operators = 0
        try:
            return canonical_dim(self._sum())
        except (TypeRuleError, ArithmeticError, TypeError, ValueError) as error:
            # a ParseError is a ValueError too, and already knows where
            if isinstance(error, ParseError):
                raise
            tokens.fail(f"this is no size: {error}", start)

    def _sum(self) -> sympy.Expr:
        left = self._product()
        while self.tokens.at("+", "-"):
            sign = self._operator()
            right = self._product()
            left = self._bounded(left + right if sign == "+" else left - right)
        return left

    def _product(self) -> sympy.Expr:
        left = self._factor()
        while self.tokens.at("*", "/", "//"):
            sign = self._operator()
            right = self._factor()
            if _terms(left) * _terms(right) > MAX_TERMS:
                self.tokens.fail(f"a size of more than {MAX_TERMS} terms")
            left = self._bounded(sympy.expand(_COMBINE[sign](left, right)))
        return left

    def _factor(self) -> sympy.Expr:
        if self.tokens.at("-"):
            self._operator()
            with self.deeper():
                return -self._factor()
        base = self._atom()
        if not self.tokens.accept("**"):
            return base
        exponent = self.tokens.integer()
        if exponent > MAX_EXPONENT or not (base.is_Symbol or base.is_Function):
            self.tokens.fail(f"only symbols and functions have powers, up to {MAX_EXPONENT}")
        return base**exponent

    def _atom(self) -> sympy.Expr:
        tokens = self.tokens
        if tokens.next.kind == "int":
            return sympy.Integer(tokens.integer())
        if tokens.accept("("):
            with self.deeper():
                inner = self._sum()
            tokens.expect(")")
            return inner
        if tokens.next.text in FUNCTIONS and tokens.second.text == "(":
            return self._call()
        return self.symbol()

    def _call(self) -> sympy.Expr:
        name = self.tokens.take().text
        self.tokens.expect("(")
        with self.deeper():
            return FUNCTIONS[name](*self.separated(")", self._sum))

    def symbol(self) -> sympy.Symbol:
        """A size symbol in scope."""
        token = self.tokens.next
        name = self.symbol_name()
        if name not in self.symbols:
            self.tokens.fail(f"the symbol {name!r} is not declared", token)
        return self.symbols[name]

    def symbol_name(self) -> str:
        """A symbol's name, quoted after ``$`` where it would read as something else."""
        if self.tokens.accept("$"):
            return self.string()
        return self.tokens.expect_kind("word", "a size").text

    def _operator(self) -> str:
        self._operators += 1
        if self._operators > MAX_OPERATORS:
            self.tokens.fail(f"a size of more than {MAX_OPERATORS} operators")
        return self.tokens.take().text

    def _bounded(self, dim: sympy.Expr) -> sympy.Expr:
        if _terms(dim) > MAX_TERMS:
            self.tokens.fail(f"a size of more than {MAX_TERMS} terms")
        return dim


def _terms(dim: sympy.Expr) -> int:
    return len(sympy.Add.make_args(dim))


def _quotient(left: sympy.Expr, right: sympy.Expr) -> sympy.Expr:
    if right.is_zero:
        raise ZeroDivisionError("division by zero")
    return left / right


_COMBINE: dict[str, Callable[[sympy.Expr, sympy.Expr], sympy.Expr]] = {
    "*": lambda left, right: left * right,
    "/": _quotient,
    "//": lambda left, right: sympy.floor(_quotient(left, right)),
}
