"""An e-graph of nodes: egglog keeps the classes of equal terms and finds where rules fit; rules build what is equal.

What a rule builds is built by our constructors from a node of each class, and a class has one type: nothing that the
type rules refuse ever enters.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from egglog.bindings import ActionCommand, Call, EgglogSpan, EGraph, Expr_, Int, Lit, SrcFile, Var

from ...ir.node import Node, OpDef
from ..rule import Rule
from .patterns import PRELUDE, Constructor, Query, Values, queries

# How many matches of one rule are followed in one round: a rule that fits everywhere leaves room for the others.
MATCHES = 1000
_Signature = tuple[Constructor, tuple[int, ...], tuple[int, ...]]
_SPAN = EgglogSpan(SrcFile(None, ""), 0, 0)


@dataclass(frozen=True)
class Program:
    """Rules, ready for e-graphs."""

    queries: tuple[Query, ...]
    values: Values
    text: str
    constructors: frozenset[Constructor]

    @property
    def operators(self) -> frozenset[OpDef]:
        """The operators that the rules speak of."""
        return frozenset(constructor.op for constructor in self.constructors)


@cache
def program(rules: tuple[Rule, ...]) -> Program:
    """The program of some rules.

    Raises:
        RuleError: a rule cannot be matched in an e-graph.
    """
    values = Values()
    found = queries(rules, values)
    constructors = dict.fromkeys(c for query in found for c in query.constructors)
    text = PRELUDE + "".join(c.declaration() for c in constructors) + "".join(query.text for query in found)
    return Program(tuple(found), values, text, frozenset(constructors))


class Engine:
    """An e-graph that knows some rules, and that regions use one after the other."""

    def __init__(self, rules: Program) -> None:
        self.program = rules
        self._graph = EGraph()
        run(self._graph, rules.text)

    @contextmanager
    def classes(self) -> Iterator[Classes]:
        """The e-graph, empty; it is emptied again at the end."""
        run(self._graph, "(push)")
        try:
            yield Classes(self.program, self._graph)
        finally:
            run(self._graph, "(pop)")


def run(graph: EGraph, text: str) -> None:
    """Let egglog run a program."""
    graph.run_program(*graph.parse_program(text))


class Classes:
    """Nodes, and which of them are equal: see :meth:`Engine.classes`.

    Attributes:
        nodes: every node that was entered or built, in order.
        ended_by: ``"nodes"`` or ``"time"`` where a limit ended the search; empty where all that follows is known.
    """

    def __init__(self, rules: Program, graph: EGraph) -> None:
        self.program = rules
        self.nodes: list[Node] = []
        self.ended_by = ""
        self._values = rules.values.copy()
        self._graph = graph
        self._numbers: dict[Node, int] = {}
        self._declared = set(rules.constructors)
        self._followed: set[tuple[int, tuple[int, ...]]] = set()
        self._facts: list[ActionCommand] = []
        self._first: list[int] = []  # of each node, the first of its class, as of the last time it was asked for
        self._by_signature: dict[_Signature, int] = {}

    def enter(self, root: Node) -> int:
        """The number of a node, or of an equal one; it and what it needs are entered."""
        for node in self._unknown(root):
            self._numbers[node] = self._number_of(node)
        return self._numbers[root]

    def _number_of(self, node: Node) -> int:
        """The number of a node whose operands have theirs."""
        operands = [self._first[self._numbers[x]] for x in node.inputs]
        signature = self._signature(node, operands)
        number = self._by_signature.setdefault(signature, len(self.nodes))
        if number == len(self.nodes):
            self.nodes.append(node.with_inputs(tuple(self.nodes[x] for x in operands)))
            self._numbers[self.nodes[number]] = number
            self._first.append(number)
            self._state(number, signature)
        return number

    def _signature(self, node: Node, operands: list[int]) -> _Signature:
        constructor = Constructor(node.op, len(operands))
        attrs = tuple(self._values.number(value) for value in node.attrs.values())
        return constructor, attrs, tuple(sorted(operands) if constructor.commutes else operands)

    def _unknown(self, root: Node) -> list[Node]:
        """The nodes that a node needs and that are not known, operands first."""
        found: dict[Node, None] = {}
        stack = [root]
        while stack:
            missing = [x for x in stack[-1].inputs if x not in self._numbers and x not in found]
            if missing:
                stack.extend(missing)
            else:
                found[stack.pop()] = None
        return list(found)

    def _state(self, number: int, signature: _Signature) -> None:
        constructor, attrs, operands = signature
        self._fact("known", number)
        if not operands:
            return
        if constructor not in self._declared:
            self._declared.add(constructor)
            run(self._graph, constructor.declaration())
        self._fact(f"enter-{constructor.name}", number, *attrs, *operands)

    def _fact(self, relation: str, *numbers: int) -> None:
        arguments: list[Lit | Var | Call] = [Lit(_SPAN, Int(number)) for number in numbers]
        self._facts.append(ActionCommand(Expr_(_SPAN, Call(_SPAN, relation, arguments))))

    # --- saturation

    def saturate(self, nodes: int, deadline: float) -> None:
        """Follow all rules until nothing new follows, there are so many nodes, or the time has come."""
        self._close()
        while not self.ended_by:
            run(self._graph, "(run-schedule (run search))")
            if not self._follow(nodes, deadline):
                return
            self._close()

    def _close(self) -> None:
        """Tell the e-graph what was stated, and let it find what is equal by that."""
        self._graph.run_program(*self._facts)
        self._facts.clear()
        run(self._graph, "(run-schedule (saturate (run enter)) (saturate (run commute)))")
        tables = self._graph.freeze().functions
        first = {row.inputs[0]: self._graph.value_to_i64(row.output) for row in tables["rep"].rows}
        found = {self._graph.value_to_i64(row.inputs[0]): first[row.output] for row in tables["Ref"].rows}
        self._first = [found[number] for number in range(len(self.nodes))]
        self._by_signature = {}
        for number, node in enumerate(self.nodes):
            operands = [self._first[self._numbers[x]] for x in node.inputs]
            self._by_signature.setdefault(self._signature(node, operands), self._first[number])

    def _follow(self, nodes: int, deadline: float) -> bool:
        """Build what the rules say of new matches; whether there was any."""
        tables = self._graph.freeze().functions
        any_left = False
        for i, query in enumerate(self.program.queries):
            rows = (tuple(map(self._graph.value_to_i64, row.inputs)) for row in tables[query.relation].rows)
            new = sorted(row for row in rows if (i, row) not in self._followed)
            any_left = any_left or bool(new)
            for row in new[:MATCHES]:
                self._followed.add((i, row))
                self._apply(query, row)
                if len(self.nodes) >= nodes or time.monotonic() > deadline:
                    self.ended_by = "nodes" if len(self.nodes) >= nodes else "time"
                    return True
        return any_left

    def _apply(self, query: Query, row: Sequence[int]) -> None:
        root, *numbers = row
        bindings = {
            name: self.nodes[n] if name in query.operands else self._values.value(n)
            for name, n in zip(query.names, numbers, strict=True)
        }
        made = query.rule.replacement(self.nodes[root], bindings)
        if made is not None:
            number = self.enter(made)
            if number != root:
                self._fact("same", root, number)

    def classes(self) -> list[int]:
        """The class of each node: the number of its first node."""
        if self._facts:
            self._close()
        return list(self._first)
