"""The invariants of a graph, checked: what every pass may rely on and must keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import sympy

from .errors import GraphError, TypeRuleError
from .graph import Graph
from .node import Node, Trait, Var, attr_key
from .text import print_node
from .types import SymbolRange, TensorType, TupleType, UnknownType, symbol, symbols_of

Declared = Mapping[sympy.Symbol, SymbolRange]


def verify(graph: Graph) -> None:
    """Check a graph and the regions in it.

    Raises:
        GraphError: an invariant does not hold; the message names the node.
    """
    waiting: list[tuple[_View, Declared]] = [(_View(graph), {})]
    while waiting:
        view, outer = waiting.pop()
        declared = view.check_symbols(outer)
        view.check_inputs()
        for node in view.graph.nodes:
            view.check_node(node, declared)
        view.check_weights()
        view.check_mutations()
        view.check_outputs()
        for region in view.regions():
            region.check_region()
            waiting.append((region, declared))


class _View:
    """A graph under examination, and for a region the node that holds it."""

    def __init__(self, graph: Graph, holder: tuple[_View, Node] | None = None) -> None:
        self.graph = graph
        self.holder = holder

    def regions(self) -> Iterator[_View]:
        for node in self.graph.nodes:
            for value in _flat(tuple(node.attrs.values())):
                if isinstance(value, Graph):
                    yield _View(value, (self, node))

    def describe(self, node: Node) -> str:
        """The line of a node, behind those of the regions that it is in."""
        line = print_node(self.graph, node)
        return line if self.holder is None else f"{self.holder[0].describe(self.holder[1])}: in its region: {line}"

    def fail(self, message: str, node: Node | None = None) -> NoReturn:
        if node is None and self.holder is not None:
            raise GraphError(f"{self.holder[0].describe(self.holder[1])}: {message}")
        raise GraphError(message if node is None else f"{self.describe(node)}: {message}")

    def require(self, condition: bool, message: str, node: Node | None = None) -> None:
        if not condition:
            self.fail(message, node)

    # --- the graph ---

    def check_symbols(self, outer: Declared) -> Declared:
        """Own declarations are sound and agree with those around; returns all that are visible."""
        for declared, count in Counter(r.symbol for r in self.graph.symbols).items():
            self.require(count == 1, f"the symbol {declared} is declared {count} times")
        for r in self.graph.symbols:
            self.require(r.symbol == symbol(r.symbol.name), f"the symbol {r.symbol} was not made by types.symbol")
            self.require(r.low >= 0 and (r.high is None or r.low <= r.high), f"the range {r} holds no size")
            known = outer.get(r.symbol, r)
            self.require(known == r, f"the region says {r}, the graph around it {known}")
        return {**outer, **{r.symbol: r for r in self.graph.symbols}}

    def check_inputs(self) -> None:
        """Inputs are ``input`` nodes of distinct names, and all that are read are passed."""
        names: set[Any] = set()
        for node in self.graph.inputs:
            self.require(node.op.name == "input", "an input of the graph that is no input node", node)
            self.require(node.attrs["name"] not in names, "two inputs of one name", node)
            names.add(node.attrs["name"])
        passed = set(self.graph.inputs)
        for node in self.graph.nodes:
            self.require(node.op.name != "input" or node in passed, "read, but not an input of the graph", node)

    def check_weights(self) -> None:
        types: dict[Any, Any] = {}
        for node in self.graph.weights():
            known = types.setdefault(node.attrs["name"], node.type)
            self.require(known == node.type, f"a weight of that name is {known} elsewhere", node)

    def check_mutations(self) -> None:
        targets: set[Node] = set()
        passed = set(self.graph.inputs)
        for mutation in self.graph.mutations:
            node = mutation.target
            self.require(node.has(Trait.SOURCE), "only inputs and weights are mutated", node)
            self.require(node.op.name == "weight" or node in passed, "mutated, but not an input of the graph", node)
            self.require(node not in targets, "mutated twice", node)
            self.require(node.type == mutation.value.type, f"mutated to a {mutation.value.type}", node)
            targets.add(node)

    def check_outputs(self) -> None:
        for node in self.graph.outputs:
            self.require(isinstance(node.type, TensorType), "an output that is not one tensor", node)

    def check_region(self) -> None:
        """A region's inputs are named by position; it has no weights and mutates nothing."""
        for i, node in enumerate(self.graph.inputs):
            self.require(node.attrs.get("name") == str(i), f'a region\'s input must be named "{i}"', node)
        for node in self.graph.weights():
            self.fail("a weight in a region: pass it as an operand", node)
        for mutation in self.graph.mutations:
            self.fail("a mutation in a region", mutation.target)

    # --- a node ---

    def check_node(self, node: Node, declared: Declared) -> None:
        """A node is no pattern, reads tensors, has the type that its rule infers, and uses declared symbols."""
        self.require(not isinstance(node.type, UnknownType), "a pattern in a graph", node)
        self.require(
            not any(isinstance(v, Var) for v in _flat(tuple(node.attrs.values()))), "a pattern in a graph", node
        )
        for x in node.inputs:
            several, takes_one = isinstance(x.type, TupleType), node.has(Trait.PROJECTION)
            self.require(takes_one or not several, f"reads the several results of {x.op.name} without item", node)
            self.require(several or not takes_one, f"item of {x.type}, which is one tensor", node)
        self.check_type(node)
        for s in _symbols(node):
            self.require(s in declared, f"the symbol {s} is not declared", node)

    def check_type(self, node: Node) -> None:
        types = [x.type for x in node.inputs]
        try:
            attrs = dict(node.attrs)
            if node.op.normalise is not None:
                attrs.update(node.op.normalise(*types, **attrs))
            inferred = node.op.infer(*types, **attrs)
        except TypeRuleError as error:
            self.fail(str(error), node)
        self.require(_keys(attrs) == _keys(node.attrs), "attributes that are not in normal form", node)
        self.require(inferred == node.type, f"its type rule says {inferred}", node)


def _flat(value: Any) -> Iterator[Any]:
    """A value and all that it holds."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, tuple):
            waiting.extend(one)
        elif isinstance(one, TupleType):
            waiting.extend(one.items)
        elif isinstance(one, TensorType):
            waiting.append(one.shape)
        else:
            yield one


def _symbols(node: Node) -> tuple[sympy.Symbol, ...]:
    """The size symbols in a node's type and attributes, regions left out."""
    return symbols_of(x for x in _flat((node.type, *node.attrs.values())) if isinstance(x, sympy.Expr))


def _keys(attrs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: attr_key(value) for name, value in attrs.items()}
