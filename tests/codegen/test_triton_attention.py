"""Attention kernels in Triton, interpreted: many queries and few, keys in parts, masks, grouped heads, head sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from smelt.codegen.gpu import GPU_MACHINES, GpuAttentionSchedule
from smelt.codegen.gpu_schedule import BUSY, default_gpu_schedule
from smelt.ir import ops

from . import attention_cases as cpu
from . import cached_cases as cached
from .cases import Case, operand
from .triton_harness import build

FEW = GpuAttentionSchedule(1, 16, few=True)
PARTS = GpuAttentionSchedule(1, 16, few=True, splits=3)
SMALL = GpuAttentionSchedule(16, 16)
CASES: dict[str, Case] = {**cpu.cases(), **{n: c for n, c in cached.CASES.items() if n != "two writes"}}
HEADS = int(CASES["one query"].inputs[0].shape[1])
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
    for place in range(3):
        tensors = kernel.case.tensors(sizes)
        tensors[place][0, 0, 0, 3] = value
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


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_enough_queries_take_all_their_keys_in_one_launch(batch: int) -> None:
    kernel = build(CASES["one query"], replace(PARTS, alone=2 * HEADS))
    for keys, at in ((80, 39), (16, 15), (5, 0)):
        sizes = {"b": batch, "k": keys}
        known = kernel.case.symbols(sizes)
        launched = [launch.function for launch in kernel.file.at(known).launches]
        assert launched == (["kernel_parts", "kernel_whole"] if batch < 2 else ["kernel_alone"])
        tensors = kernel.case.tensors(sizes)
        tensors[-1] = torch.tensor(at)
        kernel.check(sizes, tensors)


def test_a_file_without_the_other_widths_chooses_for_itself() -> None:
    file = build(CASES["one query"], replace(PARTS, alone=2 * HEADS)).file
    sizes = CASES["one query"].symbols({"b": 1, "k": 80})
    assert file.narrow is not None
    assert file.at(sizes) is file.narrow
    wide = replace(file, narrow=None)
    assert wide.at(sizes) is wide
    assert file.at(sizes) is file.narrow


def test_default_of_few_queries() -> None:
    machine = GPU_MACHINES["sm_90"]
    found = default_gpu_schedule(CASES["one query"].program(), machine)
    assert isinstance(found, GpuAttentionSchedule)
    assert (found.splits, found.alone) == (8, BUSY * machine.processors)

    def fixed(batch: int) -> GpuAttentionSchedule:
        q, k, v = (operand(i, (batch, 8, n, 64), torch.bfloat16) for i, n in enumerate((1, 2048, 2048)))
        schedule = default_gpu_schedule(Case([q, k, v], [ops.attention(q, k, v, scale=0.125)]).program(), machine)
        assert isinstance(schedule, GpuAttentionSchedule)
        return schedule

    assert [(fixed(n).splits, fixed(n).alone) for n in (1, 65, 66)] == [(8, 0), (8, 0), (1, 0)]
