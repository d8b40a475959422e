"""Attention kernels: masks, grouped heads, head sizes, layouts, few and many queries."""

from dataclasses import replace

import pytest
import torch

from smelt.codegen.machine import Machine
from smelt.codegen.schedule import AttentionSchedule, candidates
from smelt.ir import ops
from smelt.ir.node import Node

from .attention_cases import B, K, S, case, cases
from .harness import Case, Kernel, build, operand


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return build(cases())


@pytest.mark.parametrize("name", list(cases()))
def test_attention(kernels: dict[str, Kernel], name: str) -> None:
    for sizes in kernels[name].case.sizes:
        kernels[name].check(sizes)


@pytest.mark.parametrize("sizes", [{"b": 2, "s": 1, "k": 70}, {"b": 2, "s": 17, "k": 70}, {"b": 2, "s": 40, "k": 70}])
@pytest.mark.parametrize("name", ["bool mask", "padding mask"])
def test_queries_that_see_nothing_get_zero(kernels: dict[str, Kernel], name: str, sizes: dict[str, int]) -> None:
    kernel = kernels[name]
    tensors = kernel.case.tensors(sizes)
    tensors[3][0] = False
    kernel.check(sizes, tensors)
    assert (kernel.run(tensors, sizes)[0][0] == 0).all()


@pytest.mark.parametrize("queries", [1, 8, 16, 17, 33])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_special_values_go_through(kernels: dict[str, Kernel], queries: int, value: float) -> None:
    sizes = {"b": 1, "s": queries, "k": 50}
    kernel = kernels["plain"]
    for operand_ in range(3):
        tensors = kernel.case.tensors(sizes)
        tensors[operand_][0, 0, 0, 3] = value
        exact = kernel.case.meaning(tensors, sizes, torch.float64)[0]
        found = kernel.run(tensors, sizes)[0]
        torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=2e-5, equal_nan=True)


def test_large_scores_do_not_overflow(kernels: dict[str, Kernel]) -> None:
    kernel = replace(kernels["plain"], case=replace(kernels["plain"].case, rtol=1e-4))  # eager's error is up to 4e-5
    for queries in (2, 40):
        sizes = {"b": 1, "s": queries, "k": 100}
        tensors = kernel.case.tensors(sizes)
        kernel.check(sizes, [tensors[0] * 20, tensors[1] * 20, tensors[2]])


def test_every_candidate_computes_the_same() -> None:
    base = case(head=40, causal=True, mask=(B, 1, S, K))
    machines = [Machine(), Machine(vector_bits=256, registers=16), Machine(vector_bits=128, registers=32)]
    found = [s for machine in machines for s in candidates(base.program(), machine)[:2]]
    schedules = [s for s in found if isinstance(s, AttentionSchedule)]
    schedules += [AttentionSchedule(queries=16, keys=16), AttentionSchedule(queries=48, keys=32, few=0)]
    for kernel in build({str(i): replace(base, schedule=s) for i, s in enumerate(schedules)}).values():
        for sizes in base.sizes:
            kernel.check(sizes)


def test_number_of_queries_known() -> None:
    for queries in (1, 3, 10, 11, 16, 17, 20):
        q, k, v = operand(0, (2, 4, queries, 16)), operand(1, (2, 4, K, 16)), operand(2, (2, 4, K, 16))
        out: Node = ops.attention(q, k, v, scale=0.25)
        kernel = build({"0": Case([q, k, v], [out])})["0"]
        tensors = kernel.case.tensors({"k": 77})
        exact = kernel.case.meaning(tensors, {"k": 77}, torch.float64)[0]
        torch.testing.assert_close(kernel.run(tensors, {"k": 77})[0].double(), exact, rtol=2e-5, atol=2e-5)
