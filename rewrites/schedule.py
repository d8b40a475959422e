"""The order in which kernels run: the one, of those tried, whose intermediates need the least memory at once.

The least peak is found exactly for up to ``EXACT`` kernels, by dynamic programming over the sets of kernels that may
have run. Beyond that a depth-first order and a greedy one are compared; finding the least is NP-hard (Sethi, "Complete
Register Allocation Problems", 1975).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import sympy

from ..ir.graph import Graph
from ..ir.node import Node, Trait, result_types, through_views
from ..ir.types import TensorType, concrete

EXACT = 12
NOMINAL = 128  # the size that stands for every symbol within whose range it lies

_WORK = (Trait.REGION, Trait.OPAQUE)


def order(graph: Graph) -> tuple[Node, ...]:
    """The kernels and calls of a graph in the order in which they run, operands before users.

    Calls that draw random numbers run as the model has them: each takes up the generator where the one before left it.
    """
    depth_first = tuple(node for node in graph.nodes if node.has(*_WORK))
    tasks = Tasks.of(graph, depth_first)
    drawing = sorted((i for i, node in enumerate(depth_first) if node.attrs.get("serial")), key=_serial(depth_first))
    return tuple(depth_first[i] for i in one_after_another(tasks, best_order(tasks), drawing))


def _serial(nodes: Sequence[Node]) -> Callable[[int], Any]:
    return lambda i: nodes[i].attrs["serial"]


def one_after_another(tasks: Tasks, chosen: Sequence[int], chain: Sequence[int]) -> tuple[int, ...]:
    """The order that was chosen, changed where it must be for these tasks to run one after another.

    Left as it is where a kernel comes between two of them both ways, which fusion may bring about.
    """
    place = {task: at for at, task in enumerate(chosen)}
    if all(place[a] < place[b] for a, b in pairwise(chain)):
        return tuple(chosen)
    before = [set(reads) for reads in tasks.reads]
    for a, b in pairwise(chain):
        before[b].add(a)
    after: list[set[int]] = [set() for _ in before]
    for task, others in enumerate(before):
        for other in others:
            after[other].add(task)
    left = [len(others) for others in before]
    ready = [(place[task], task) for task, count in enumerate(left) if not count]
    heapq.heapify(ready)
    found: list[int] = []
    while ready:
        _, task = heapq.heappop(ready)
        found.append(task)
        for other in after[task]:
            left[other] -= 1
            if not left[other]:
                heapq.heappush(ready, (place[other], other))
    return tuple(found) if len(found) == len(chosen) else tuple(chosen)


def best_order(tasks: Tasks) -> tuple[int, ...]:
    """The order with the least peak of those tried; the given one, which is a valid one, where none is better."""
    given = tuple(range(len(tasks.reads)))
    other = least_peak(tasks) if len(given) <= EXACT else greedy(tasks)
    return given if peak(tasks, given) <= peak(tasks, other) else other


@dataclass(frozen=True)
class Tasks:
    """Kernels by number: the kernels whose values each reads, the bytes it makes, and whether the caller keeps them."""

    reads: tuple[frozenset[int], ...]
    nbytes: tuple[int, ...]
    kept: frozenset[int]

    @staticmethod
    def of(graph: Graph, nodes: Sequence[Node], sizes: Mapping[sympy.Symbol, int] | None = None) -> Tasks:
        """The kernels of a graph, numbered as they are given, at some sizes; by default at nominal ones."""
        number = {node: i for i, node in enumerate(nodes)}
        sizes = nominal_sizes(graph) if sizes is None else sizes
        reads = tuple(frozenset(number[b] for b in map(_maker, node.inputs) if b in number) for node in nodes)
        kept = frozenset(number[b] for b in map(_maker, graph.roots) if b in number)
        nbytes = tuple(sum(concrete(t.nbytes, sizes) for t in _made(node)) for node in nodes)
        return Tasks(reads, nbytes, kept)

    @property
    def readers(self) -> list[set[int]]:
        """The kernels that read each one's values."""
        found: list[set[int]] = [set() for _ in self.reads]
        for i, operands in enumerate(self.reads):
            for operand in operands:
                found[operand].add(i)
        return found


