"""The pass of ``optimize="search"``: each region of a graph becomes the cheapest of what equals it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...ir import ops
from ...ir.graph import Graph
from ...ir.node import Node, Origin, topological
from ..context import Context
from ..rule import Rule, rules_by_name
from ..rules import RULES
from ..rules.equations import EQUATIONS
from ..schedule import nominal_sizes
from .cost import CostModel
from .egraph import Engine, program
from .extract import cheapest
from .regions import Region, grown, regions
from .settings import SearchSettings

NAME = "search"
# Rules of the greedy passes that the equations need: permutations that meet become one, or none.
SHARED = ("permute-permute", "permute-in-order", "neg-neg")


def search_rules() -> tuple[Rule, ...]:
    """The rules that the search follows: all equations, and a few of the greedy ones."""
    greedy = rules_by_name(RULES)
    return (*(greedy[name] for name in SHARED), *EQUATIONS)


@dataclass(frozen=True)
class Found:
    """What a search of a region came to.

    Attributes:
        outputs: the cheapest terms found: those of the region itself, where nothing cheaper is known.
        before: the cost of the region.
        after: the cost of the outputs, never above that.
        nodes: how many nodes the e-graph held.
        ended_by: the limit that ended the search, if any.
    """

    outputs: tuple[Node, ...]
    before: int
    after: int
    nodes: int = 0
    ended_by: str = ""


def search(graph: Graph, context: Context) -> Graph:
    """The graph with each region that has a cheaper equal replaced by it; each takes one unit of fuel."""
    settings = context.search or SearchSettings()
    deadline = time.monotonic() + settings.seconds
    sizes = {**nominal_sizes(graph), **settings.sizes}
    rules = program(search_rules())
    engine: Engine | None = None
    known: dict[Graph, Found] = {}
    better: dict[Node, Node] = {}
    for region in regions(graph, rules.operators, settings.region):
        if region.graph not in known:
            engine = engine or Engine(rules)
            known[region.graph] = best_of(region.graph, engine, CostModel(sizes, settings.roofs), settings, deadline)
        found = known[region.graph]
        if found.after < found.before:
            better.update(_taken(region, found, context))
    return _replaced(graph, better) if better else graph


def best_of(graph: Graph, engine: Engine, costs: CostModel, settings: SearchSettings, deadline: float) -> Found:
    """The cheapest terms found for the outputs of a region's graph.

    Args:
        graph: the region.
        engine: of the rules to follow.
        costs: what is minimised.
        settings: how many nodes the e-graph may hold, and what an improvement must save.
        deadline: when to stop, on the clock of ``time.monotonic``.
    """
    before = costs.total(graph.outputs)
    if not costs.seconds(before) or time.monotonic() > deadline:
        return Found(graph.outputs, before, before)
    with engine.classes() as classes:
        for root in graph.outputs:
            classes.enter(root)
        classes.saturate(settings.nodes, deadline)
        numbers = classes.classes()
    outputs = cheapest(classes.nodes, numbers, graph.outputs, costs)
    after = costs.total(outputs)
    saved = costs.seconds(before) - costs.seconds(after)
    worth_it = after < before and (saved == 0 or saved >= settings.gain * costs.seconds(before))
    if not worth_it or not _needs_no_more(outputs, graph.outputs):
        outputs, after = list(graph.outputs), before
    return Found(tuple(outputs), before, after, len(classes.nodes), classes.ended_by)


def _needs_no_more(new: Sequence[Node], old: Sequence[Node]) -> bool:
    """Whether each term needs only what the one that it replaces needs: no term then comes to need itself."""
    return all(_leaves(a) <= _leaves(b) for a, b in zip(new, old, strict=True))


def _leaves(root: Node) -> set[Node]:
    return {node for node in topological((root,)) if node.op in (ops.input, ops.weight)}


def _taken(region: Region, found: Found, context: Context) -> dict[Node, Node]:
    """What the roots of a region become, if there is fuel for it."""
    made = dict(zip(region.roots, grown(Graph((), found.outputs), region.leaves), strict=True))
    changed = {old: new for old, new in made.items() if old is not new}
    first = next(iter(changed), None)
    if first is None or not context.take(NAME, first, changed[first]):
        return {}
    for old, new in changed.items():
        _take_origin(old, new, set(region.leaves.values()))
    return changed


def _take_origin(old: Node, new: Node, leaves: set[Node]) -> None:
    """Give the nodes of a term the place in the model of the one that it replaces."""
    origin = Origin(old.origin.source, old.origin.module, NAME)
    stack = [new]
    while stack:
        node = stack.pop()
        if node not in leaves and not (node.origin.source and node.origin.made_by):
            node.keep_origin(origin)
            stack.extend(node.inputs)


def _replaced(graph: Graph, better: Mapping[Node, Node]) -> Graph:
    """The graph with nodes replaced by terms on nodes of the graph, of which others may be replaced as well."""
    done: dict[Node, Node] = {}
    for root in graph.roots:
        stack = [root]
        while stack:
            node = stack[-1]
            source = better.get(node, node)
            missing = [x for x in source.inputs if x not in done]
            if node in done or not missing:
                done.setdefault(node, source.with_inputs(tuple(done[x] for x in source.inputs)))
                stack.pop()
            else:
                stack.extend(missing)
    return graph.with_roots(done.__getitem__)
