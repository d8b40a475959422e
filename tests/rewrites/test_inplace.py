"""Which mutations a kernel may do in the memory of their target."""

import torch

from smelt.ir import ops
from smelt.ir.cost import cost_of
from smelt.ir.graph import Graph, Mutation
from smelt.ir.interpret import interpret
from smelt.ir.node import Node
from smelt.ir.parse import parse_graph
from smelt.ir.text import print_graph
from smelt.ir.verify import verify
from smelt.rewrites.fusion import fuse
from smelt.rewrites.inplace import update_in_place, updates
from smelt.rewrites.schedule import Tasks

F32, I64 = torch.float32, torch.int64
CACHE = ops.weight(name="cache", shape=(2, 9, 4), dtype=F32)
OTHER = ops.weight(name="other", shape=(2, 9, 4), dtype=F32)
NEW = ops.input(name="new", shape=(2, 1, 4), dtype=F32)
PLACE = ops.input(name="place", shape=(1,), dtype=I64)
PUT = ops.index_put(CACHE, NEW, PLACE, dim=1)


def fused(outputs: list[Node], *mutations: Mutation) -> Graph:
    return fuse(Graph([NEW, PLACE], outputs, mutations))


def kernels(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if n.is_a(ops.fused)]


def test_a_cache_is_written_in_place() -> None:
    graph = fused([ops.sum(PUT)], Mutation(CACHE, PUT))
    found = update_in_place(graph, lambda node: True)
    verify(found)
    assert [n.attrs["in_place"] for n in kernels(found)] == [((0, 0),), ()]


def test_in_place_is_part_of_the_text() -> None:
    graph = update_in_place(fused([ops.sum(PUT)], Mutation(CACHE, PUT)), lambda node: True)
    assert "in_place=[[0, 0]]" in print_graph(graph)
    assert parse_graph(print_graph(graph)) is graph


def test_what_is_updated_in_place_takes_no_memory() -> None:
    graph = fused([ops.sum(PUT)], Mutation(CACHE, PUT))
    for found, nbytes in ((graph, [2 * 9 * 4 * 4, 4]), (update_in_place(graph, lambda node: True), [0, 4])):
        assert list(Tasks.of(found, kernels(found)).nbytes) == nbytes


def test_a_kernel_that_cannot_is_left_alone() -> None:
    graph = fused([ops.sum(PUT)], Mutation(CACHE, PUT))
    assert update_in_place(graph, lambda node: False) is graph


def test_pairs_that_do_not_go_together_are_tried_one_by_one() -> None:
    keys, values = (ops.index_put(x, NEW, PLACE, dim=1) for x in (CACHE, OTHER))
    graph = fuse(Graph([NEW, PLACE], [], [Mutation(CACHE, keys), Mutation(OTHER, values)]))
    found = update_in_place(graph, lambda node: len(node.attrs["in_place"]) == 1)  # type: ignore[arg-type]
    assert [len(n.attrs["in_place"]) for n in kernels(found)] == [1]  # type: ignore[arg-type]


def test_what_reads_the_old_value_forbids_it() -> None:
    before = ops.sum(ops.exp(CACHE))
    assert not list(updates(fused([before], Mutation(CACHE, PUT))))
    assert not list(updates(fused([CACHE], Mutation(CACHE, PUT))))
    assert not list(updates(fused([ops.reshape(CACHE, shape=(72,))], Mutation(CACHE, PUT))))


def test_one_value_for_two_targets_is_copied() -> None:
    assert not list(updates(fused([], Mutation(CACHE, PUT), Mutation(OTHER, PUT))))


def test_targets_exchanged_are_copied() -> None:
    """Each new value is computed from the other tensor: no order would be right in place."""
    graph = fused([], Mutation(CACHE, ops.exp(OTHER)), Mutation(OTHER, ops.exp(CACHE)))
    assert not list(updates(graph))


def test_keys_and_values_are_written_by_one_kernel() -> None:
    """Two writes to the same places are one kernel, each in place, and the meaning is the same."""
    turned = ops.neg(NEW)
    keys, values = ops.index_put(CACHE, turned, PLACE, dim=1), ops.index_put(OTHER, NEW, PLACE, dim=1)
    plain = Graph([NEW, PLACE], [], [Mutation(CACHE, keys), Mutation(OTHER, values)])
    graph = update_in_place(fuse(plain), lambda node: True)
    (kernel,) = kernels(graph)
    assert [pair[0] for pair in kernel.attrs["in_place"]] == [0, 1]  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(2, 9, 4, generator=generator) for name in ("cache", "other")}
    tensors = [torch.randn(2, 1, 4, generator=generator), torch.tensor([5])]
    for a, b in zip(*(interpret(g, tensors, weights).mutations for g in (plain, graph)), strict=True):
        assert torch.equal(a, b)


def test_writes_that_depend_on_one_another_are_two_kernels() -> None:
    first = ops.index_put(CACHE, NEW, PLACE, dim=1)
    read = ops.slice_(first, dim=1, start=0, stop=1)
    for value in (read, ops.cumsum(read, dim=0)):
        second = ops.index_put(OTHER, value, PLACE, dim=1)
        graph = fused([], Mutation(CACHE, first), Mutation(OTHER, second))
        scatters = [
            sum(n.is_a(ops.index_put) for n in kernel.attrs["region"].nodes)  # type: ignore[union-attr]
            for kernel in kernels(graph)
        ]
        assert max(scatters) == 1


def test_writes_to_other_places_are_two_kernels() -> None:
    place = ops.input(name="place", shape=(2,), dtype=I64)
    puts = [
        ops.index_put(x, NEW, ops.slice_(place, dim=0, start=i, stop=i + 1), dim=1)
        for i, x in enumerate((CACHE, OTHER))
    ]
    graph = fuse(Graph([NEW, place], [], [Mutation(CACHE, puts[0]), Mutation(OTHER, puts[1])]))
    assert len(kernels(graph)) == 2


def test_cost_in_place() -> None:
    """Of a cache only what is written counts; where it is copied, all of it is read and written."""
    region = Graph([CACHE, NEW, PLACE], [PUT])
    row, whole = 2 * 4 * 4, 2 * 9 * 4 * 4
    assert cost_of(region).nbytes == (whole - row) + row + 8 + whole
    assert cost_of(region, ((0, 0),)).nbytes == row + 8 + row
    added = Graph([CACHE, NEW, PLACE], [ops.index_put(CACHE, NEW, PLACE, dim=1, accumulate=True)])
    assert cost_of(added, ((0, 0),)).nbytes == row + row + 8 + row
