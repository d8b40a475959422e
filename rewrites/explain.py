"""Why a rule does not fire: the places of a graph that come nearest to it."""

from __future__ import annotations

from ..ir.graph import Graph
from ..ir.node import Node
from .pattern import Match, Mismatch
from .rule import Rule


def why_not(graph: Graph, rule: Rule, limit: int = 5) -> list[tuple[Node, Mismatch]]:
    """The nodes of the rule's operator that it does not fit, with the reason, those that agree the most first."""
    tried = ((node, rule.explain(node)) for node in graph.nodes if node.op is rule.op)
    failed = [(node, found) for node, found in tried if not isinstance(found, Match)]
    return sorted(failed, key=lambda pair: -pair[1].agreed)[:limit]


def where(graph: Graph, rule: Rule) -> list[Match]:
    """The places of a graph that a rule fits."""
    tried = (rule.explain(node) for node in graph.nodes if node.op is rule.op)
    return [found for found in tried if isinstance(found, Match)]
