"""Attention of many queries whose last block holds a few: those run with lanes along the head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from smelt.codegen.machine import Machine
from smelt.codegen.schedule import AttentionSchedule, default_schedule
from smelt.ir import ops
from smelt.runtime.target import Target

from .attention_cases import B, K, S, case
from .cached_cases import from_offset
from .harness import Case, Kernel, build, operand, tvm_module

MACHINE = Machine(threads=2)
# blocks of 32 queries: none, a few, as many as are a few at most, more, and two blocks with one
LENGTHS = (32, 33, 40, 44, 45, 48, 63, 65)
SIZES = [{"b": 1 + s % 2, "s": s, "k": s + 9} for s in LENGTHS]


def cases() -> dict[str, Case]:
    return {
        "causal": case(causal=True, sizes=SIZES),
        "bool mask": case(mask=(B, 1, S, K), sizes=SIZES),
        "float mask of heads": case(mask=(1, 2, S, K), mask_dtype=torch.float32, sizes=SIZES),
        "groups": case(heads=6, groups=3, causal=True, sizes=SIZES),
        "one head of keys, in parts": case(heads=4, groups=4, causal=True, sizes=[s | {"k": 300} for s in SIZES]),
        "capped, odd head": case(head=17, width=5, softcap=0.7, causal=True, sizes=SIZES),
        "from an offset": from_offset(S, SIZES, 60, mask=True),
        "float64": case(dtype=torch.float64, causal=True, sizes=SIZES),
        "bfloat16": case(head=32, dtype=torch.bfloat16, causal=True, sizes=SIZES),
        "by token": case(head=32, operands=dict.fromkeys(range(3), (0, 2, 1, 3)), layouts=[(0, 2, 1, 3)], sizes=SIZES),
        **{f"{s} known": known(s) for s in (33, 40, 45, 65)},
    }


def known(queries: int) -> Case:
    q, k, v = operand(0, (B, 2, queries, 16)), operand(1, (B, 2, K, 16)), operand(2, (B, 2, K, 16))
    out = ops.attention(q, k, v, causal=True, scale=0.25)
    return Case([q, k, v], [out], [{"b": b, "k": k} for b, k in ((1, queries), (3, 100), (2, 0))], rtol=2e-5)


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return build({n: replace(c, schedule=default_schedule(c.program(), MACHINE)) for n, c in cases().items()})


@pytest.mark.parametrize("name", list(cases()))
def test_attention(kernels: dict[str, Kernel], name: str) -> None:
    torch.manual_seed(0)
    for sizes in kernels[name].case.sizes:
        kernels[name].check(sizes)


def test_queries_that_see_nothing(kernels: dict[str, Kernel]) -> None:
    kernel, sizes = kernels["bool mask"], {"b": 2, "s": 37, "k": 50}
    tensors = kernel.case.tensors(sizes)
    tensors[3][0, :, 30:] = False
    kernel.check(sizes, tensors)
    assert (kernel.run(tensors, sizes)[0][0, :, 30:] == 0).all()


@pytest.mark.skipif(
    not Target.detect("cpu").machine.has_bf16_dot, reason="this processor has no dot instruction of bfloat16"
)
def test_operands_in_pairs_of_bfloat16() -> None:
    """Blocks round queries and weights to bfloat16, as eager does; the last few do not."""
    base = case(head=32, dtype=torch.bfloat16, causal=True, sizes=SIZES, rtol=3e-2)
    schedule = default_schedule(base.program(), Machine(has_bf16_dot=True))
    assert isinstance(schedule, AttentionSchedule)
    assert schedule.group == 2
    kernel = build({"pairs": replace(base, schedule=schedule)})["pairs"]
    for sizes in SIZES:
        kernel.check(sizes)


def text_of(found: Case, schedule: Any = None) -> str:
    program = found.program()
    return tvm_module.kernel_text("k", program, schedule or default_schedule(program, MACHINE))


@pytest.mark.parametrize(
    ("queries", "loops"),
    [(1, 1), (16, 1), (20, 1), (32, 1), (33, 2), (44, 2), (45, 1), (64, 1), (197, 2)],
)
def test_loops_of_a_known_number_of_queries(queries: int, loops: int) -> None:
    """Code for a last block is there only where there is one."""
    assert text_of(known(queries)).count("T.parallel") == loops


def test_a_kernel_of_any_number_has_no_loops_more() -> None:
    assert text_of(case(causal=True)).count("T.parallel") == 2
