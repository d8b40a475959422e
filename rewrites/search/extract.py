"""The cheapest terms of an e-graph, each shared node counted once.

To find the least is NP-hard when sharing counts. Two selections are made: greedily from the leaves up, where the cost
of a class is that of all that its term needs, each class once; and the terms that were there before. Each is improved
by exchanging one node at a time for another of its class while that makes the whole cheaper. The cheaper one is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...ir.node import Node, attr_key
from .cost import CostModel, may_follow

# What a search may spend on extraction, counted and not timed, so that it ends the same way everywhere.
GREEDY_STEPS = 2_000_000  # entries of the sets of classes that are joined
EXCHANGES = 400  # nodes that are tried in place of another


@dataclass(frozen=True)
class Choice:
    """A node of a class: the classes of its operands, and its own cost."""

    node: Node
    operands: tuple[int, ...]
    cost: int


Selection = Mapping[int, Choice]  # of each class that is needed, the chosen node


def cheapest(nodes: Sequence[Node], classes: Sequence[int], roots: Sequence[Node], costs: CostModel) -> list[Node]:
    """The cheapest terms found that are equal to the roots.

    Args:
        nodes: all nodes of the e-graph.
        classes: the class of each.
        roots: some of them.
        costs: what nodes cost.
    """
    table = _choices(nodes, classes, costs)
    of = dict(zip(nodes, classes, strict=True))
    wanted = [of[root] for root in roots]
    greedy = _greedy(table)
    before = _as_written(roots, of, table)
    found = [_improved(start, wanted, table, greedy) for start in (greedy, before) if all(c in start for c in wanted)]
    totals = [_total(selection, wanted) for selection in found]
    known = [(total, i) for i, total in enumerate(totals) if total is not None]
    return _grown(found[min(known)[1]], wanted)


def _choices(nodes: Sequence[Node], classes: Sequence[int], costs: CostModel) -> dict[int, list[Choice]]:
    """The nodes of each class, without those that say the same on operands of the same classes."""
    of = dict(zip(nodes, classes, strict=True))
    products = _products(nodes, of, costs)
    table: dict[int, dict[tuple[object, ...], Choice]] = {}
    for node, at in zip(nodes, classes, strict=True):
        operands = tuple(of[x] for x in node.inputs)
        same = (node.op, operands, *map(attr_key, node.attrs.values())) if operands else (node,)
        follows = any(of[x] in products and may_follow(node, x) for x in node.inputs)
        choice = Choice(node, operands, costs.of(node, follows))
        kept = table.setdefault(at, {}).setdefault(same, choice)
        if choice.cost < kept.cost:
            table[at][same] = choice
    return {at: list(choices.values()) for at, choices in table.items()}


def _products(nodes: Sequence[Node], of: Mapping[Node, int], costs: CostModel) -> set[int]:
    """The classes that a product computes, and those of what may follow one in its kernel."""
    found = {of[node] for node in nodes if costs.is_product(node)}
    size = 0
    while len(found) > size:
        size = len(found)
        found |= {of[node] for node in nodes if any(of[x] in found and may_follow(node, x) for x in node.inputs)}
    return found


def _greedy(table: Mapping[int, Sequence[Choice]]) -> dict[int, Choice]:
    """For each class the choice by which everything below it costs least, found from the leaves up."""
    readers: dict[int, list[tuple[int, Choice]]] = {}
    for at, choices in table.items():
        for choice in choices:
            for operand in dict.fromkeys(choice.operands):
                readers.setdefault(operand, []).append((at, choice))
    best: dict[int, Choice] = {}
    below: dict[int, dict[int, int]] = {}  # of a class, the classes that its term needs, and what each costs
    totals: dict[int, int] = {}
    waiting = [(at, choice) for at, choices in table.items() for choice in choices if not choice.operands]
    steps = 0
    for at, choice in waiting:
        if steps > GREEDY_STEPS:
            break
        if any(operand not in best for operand in choice.operands):
            continue
        needs = {at: choice.cost}
        for operand in choice.operands:
            needs.update(below[operand])
            steps += len(below[operand])
        if any(at in below[operand] for operand in choice.operands):
            continue  # the term would need itself
        total = sum(needs.values())
        if at not in totals or total < totals[at]:
            best[at], below[at], totals[at] = choice, needs, total
            waiting.extend(readers.get(at, ()))
    return best


def _as_written(
    roots: Iterable[Node], of: Mapping[Node, int], table: Mapping[int, Sequence[Choice]]
) -> dict[int, Choice]:
    """The choice of the nodes that the roots were made of."""
    chosen: dict[int, Choice] = {}
    stack = list(roots)
    while stack:
        node = stack.pop()
        if of[node] in chosen:
            continue
        operands = tuple(of[x] for x in node.inputs)
        same = (c for c in table[of[node]] if c.node.op is node.op and c.operands == operands)
        chosen[of[node]] = next(c for c in same if c.node.attrs == node.attrs)
        stack.extend(node.inputs)
    return chosen


def _improved(
    start: Selection, wanted: Sequence[int], table: Mapping[int, Sequence[Choice]], greedy: Selection
) -> Selection:
    """The selection with one choice after the other exchanged while that makes the whole cheaper."""
    selection = {**greedy, **start}
    least = _total(selection, wanted)
    if least is None:
        return start
    tried = 0
    for at in _needed(selection, wanted) or ():
        for choice in table[at]:
            if choice is selection[at] or any(operand not in selection for operand in choice.operands):
                continue
            tried += 1
            if tried > EXCHANGES:
                return selection
            other = {**selection, at: choice}
            total = _total(other, wanted)
            if total is not None and total < least:
                selection, least = other, total
    return selection


def _needed(selection: Selection, wanted: Sequence[int]) -> list[int] | None:
    """The classes that are needed, operands first; None where a term would need itself."""
    done: dict[int, bool] = {}  # whether a class is finished, once it is reached
    order: list[int] = []
    stack = [(at, False) for at in reversed(wanted)]
    while stack:
        at, ready = stack.pop()
        if ready:
            done[at] = True
            order.append(at)
        elif at in done:
            if not done[at]:
                return None
        else:
            done[at] = False
            stack.append((at, True))
            stack.extend((x, False) for x in reversed(selection[at].operands))
    return order


def _total(selection: Selection, wanted: Sequence[int]) -> int | None:
    needed = _needed(selection, wanted)
    return None if needed is None else sum(selection[at].cost for at in needed)


def _grown(selection: Selection, wanted: Sequence[int]) -> list[Node]:
    """The terms of a selection."""
    made: dict[int, Node] = {}
    for at in _needed(selection, wanted) or ():
        choice = selection[at]
        made[at] = choice.node.with_inputs(tuple(made[x] for x in choice.operands))
    return [made[at] for at in wanted]
