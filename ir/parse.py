"""Graphs read from their text: a descent over tokens, without ``eval``.

Every node is built by its operator, so that whatever is read has passed the type rules; a type that differs from the
written one is an error. What nothing returned needs is read and dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import sympy

from . import ops
from .graph import Graph, Mutation
from .node import OPS, AttrValue, Node, Trait
from .parse_values import ValueParser
from .tokens import Token, Tokens
from .types import Dim, SymbolRange, TensorType, Type, symbol

T = TypeVar("T")

assert ops  # imported for the operators that it registers


def parse_graph(text: str) -> Graph:
    """The graph that ``print_graph`` wrote.

    Raises:
        ParseError: the text is not a graph; the message gives line and column.
    """
    parser = _GraphParser(Tokens(text))
    graph = parser.graph()
    parser.tokens.expect_kind("end", "the end of the text")
    return graph


def parse_type(text: str, symbols: Iterable[sympy.Symbol]) -> Type:
    """The type that ``print_type`` wrote, of sizes in these symbols.

    Raises:
        ParseError: the text is not a type.
    """
    return _read(text, symbols, lambda values: values.type())


def parse_dim(text: str, symbols: Iterable[sympy.Symbol]) -> Dim:
    """The size that ``print_dim`` wrote, in these symbols.

    Raises:
        ParseError: the text is not a size.
    """
    return _read(text, symbols, lambda values: values.dim())


def _read(text: str, symbols: Iterable[sympy.Symbol], read: Callable[[ValueParser], T]) -> T:
    parser = _GraphParser(Tokens(text))
    parser.values.symbols = {s.name: s for s in symbols}
    found = read(parser.values)
    parser.tokens.expect_kind("end", "the end of the text")
    return found


@dataclass
class _Block:
    """What has been read of one graph."""

    values: dict[str, Node] = field(default_factory=dict)
    inputs: list[Node] = field(default_factory=list)
    mutations: list[Mutation] = field(default_factory=list)


class _GraphParser:
    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens
        self.values = ValueParser(tokens, self.graph)

    def graph(self) -> Graph:
        self.tokens.expect("graph")
        ranges = self.values.separated(")", self._range) if self.tokens.accept("(") else []
        outer = self.values.symbols
        self.values.symbols = {**outer, **self._declared(ranges)}
        self.tokens.expect("{")
        block = _Block()
        while not self.tokens.accept("return"):
            self._statement(block)
        outputs = self._outputs(block)
        self.values.symbols = outer
        return Graph(block.inputs, outputs, block.mutations, ranges)

    def _range(self) -> SymbolRange:
        name = self.values.symbol_name()
        self.tokens.expect("in")
        self.tokens.expect("[")
        low = self.tokens.integer()
        self.tokens.expect(",")
        high = None if self.tokens.accept("inf") else self.tokens.integer()
        self.tokens.expect("]")
        return SymbolRange(symbol(name), low, high)

    def _declared(self, ranges: list[SymbolRange]) -> dict[str, SymbolRange]:
        declared = {r.symbol.name: r.symbol for r in ranges}
        if len(declared) < len(ranges):
            self.tokens.fail("a symbol is declared twice")
        return declared

    def _statement(self, block: _Block) -> None:
        if self.tokens.accept("mutate"):
            target = self._use(block)
            self.tokens.expect("=")
            block.mutations.append(Mutation(target, self._use(block)))
            return
        name = self.tokens.expect_kind("value", "a statement")
        if name.text in block.values:
            self.tokens.fail(f"{name.text} is defined twice", name)
        self.tokens.expect("=")
        node = self._node(block)
        block.values[name.text] = node
        if node.op is ops.input:
            block.inputs.append(node)

    def _node(self, block: _Block) -> Node:
        token = self.tokens.expect_kind("word", "an operator")
        if token.text not in OPS:
            self.tokens.fail(f"there is no operator {token.text!r}", token)
        if Trait.SOURCE in OPS[token.text].traits:
            return self._source(token)
        operands, attrs = self._arguments(block)
        node = self._build(token, operands, attrs)
        colon = self.tokens.expect(":")
        if self.values.type() != node.type:
            self.tokens.fail(f"the type is {node.type}", colon)
        return node

    def _source(self, token: Token) -> Node:
        name = self.values.string()
        colon = self.tokens.expect(":")
        type_ = self.values.type()
        if not isinstance(type_, TensorType):
            self.tokens.fail(f"{name!r} is one tensor", colon)
        return self._build(token, [], {"name": name, "shape": type_.shape, "dtype": type_.dtype})

    def _build(self, token: Token, operands: list[Node], attrs: dict[str, AttrValue]) -> Node:
        try:
            return OPS[token.text](*operands, **attrs)
        except Exception as error:
            # a type rule may stumble in any way over attributes of the wrong kind
            self.tokens.fail(str(error), token)

    def _arguments(self, block: _Block) -> tuple[list[Node], dict[str, AttrValue]]:
        operands: list[Node] = []
        attrs: dict[str, AttrValue] = {}

        def argument() -> None:
            if self.tokens.next.kind == "value":
                operands.append(self._use(block))
                return
            name = self.tokens.expect_kind("word", "a value or an attribute")
            if name.text in attrs:
                self.tokens.fail(f"{name.text} is given twice", name)
            self.tokens.expect("=")
            attrs[name.text] = self.values.value()

        self.tokens.expect("(")
        self.values.separated(")", argument)
        return operands, attrs

    def _use(self, block: _Block) -> Node:
        token = self.tokens.expect_kind("value", "a value")
        if token.text not in block.values:
            self.tokens.fail(f"{token.text} is not defined above", token)
        return block.values[token.text]

    def _outputs(self, block: _Block) -> list[Node]:
        return self.values.separated("}", lambda: self._use(block))
