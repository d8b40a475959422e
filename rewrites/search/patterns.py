"""Rules as programs of egglog: an e-graph finds where a rule fits, and the rule itself says what may stand there.

Every operator with its number of operands is a constructor of the e-graph, with the numbers of its attributes' values
as arguments of their own. A node that is known on our side is ``(Ref n)`` as well, in the class of what equals it, and
``rep`` names the first such node of a class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir import ops
from ...ir.node import WILDCARD, Node, OpDef, Var, attr_key, topological
from ...ir.types import UnknownType
from ..pattern import ANY, Near
from ..rule import Rule, RuleError

COMMUTATIVE = (ops.add, ops.mul)

PRELUDE = """
(sort Node)
(constructor Ref (i64) Node)
(function rep (Node) i64 :merge (min old new))
(relation known (i64))
(relation same (i64 i64))
(ruleset enter)
(ruleset commute)
(ruleset search)
(rule ((known i)) ((set (rep (Ref i)) i)) :ruleset enter)
(rule ((same i j)) ((union (Ref i) (Ref j))) :ruleset enter)
"""


class Values:
    """Numbers for attribute values."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}
        self._values: list[Any] = []

    def number(self, value: Any) -> int:
        """The number of a value; equal values have one."""
        found = self._numbers.setdefault(attr_key(value), len(self._values))
        if found == len(self._values):
            self._values.append(value)
        return found

    def copy(self) -> Values:
        """The same numbers, to which others may be added."""
        made = Values()
        made._numbers, made._values = dict(self._numbers), list(self._values)
        return made

    def value(self, number: int) -> Any:
        """The value of a number."""
        return self._values[number]


@dataclass(frozen=True)
class Constructor:
    """An operator with its number of operands."""

    op: OpDef
    arity: int

    @property
    def name(self) -> str:
        """Its name in the e-graph."""
        return f"op-{re.sub('[^a-z0-9]', '-', self.op.name.lower())}-{self.arity}"

    def declaration(self) -> str:
        """What declares it, and the fact by which a node of it is entered."""
        attrs, operands = len(self.op.attrs), self.arity
        values = " ".join(f"v{i}" for i in range(attrs))
        refs = " ".join(f"(Ref x{i})" for i in range(operands))
        ids = " ".join(f"x{i}" for i in range(operands))
        return (
            f"(constructor {self.name} ({' '.join(['i64'] * attrs + ['Node'] * operands)}) Node)\n"
            f"(relation enter-{self.name} ({' '.join(['i64'] * (1 + attrs + operands))}))\n"
            f"(rule ((enter-{self.name} n {values} {ids})) ((union (Ref n) ({self.name} {values} {refs})))"
            " :ruleset enter)\n"
            + (f"(rewrite ({self.name} x y) ({self.name} y x) :ruleset commute)\n" if self.commutes else "")
        )

    @property
    def commutes(self) -> bool:
        """Whether its two operands may be exchanged."""
        return self.op in COMMUTATIVE and not self.op.attrs


@dataclass(frozen=True)
class Query:
    """Where a rule fits: the relation of its matches holds a number for the root and for each of ``names``.

    The numbers are those of nodes for the names in ``operands`` and those of attribute values for the others.
    """

    rule: Rule
    relation: str
    names: tuple[str, ...]
    operands: frozenset[str]
    constructors: tuple[Constructor, ...]
    text: str


def queries(rules: Iterable[Rule], values: Values) -> list[Query]:
    """The queries of rules, in their order.

    Raises:
        RuleError: a rule cannot be written as one: it holds constants, or operands that are left.
    """
    return [_query(rule, f"found-{i}", values) for i, rule in enumerate(rules)]


def _query(rule: Rule, relation: str, values: Values) -> Query:
    names: dict[str, str] = {}  # of the variables in the pattern, what they are called in the query
    facts: list[str] = []
    terms: dict[Node, str] = {}
    used: list[Constructor] = []
    operands: list[str] = []
    for node in topological((rule.pattern,)):
        terms[node] = f"n{len(terms)}"
        if node.op is WILDCARD:
            name = str(node.attrs["name"])
            operands.append(name)
            names[name] = f"i{len(names)}"
            facts.append(f"(= {names[name]} (rep {terms[node]}))")
            continue
        constructor = Constructor(node.op, len(node.inputs))
        used.append(constructor)
        attrs = [_attribute(rule, value, names, values) for value in _plain(rule, node)]
        arguments = " ".join([*attrs, *(terms[x] for x in node.inputs)])
        facts.insert(0, f"(= {terms[node]} ({constructor.name} {arguments}))")
    root = terms[rule.pattern]
    text = (
        f"(relation {relation} ({' '.join(['i64'] * (1 + len(names)))}))\n"
        f"(rule ({' '.join(facts)} (= root (rep {root}))) (({relation} root {' '.join(names.values())}))"
        " :ruleset search)\n"
    )
    return Query(rule, relation, tuple(names), frozenset(operands), tuple(used), text)


def _plain(rule: Rule, node: Node) -> Sequence[Any]:
    """The attributes of a pattern's node, in order."""
    if not isinstance(node.type, UnknownType) or not node.inputs or rule.through_casts:
        raise RuleError(
            f"rule {rule.name} is no equation: it holds a constant or all operands that are left, or sees through casts"
        )
    return tuple(node.attrs.values())


def _attribute(rule: Rule, value: Any, names: dict[str, str], values: Values) -> str:
    if isinstance(value, Near) or (isinstance(value, tuple) and any(isinstance(v, Var) for v in value)):
        raise RuleError(f"rule {rule.name} is no equation: it holds {value}, of which a part is left open")
    if not isinstance(value, Var):
        return str(values.number(value))
    if value == ANY:
        return "_"
    return names.setdefault(value.name, f"a{len(names)}")
