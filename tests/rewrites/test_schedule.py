"""The order of kernels: always a valid one, and never more memory than the best there is allows."""

from itertools import permutations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.rewrites.fusion import fuse
from smelt.rewrites.log import Fuel
from smelt.rewrites.schedule import EXACT, Tasks, best_order, greedy, least_peak, order, peak


@st.composite
def tasks(draw: st.DrawFn, most: int = 7) -> Tasks:
    count = draw(st.integers(1, most))
    reads = [
        frozenset(draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else frozenset[int]() for i in range(count)
    ]
    nbytes = tuple(draw(st.integers(0, 100)) for _ in range(count))
    return Tasks(tuple(reads), nbytes, frozenset(draw(st.sets(st.integers(0, count - 1), max_size=2))))


def is_valid(given_tasks: Tasks, way: tuple[int, ...]) -> bool:
    done: set[int] = set()
    for task in way:
        if not given_tasks.reads[task] <= done:
            return False
        done.add(task)
    return len(done) == len(given_tasks.reads)


@given(tasks())
@settings(deadline=None)
def test_the_exact_search_finds_the_least_peak(drawn: Tasks) -> None:
    ways = [way for way in permutations(range(len(drawn.reads))) if is_valid(drawn, way)]
    found = least_peak(drawn)
    assert is_valid(drawn, found)
    assert peak(drawn, found) == min(peak(drawn, way) for way in ways)


@given(tasks(most=30))
@settings(deadline=None)
def test_the_greedy_order_is_valid(drawn: Tasks) -> None:
    assert is_valid(drawn, greedy(drawn))


@given(tasks(most=30))
@settings(deadline=None)
def test_the_greedy_order_takes_what_adds_least(drawn: Tasks) -> None:
    way: list[int] = []
    while len(way) < len(drawn.reads):
        ready = [i for i, reads in enumerate(drawn.reads) if i not in way and reads <= set(way)]
        way.append(min(ready, key=lambda i: (lives_after(drawn, [*way, i]), i)))
    assert greedy(drawn) == tuple(way)


def lives_after(drawn: Tasks, way: list[int]) -> int:
    read_later = {x for i, reads in enumerate(drawn.reads) if i not in way for x in reads}
    return sum(drawn.nbytes[i] for i in way if i in drawn.kept or i in read_later)


def test_twelve_kernels_are_ordered_exactly() -> None:
    # six large values, each at once reduced to a small one: depth first over a sum of all keeps one large value alive
    x = ops.input(name="x", shape=(64, 64), dtype=torch.float32)
    small = [ops.sum(ops.mul(ops.flip(x, dims=(i % 2,)), ops.scalar(float(i), x.dtype)), dims=(0,)) for i in range(6)]
    total = small[0]
    for value in small[1:]:
        total = ops.concat(total, value, dim=0)
    graph = fuse(Graph([x], [total]), Fuel(limit=0))
    steps = order(graph)
    numbers = {node: i for i, node in enumerate(n for n in graph.nodes if n.is_a(ops.fused))}
    way = tuple(numbers[node] for node in steps)
    drawn = Tasks.of(graph, list(numbers))
    assert is_valid(drawn, way)
    assert peak(drawn, way) <= peak(drawn, range(len(numbers)))
    assert peak(drawn, way) <= 2 * 64 * 64 * 4


def test_a_value_that_nobody_reads_is_free_at_once() -> None:
    drawn = Tasks((frozenset(), frozenset()), (10, 10), frozenset())
    assert peak(drawn, (0, 1)) == 10


def least_by_search(given_tasks: Tasks) -> int:
    """The least peak of all valid orders, by trying them depth first and leaving those that are no better already."""
    count = len(given_tasks.reads)
    readers = given_tasks.readers
    best = sum(given_tasks.nbytes)
    seen: dict[frozenset[int], int] = {}
    stack: list[tuple[frozenset[int], int]] = [(frozenset(), 0)]
    while stack:
        done, top = stack.pop()
        if top >= min(best, seen.get(done, best)):
            continue
        seen[done] = top
        if len(done) == count:
            best = top
            continue
        live = sum(given_tasks.nbytes[i] for i in done if i in given_tasks.kept or readers[i] - done)
        for task in range(count):
            if task not in done and given_tasks.reads[task] <= done:
                stack.append((done | {task}, max(top, live + given_tasks.nbytes[task])))
    return best


@given(tasks(most=EXACT))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_the_order_chosen_is_within_a_tenth_of_the_best_one(drawn: Tasks) -> None:
    found = best_order(drawn)
    assert is_valid(drawn, found)
    assert peak(drawn, found) <= 1.1 * least_by_search(drawn)


@given(tasks(most=40))
@settings(deadline=None, derandomize=True)
def test_no_order_chosen_is_worse_than_the_given_one(drawn: Tasks) -> None:
    found = best_order(drawn)
    assert is_valid(drawn, found)
    assert peak(drawn, found) <= peak(drawn, range(len(drawn.reads)))


@given(tasks(most=12))
@settings(deadline=None, derandomize=True)
def test_the_search_of_the_test_agrees_with_all_orders(drawn: Tasks) -> None:
    if len(drawn.reads) <= 6:
        ways = [way for way in permutations(range(len(drawn.reads))) if is_valid(drawn, way)]
        assert least_by_search(drawn) == min(peak(drawn, way) for way in ways)
