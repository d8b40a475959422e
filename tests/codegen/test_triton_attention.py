"""Attention kernels in Triton, interpreted: many queries and few, keys in parts, masks, grouped heads, head sizes."""

from __future__ import annotations

import pytest
import torch

from smelt.codegen.gpu import GpuAttentionSchedule

from . import attention_cases as cpu
from . import cached_cases as cached
from .cases import Case
from .triton_harness import build

FEW = GpuAttentionSchedule(1, 16, few=True)
PARTS = GpuAttentionSchedule(1, 16, few=True, splits=3)
SMALL = GpuAttentionSchedule(16, 16)
CASES: dict[str, Case] = {**cpu.cases(), **{n: c for n, c in cached.CASES.items() if n != "two writes"}}
SIZES = [{"b": b, "s": s, "k": k} for b, s, k in ((1, 17, 40), (1, 3, 0), (1, 0, 3))]


@pytest.mark.parametrize("name", CASES)
def test_attention(name: str) -> None:
    kernel = build(CASES[name])
    for sizes in SIZES if CASES[name].sizes is cpu.SIZES else CASES[name].sizes[:2]:
        kernel.check(sizes)


@pytest.mark.parametrize("schedule", [SMALL, FEW, PARTS], ids=["blocks", "few", "parts"])
@pytest.mark.parametrize(
    "name", ["groups", "float mask, causal", "odd heads", "one query and a mask", "turned queries"]
)
def test_every_way_computes_the_same(name: str, schedule: GpuAttentionSchedule) -> None:
    kernel, known = build(CASES[name], schedule), CASES[name].sizes[0]
    kernel.check({n: size for n, size in {"b": 1, "s": 3, "k": 53}.items() if n in known})


@pytest.mark.parametrize("schedule", [SMALL, FEW, PARTS], ids=["blocks", "few", "parts"])
def test_queries_that_see_nothing_get_zero(schedule: GpuAttentionSchedule) -> None:
    kernel, sizes = build(CASES["padding mask"], schedule), {"b": 2, "s": 3, "k": 40}
    tensors = kernel.case.tensors(sizes)
    tensors[3][0] = False
    kernel.check(sizes, tensors)
    assert (kernel.run(tensors, sizes)[0][0] == 0).all()


@pytest.mark.parametrize("schedule", [SMALL, FEW, PARTS], ids=["blocks", "few", "parts"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_special_values_go_through(value: float, schedule: GpuAttentionSchedule) -> None:
    kernel, sizes = build(CASES["plain"], schedule), {"b": 1, "s": 1, "k": 20}
    for operand in range(3):
        tensors = kernel.case.tensors(sizes)
        tensors[operand][0, 0, 0, 3] = value
        exact = kernel.case.meaning(tensors, sizes, torch.float64)[0]
        found = kernel.run(tensors, sizes)[0]
        torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=2e-5, equal_nan=True)


@pytest.mark.parametrize("offset", [-(2**63), -1, 0, 7, 48, 49, 2**63 - 1])
@pytest.mark.parametrize("schedule", [SMALL, PARTS], ids=["blocks", "parts"])
def test_offsets_beyond_the_keys(offset: int, schedule: GpuAttentionSchedule) -> None:
    kernel, sizes = build(CASES["one query"], schedule), {"b": 1, "k": 49}
    tensors = kernel.case.tensors(sizes)
    tensors[-1] = torch.tensor(offset)
    kernel.check(sizes, tensors)


@pytest.mark.parametrize("schedule", [SMALL, FEW, PARTS], ids=["blocks", "few", "parts"])
def test_keys_past_the_position_are_not_read(schedule: GpuAttentionSchedule) -> None:
    kernel, sizes = build(CASES["one query"], schedule), {"b": 1, "k": 80}
    tensors = kernel.case.tensors(sizes)
    tensors[-1] = torch.tensor(39)
    (expected,) = kernel.run(tensors, sizes)
    for x in tensors[1:3]:
        x[:, :, 40:] = torch.nan
    assert torch.equal(kernel.run(tensors, sizes)[0], expected)
