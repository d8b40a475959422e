"""Attention of many queries in pairs of bfloat16: masks, head sizes, layouts, odd numbers of keys, special values."""

from dataclasses import replace

import pytest
import torch

from smelt.codegen.dot import attention_terms_at_once
from smelt.codegen.machine import Machine
from smelt.codegen.schedule import AttentionSchedule, default_schedule
from smelt.ir import ops
from smelt.ir.types import symbol
from smelt.runtime.target import Target

from .attention_cases import case
from .harness import Case, Kernel, build, operand

B, S, K = symbol("b"), symbol("s"), symbol("k")
BF16 = torch.bfloat16
MACHINE = Machine(has_bf16_dot=True)
SIZES = [
    {"b": b, "s": s, "k": k} for b, s, k in ((2, 17, 49), (1, 64, 64), (1, 40, 130), (1, 9, 1), (1, 0, 5), (1, 9, 0))
]

pytestmark = pytest.mark.skipif(
    not Target.detect("cpu").machine.has_bf16_dot, reason="this processor has no dot instruction of bfloat16"
)


def pairs(**given: object) -> Case:
    """A case of bfloat16 as a machine with the instruction runs it, few queries too."""
    made = case(**{"dtype": BF16, "sizes": SIZES, "rtol": 3e-2, **given})  # type: ignore[arg-type]
    schedule = default_schedule(made.program(), MACHINE)
    assert isinstance(schedule, AttentionSchedule)
    assert schedule.group == 2
    return replace(made, schedule=replace(schedule, few=0))


def _cases() -> dict[str, Case]:
    by_token = (0, 2, 1, 3)  # memory as [B, S, H, D]
    return {
        "plain": pairs(),
        "head of 64, causal": pairs(head=64, causal=True),
        "narrow values": pairs(head=18, width=5),
        "three vectors": pairs(head=80, width=48),
        "padding mask": pairs(mask=(B, 1, 1, K)),
        "float mask, causal": pairs(mask=(B, 1, S, K), mask_dtype=BF16, causal=True),
        "groups": pairs(heads=6, groups=3, causal=True),
        "capped scores": pairs(head=64, softcap=0.7, causal=True),
        "by token": pairs(head=32, operands=dict.fromkeys(range(3), by_token), layouts=[by_token]),
        "computed queries": _computed(),
    }


def _computed() -> Case:
    q, k, v = (operand(i, (B, 2, n, 16), BF16) for i, n in enumerate((S, K, K)))
    made = Case([q, k, v], [ops.attention(ops.neg(q), k, v, scale=0.25)], SIZES, rtol=3e-2)
    return replace(made, schedule=replace(default_schedule(made.program(), MACHINE), few=0))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return build(_cases())


@pytest.mark.parametrize("name", list(_cases()))
def test_attention(kernels: dict[str, Kernel], name: str) -> None:
    for sizes in kernels[name].case.sizes:
        kernels[name].check(sizes)


def test_queries_that_see_nothing_get_zero(kernels: dict[str, Kernel]) -> None:
    kernel, sizes = kernels["padding mask"], {"b": 2, "s": 17, "k": 71}
    tensors = kernel.case.tensors(sizes)
    tensors[3][0] = False
    kernel.check(sizes, tensors)
    assert (kernel.run(tensors, sizes)[0][0] == 0).all()


@pytest.mark.parametrize("keys", [50, 51])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_special_values_go_through(kernels: dict[str, Kernel], keys: int, value: float) -> None:
    kernel, sizes = kernels["plain"], {"b": 1, "s": 33, "k": keys}
    for operand_ in range(3):
        tensors = kernel.case.tensors(sizes)
        tensors[operand_][0, 0, -1, 3] = value
        exact = kernel.case.meaning(tensors, sizes, torch.float64)[0]
        found = kernel.run(tensors, sizes)[0]
        torch.testing.assert_close(found.double(), exact, rtol=3e-2, atol=3e-2, equal_nan=True)


def test_errors_are_no_larger_than_eagers(kernels: dict[str, Kernel]) -> None:
    kernel, sizes = kernels["head of 64, causal"], {"b": 2, "s": 200, "k": 200}
    tensors = kernel.case.tensors(sizes)
    exact = kernel.case.meaning(tensors, sizes, torch.float64)[0]
    eager = torch.nn.functional.scaled_dot_product_attention(*tensors, is_causal=True)
    ours = kernel.run(tensors, sizes)[0]
    assert (ours - exact).square().mean().sqrt() <= 1.5 * (eager - exact).square().mean().sqrt()


# --- who takes them ---------------------------------------------------------------------------------------------------


def test_the_machine_decides() -> None:
    program = case(dtype=BF16).program()
    assert [attention_terms_at_once(program, m) for m in (Machine(), MACHINE)] == [1, 2]


def test_other_operands_are_multiplied_term_by_term() -> None:
    for made in (
        case(head=17, dtype=BF16),
        case(dtype=torch.float32),
        case(dtype=torch.float16),
        case(dtype=BF16, operands={1: (0, 1, 3, 2)}),
    ):
        assert attention_terms_at_once(made.program(), MACHINE) == 1
