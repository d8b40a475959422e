"""Why a rule does not fire: the places of a graph that come nearest to it, and the rules that make an operator."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

from ..ir.errors import SmeltError
from ..ir.graph import Graph
from ..ir.node import WILDCARD, Node, topological
from .instance import instantiate
from .log import Log
from .pattern import REST, Match, Mismatch
from .rule import COMPLETE, Rule
from .sample import DTYPE_CLASSES, Sample

_SIZE = 4  # of every dim of a sample: even, and what is square fits


def why_not(graph: Graph, rule: Rule, limit: int = 5) -> list[tuple[Node, Mismatch]]:
    """The nodes of the rule's operator that it does not fit, with the reason, those that agree the most first."""
    tried = ((node, rule.explain(node)) for node in graph.nodes if node.op is rule.op)
    failed = [(node, found) for node, found in tried if not isinstance(found, Match)]
    return sorted(failed, key=lambda pair: -pair[1].agreed)[:limit]


def where(graph: Graph, rule: Rule) -> list[Match]:
    """The places of a graph that a rule fits."""
    tried = (rule.explain(node) for node in graph.nodes if node.op is rule.op)
    return [found for found in tried if isinstance(found, Match)]


# --- near misses in a compilation -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NearMiss:
    """A place that a rule nearly fits.

    Attributes:
        rule: the rule.
        node: the node that it would have replaced.
        mismatch: where in the pattern it failed, and why.
        operators: how many operators the pattern has; ``mismatch.agreed`` of them fitted, at most.
        guard: the guard that refused, where the whole pattern fitted; "" otherwise.
    """

    rule: Rule
    node: Node
    mismatch: Mismatch
    operators: int
    guard: str

    @property
    def agreed(self) -> int:
        """How many operators of the pattern fitted."""
        return min(self.mismatch.agreed, self.operators)

    @property
    def nearness(self) -> tuple[float, int]:
        """What to compare near misses of several rules by: the share that fitted, then the number."""
        return (2.0 if self.guard else self.agreed / max(self.operators, 1), self.agreed)


@dataclass(frozen=True)
class RuleFate:
    """What became of one rule in a compilation.

    Attributes:
        rule: the rule.
        stage: the pass that it runs in first.
        seen: the stage after which the graph is shown that the near misses are of.
        fired: the nodes that it replaced, in order.
        misses: the places that it nearly fits, the nearest first.
    """

    rule: Rule
    stage: str
    seen: str
    fired: tuple[Node, ...]
    misses: tuple[NearMiss, ...]


def fate_of(
    rule: Rule, stages: Mapping[str, Sequence[Rule]], graphs: Mapping[str, Graph], log: Log, limit: int = 5
) -> RuleFate:
    """What became of a rule: where it fired, and where it nearly did.

    The near misses are those in the graph after the rule's pass, which other rules have brought into the form that it
    was tried on last; where nothing there has the rule's operator, those in the graph before the pass.

    Args:
        rule: the rule.
        stages: the rules of each stage.
        graphs: the graph after each stage, in order.
        log: every application of a rule.
        limit: how many near misses at most.
    """
    stage = next((name for name, rules in stages.items() if rule in rules), "")
    names = list(graphs)
    at = names.index(stage) if stage in names else max(names.index("fuse") - 1, 0) if "fuse" in names else 0
    fired = tuple(a.before for a in log if a.rule == rule.name)
    for name in (names[at], names[max(at - 1, 0)]):
        misses = [_near_miss(rule, *pair) for pair in why_not(graphs[name], rule, limit + len(fired))]
        left = tuple(miss for miss in misses if miss.node not in fired)[:limit]
        if left:
            return RuleFate(rule, stage, name, fired, left)
    return RuleFate(rule, stage, names[at], fired, ())


def _near_miss(rule: Rule, node: Node, mismatch: Mismatch) -> NearMiss:
    operators = sum(1 for n in topological((rule.pattern,)) if n.op not in (WILDCARD, REST))
    return NearMiss(rule, node, mismatch, operators, guard_text(rule) if mismatch.agreed >= COMPLETE else "")


def nearest(
    operator: str, stages: Mapping[str, Sequence[Rule]], graphs: Mapping[str, Graph], log: Log
) -> NearMiss | None:
    """Of all rules that make an operator, the near miss that came furthest; None where none is near.

    Where only the outermost operator of a larger pattern fits, it is not.
    """
    rules = [rule for group in stages.values() for rule in group if operator in made_by(rule)]
    found = [miss for rule in rules for miss in fate_of(rule, stages, graphs, log, limit=1).misses]
    near = (miss for miss in found if miss.agreed > 1 or 2 * miss.agreed >= miss.operators)
    return max(near, key=lambda miss: miss.nearness, default=None)


# --- what rules make and ask ------------------------------------------------------------------------------------------


def made_by(rule: Rule) -> frozenset[str]:
    """The names of the operators that a rule brings into a graph which the graph did not have: seen on its samples."""
    found: set[str] = set()
    for sample in rule.samples:
        with suppress(SmeltError):
            before = instantiate(rule.pattern, _bindings(rule, sample))
            after = rule.apply(before)
            if after is not None:
                found |= _names(after) - _names(before)
    return frozenset(found)


def _bindings(rule: Rule, sample: Sample) -> Mapping[str, Any]:
    dtypes = {word: DTYPE_CLASSES[word][0] for word in sample.dtypes}
    return sample.bindings(rule.variables, dict.fromkeys(sample.dims, _SIZE), dtypes)


def _names(node: Node) -> set[str]:
    return {n.op.name for n in topological((node,))}


def guard_text(rule: Rule) -> str:
    """A rule's guard in words: the name of a function and what it says of itself, the source of a lambda."""
    guard = rule.when
    if guard is None:
        return ""
    name = getattr(guard, "__name__", type(guard).__name__)
    if name != "<lambda>":
        said = (inspect.getdoc(guard) or "").partition("\n")[0]
        return f"{name}: {said}" if said else name
    code = guard.__code__
    place = f"{Path(code.co_filename).name}:{code.co_firstlineno}"
    source = _lambda_source(code)
    return f"{source}, {place}" if source else place


def _lambda_source(code: CodeType) -> str:
    """The text of the lambda that became some code; "" where it cannot be told from others."""
    try:
        text = Path(code.co_filename).read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (OSError, SyntaxError):
        return ""
    names = code.co_varnames[: code.co_argcount]
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Lambda)
        and node.lineno == code.co_firstlineno
        and tuple(a.arg for a in node.args.args) == names
    ]
    return " ".join((ast.get_source_segment(text, found[0].body) or "").split()) if len(found) == 1 else ""
