"""Attention kernels: masks, grouped heads, head sizes, layouts, few and many queries."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from smelt.codegen.schedule import AttentionSchedule, Machine, candidates
from smelt.ir import ops
from smelt.ir.node import Node
from smelt.ir.types import Dim, symbol

from .harness import Case, Kernel, build, operand

B, S, K = symbol("b"), symbol("s"), symbol("k")
SIZES = [
    {"b": b, "s": s, "k": k}
    for b, s, k in [(1, 1, 1), (2, 17, 49), (1, 64, 64), (1, 40, 130), (2, 3, 100), (1, 0, 5), (1, 5, 0), (0, 5, 5)]
]
RTOL = {torch.float32: 2e-5, torch.float64: 1e-11, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def case(
    heads: int = 2,
    groups: int = 1,
    head: int = 16,
    width: int | None = None,
    dtype: torch.dtype = torch.float32,
    mask: Sequence[Dim] | None = None,
    mask_dtype: torch.dtype = torch.bool,
    causal: bool = False,
    softcap: float = 0.0,
    **rest: object,
) -> Case:
    width = head if width is None else width
    inputs = [operand(i, (B, h, n, d), dtype) for i, (h, n, d) in enumerate(_operands(heads, groups, head, width))]
    if mask is not None:
        inputs.append(operand(3, mask, mask_dtype))
    out = ops.attention(*inputs, causal=causal, scale=head**-0.5, softcap=softcap)
    return Case(inputs, [out], **{"sizes": SIZES, "rtol": RTOL[dtype], **rest})  # type: ignore[arg-type]


def _operands(heads: int, groups: int, head: int, width: int) -> list[tuple[int, Dim, int]]:
    return [(heads, S, head), (heads // groups, K, head), (heads // groups, K, width)]


def _cases() -> dict[str, Case]:
    by_token = (0, 2, 1, 3)  # memory as [B, S, H, D]
    found = {
        "plain": case(),
        "head of 64, causal": case(head=64, causal=True),
        "odd heads": case(head=17, width=5),
        "three vectors": case(head=80, width=48),
        "head of 256": case(head=256),
        "bool mask": case(mask=(B, 1, S, K)),
        "padding mask": case(mask=(B, 1, 1, K)),
        "float mask, causal": case(mask=(B, 1, S, K), mask_dtype=torch.float32, causal=True),
        "mask of heads": case(mask=(1, 2, S, K), mask_dtype=torch.float32),
        "groups": case(heads=6, groups=3, causal=True),
        "one head of keys": case(heads=4, groups=4, mask=(B, 1, 1, K)),
        "capped scores": case(head=64, softcap=0.7, causal=True),
        "capped scores with a mask": case(heads=4, groups=2, softcap=2.0, mask=(B, 1, S, K), mask_dtype=torch.float32),
        "by token": case(head=32, operands=dict.fromkeys(range(3), by_token), layouts=[by_token]),
        "keys by head": case(operands={1: (0, 1, 3, 2), 2: (0, 1, 3, 2)}),
    }
    for dtype in RTOL:
        found[str(dtype)] = case(head=20, dtype=dtype, mask=(B, 1, S, K), causal=True)
    return found


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return build(_cases())


@pytest.mark.parametrize("name", list(_cases()))
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
    for queries in (2, 40):
        sizes = {"b": 1, "s": queries, "k": 100}
        tensors = kernels["plain"].case.tensors(sizes)
        kernels["plain"].check(sizes, [tensors[0] * 20, tensors[1] * 20, tensors[2]])


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
