"""What a graph reads of its inputs and weights, and what updates write."""

import pytest
import torch

from smelt.ir import ops
from smelt.ir.cost import Roofs, at_most, cost_of, reads_of, updates, written_by
from smelt.ir.graph import Graph, Mutation
from smelt.ir.node import Node
from smelt.ir.types import concrete, symbol

X = ops.input(name="x", shape=(8, 4), dtype=torch.float32)
INDEX = ops.input(name="i", shape=(3,), dtype=torch.int64)
ROW = 4 * 4


def rows(start: int, stop: int) -> Node:
    return ops.slice_(X, dim=0, start=start, stop=stop)


@pytest.mark.parametrize(
    ("value", "nbytes"),
    [
        (ops.exp(X), 8 * ROW),
        (ops.exp(rows(0, 2)), 2 * ROW),
        (ops.exp(ops.permute(ops.reshape(rows(1, 3), shape=(2, 2, 2)), dims=(2, 0, 1))), 2 * ROW),
        (ops.add(rows(0, 2), rows(2, 4)), 4 * ROW),
        (ops.concat(rows(0, 7), rows(1, 8), dim=0), 8 * ROW),  # overlapping: no element counts twice beyond the whole
        (ops.exp(ops.expand(rows(0, 1), shape=(5, 4))), 1 * ROW),
        (ops.exp(ops.reshape(ops.flip(X, dims=(0,)), shape=(32,))), 8 * ROW),
        (ops.index(X, INDEX), 3 * ROW),
        (ops.index(X, ops.concat(INDEX, INDEX, INDEX, INDEX, dim=0)), 8 * ROW),
        (ops.gather(X, ops.input(name="j", shape=(2, 4), dtype=torch.int64), dim=0), 2 * ROW),
    ],
)
def test_what_is_read_of_an_input(value: Node, nbytes: int) -> None:
    assert reads_of(Graph([X, INDEX], [value]))[X] == nbytes


def test_an_input_that_is_returned_is_read_whole_and_one_that_nobody_reads_not_at_all() -> None:
    assert reads_of(Graph([X, INDEX], [rows(0, 2), X])) == {X: 8 * ROW, INDEX: 0}


def test_a_table_that_is_also_a_factor_is_read_whole() -> None:
    table = ops.weight(name="table", shape=(100, 4), dtype=torch.float32)
    looked_up = ops.embedding(table, INDEX)
    assert reads_of(Graph([INDEX], [looked_up]))[table] == 3 * ROW
    assert reads_of(Graph([INDEX], [ops.linear(looked_up, table)]))[table] == 100 * ROW


def test_a_cache_that_is_updated_is_not_read_for_the_update() -> None:
    new = ops.input(name="new", shape=(1, 4), dtype=torch.float32)
    updated = ops.slice_put(X, new, dim=0, start=5)
    assert written_by(updated) == ROW
    only_written = Graph([X, new], [ops.exp(new)], [Mutation(X, updated)])
    assert reads_of(only_written)[X] == 0
    read_too = Graph([X, new], [ops.sum(updated, dims=(0, 1))], [Mutation(X, updated)])
    assert reads_of(read_too)[X] == 7 * ROW


def test_updates_by_index() -> None:
    new = ops.input(name="new", shape=(3, 4), dtype=torch.float32)
    put = ops.index_put(X, new, INDEX)
    assert updates(put)
    assert written_by(put) == 3 * ROW
    assert not updates(ops.index_put(X, new, INDEX, accumulate=True))
    index = ops.input(name="j", shape=(2, 4), dtype=torch.int64)
    assert written_by(ops.scatter(X, index, ops.slice_(X, dim=0, start=0, stop=2), dim=0)) == 2 * ROW


def test_sizes_that_are_not_known() -> None:
    s = symbol("s")
    x = ops.input(name="x", shape=(s, 4), dtype=torch.float32)
    i = ops.input(name="i", shape=(s,), dtype=torch.int64)
    half = ops.slice_(x, dim=0, start=0, stop=s // 2)
    read = reads_of(Graph([x, i], [ops.exp(half), ops.index(x, i)]))[x]
    assert concrete(read, {s: 10}) == 10 * ROW
    assert concrete(reads_of(Graph([x, i], [ops.exp(half)]))[x], {s: 10}) == 5 * ROW


def test_a_sum_of_parts_stays_within_its_limits() -> None:
    s = symbol("s")
    assert at_most([3, 4], 10) == 7
    assert at_most([8, 4], 10) == 10
    assert at_most([2, -4], 10) == 0
    assert at_most([], 10) == 0
    assert concrete(at_most([s, -4], 10), {s: 2}) == 0
    assert concrete(at_most([s, 4], 10), {s: 20}) == 10
    assert concrete(at_most([12], s), {s: 5}) == 5


def test_the_cost_of_a_region_counts_what_it_reads() -> None:
    cost = cost_of(Graph([X], [ops.exp(rows(0, 2))]))
    assert cost.nbytes == 4 * ROW
    assert cost.products == 0
    assert cost.flops == cost.others > 0


def test_a_roof_is_the_nearer_one() -> None:
    found = Roofs(bytes_per_second=1e8, peaks={"float32": 1e9})
    assert found.share("float32", 10**9, 0, 2.0) == 0.5
    assert found.share("float32", 10**9, 3 * 10**8, 4.0) == 0.75
    assert found.share("bfloat16", 1, 1, 1.0) is None
    assert hash(found) is not None