def _made(node: Node) -> list[TensorType]:
    """The results that take memory of their own."""
    in_place = node.attrs.get("in_place", ())
    assert isinstance(in_place, tuple)
    taken = {result for result, _ in in_place}
    return [t for i, t in enumerate(result_types(node.type)) if i not in taken]


def _maker(value: Node) -> Node:
    """The kernel or call that a value comes from."""
    base = through_views(value)
    return base.inputs[0] if base.has(Trait.PROJECTION) else base


def nominal_sizes(graph: Graph) -> Mapping[sympy.Symbol, int]:
    """A size for each symbol, to compare orders by."""
    return {r.symbol: max(r.low, min(NOMINAL, r.high if r.high is not None else NOMINAL)) for r in graph.symbols}


def peak(tasks: Tasks, way: Sequence[int]) -> int:
    """The most bytes of intermediates that live at once when kernels run in this order."""
    waiting = [len(readers) for readers in tasks.readers]
    live = top = 0
    for task in way:
        live += tasks.nbytes[task]
        top = max(top, live)
        live -= _freed(tasks, task, waiting)
    return top


def _freed(tasks: Tasks, task: int, waiting: list[int]) -> int:
    """The bytes that are free once a task has run; ``waiting`` counts the readers still to come of each value."""
    freed = 0 if waiting[task] or task in tasks.kept else tasks.nbytes[task]
    for operand in tasks.reads[task]:
        waiting[operand] -= 1
        if waiting[operand] == 0 and operand not in tasks.kept:
            freed += tasks.nbytes[operand]
    return freed


def greedy(tasks: Tasks) -> tuple[int, ...]:
    """Of the kernels that may run, always the one after which the least lives; the earliest of several.

    What running a kernel adds only falls, as the other readers of its operands run. So a kernel is queued anew whenever
    that happens, and of its entries the first to come out is the one that holds.
    """
    waiting = [len(readers) for readers in tasks.readers]
    missing = [len(operands) for operands in tasks.reads]
    readers = tasks.readers
    ready = [(_added(tasks, i, waiting), i) for i, count in enumerate(missing) if count == 0]
    heapq.heapify(ready)
    ran = [False] * len(missing)
    way: list[int] = []
    while ready:
        _, task = heapq.heappop(ready)
        if ran[task]:
            continue
        ran[task] = True
        _freed(tasks, task, waiting)
        way.append(task)
        for reader in readers[task]:
            missing[reader] -= 1
        last = {r for operand in tasks.reads[task] if waiting[operand] == 1 for r in readers[operand] if not ran[r]}
        for i in last | readers[task]:
            if missing[i] == 0:
                heapq.heappush(ready, (_added(tasks, i, waiting), i))
    return tuple(way)


def _added(tasks: Tasks, task: int, waiting: Sequence[int]) -> int:
    """By how many bytes what lives grows when a kernel runs."""
    freed = 0 if waiting[task] or task in tasks.kept else tasks.nbytes[task]
    last = (x for x in tasks.reads[task] if waiting[x] == 1 and x not in tasks.kept)
    return tasks.nbytes[task] - freed - sum(tasks.nbytes[x] for x in last)


def least_peak(tasks: Tasks) -> tuple[int, ...]:
    """An order with the least peak there is, by dynamic programming over the sets of kernels that have run."""
    count = len(tasks.reads)
    needs = [sum(1 << i for i in operands) for operands in tasks.reads]
    readers = [sum(1 << i for i in found) for found in tasks.readers]
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    for _ in range(count):
        following: dict[int, tuple[int, tuple[int, ...]]] = {}
        for done, (top, way) in best.items():
            live = _live(tasks, readers, done)
            for task in range(count):
                if done >> task & 1 or needs[task] & ~done:
                    continue
                after = done | 1 << task
                found = (max(top, live + tasks.nbytes[task]), (*way, task))
                if after not in following or found < following[after]:
                    following[after] = found
        best = following
    return next(iter(best.values()))[1]


def _live(tasks: Tasks, readers: Sequence[int], done: int) -> int:
    """The bytes that live once a set of kernels has run: what is kept, and what others have still to read."""
    return sum(
        nbytes for i, nbytes in enumerate(tasks.nbytes) if done >> i & 1 and (i in tasks.kept or readers[i] & ~done)
    )
