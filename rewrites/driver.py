"""Applies rules to a graph until none fits.

One walk from the operands up: a node's operands are rewritten before the node, and a replacement is walked in turn, so
when the walk ends no rule fits anywhere. Each node is tried once against the rules of its operator; the cost grows with
the graph and not with its depth, and there is no recursion.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..ir.graph import Graph
from ..ir.node import Node, OpDef, Origin
from .log import Fuel, Log
from .pattern import brief
from .rule import Rule, RuleError

# How many replacements may follow from one node of the graph before the rules are taken to loop.
MAX_CHAIN = 200


class RuleSet:
    """Rules in the order in which they are tried, by the operator that they fire on."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        self._by_op: dict[OpDef, list[Rule]] = {}
        for rule in self.rules:
            self._by_op.setdefault(rule.op, []).append(rule)

    def of(self, op: OpDef) -> Sequence[Rule]:
        """The rules that may fire on an operator."""
        return self._by_op.get(op, ())


def rewrite(graph: Graph, rules: RuleSet, fuel: Fuel | None = None, log: Log | None = None) -> Graph:
    """The graph with the rules applied until none fits or the fuel is spent.

    Raises:
        RuleError: a rule built a node of another type, or the rules replace each other's results without end.
    """
    walk = _Walk(rules, fuel or Fuel(), log if log is not None else Log())
    for root in graph.roots:
        walk.run(root)
    return graph.with_roots(walk.done.__getitem__)


class _Walk:
    """One walk over a graph. ``done`` maps nodes to what stands for them now."""

    def __init__(self, rules: RuleSet, fuel: Fuel, log: Log) -> None:
        self.rules, self.fuel, self.log = rules, fuel, log
        self.done: dict[Node, Node] = {}
        self._becomes: dict[Node, Node] = {}  # nodes that another one stands for, which is not finished yet
        self._chain: dict[Node, tuple[str, ...]] = {}  # the rules that led to a node that the graph did not have

    def run(self, root: Node) -> None:
        """Finish a node and everything below it."""
        stack = [root]
        while stack:
            node = stack[-1]
            first = [] if node in self.done else self._visit(node)
            stack.extend(first)
            if not first:
                stack.pop()

    def _visit(self, node: Node) -> list[Node]:
        """Finish a node, or say which nodes have to be finished first."""
        if node in self._becomes:
            return self._follow(node)
        missing = [x for x in reversed(node.inputs) if x not in self.done]
        if missing:
            self._pass_on(node, missing)
            return missing
        better = node.with_inputs(tuple(self.done[x] for x in node.inputs))
        if better is node:
            better = self._apply(node)
        if better is node:
            self.done[node] = node
            return []
        self._becomes[node] = better
        self._pass_on(node, [better])
        return [better]

    def _follow(self, node: Node) -> list[Node]:
        if self._becomes[node] not in self.done:
            raise self._loop(node)
        self.done[node] = self.done[self._becomes.pop(node)]
        return []

    def _pass_on(self, node: Node, nodes: list[Node]) -> None:
        chain = self._chain.get(node)
        if chain:
            self._chain.update((x, chain) for x in nodes if x not in self._chain)

    def _apply(self, node: Node) -> Node:
        """The node's replacement by the first rule that fits; the node itself where none does."""
        if self.fuel.empty:
            return node
        for rule in self.rules.of(node.op):
            made = rule.apply(node)
            if made is None:
                continue
            if made is node:
                raise RuleError(f"rule {rule.name} replaced {brief(node)} by itself")
            if not self.fuel.take(rule.name):
                return node
            self.log.record(self.fuel.used, rule.name, node, made)
            self._take_origin(made, node, rule)
            self._lengthen(node, made, rule)
            return made
        return node

    def _take_origin(self, made: Node, replaced: Node, rule: Rule) -> None:
        """Give the nodes that a rule built the place in the model of the node that they replace."""
        origin = Origin(replaced.origin.source, replaced.origin.module, rule.name)
        stack = [made]
        while stack:
            node = stack.pop()
            if node not in self.done:
                node.keep_origin(origin)
                stack.extend(node.inputs)

    def _lengthen(self, node: Node, made: Node, rule: Rule) -> None:
        chain = (*self._chain.get(node, ()), rule.name)
        if len(chain) > MAX_CHAIN:
            raise self._loop(node)
        if made not in self.done:
            self._chain[made] = chain

    def _loop(self, node: Node) -> RuleError:
        names = ", ".join(sorted(set(self._chain.get(node, ())[-20:])))
        return RuleError(f"rules loop at {brief(node)}: {names} replace each other's results without end")
