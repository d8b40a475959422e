"""The text of kernel programs: what `dump-ir --stage kernels` shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from smelt.codegen.text import print_program
from smelt.ir import ops
from smelt.ir.types import symbol

from .cases import Case, operand
from .regions import BF16, FILLED, I64, B, S, all_regions, one, x, y, z


def programs() -> dict[str, Case]:
    """One program of each skeleton, and every kind of expression among them."""
    q, k, v, mask = *(operand(i, (B, 12, S, 64)) for i in range(3)), operand(3, (B, 1, 1, S), torch.bool)
    hidden, w, bias = x(B, S, 768), y(3072, 768), z(3072)
    gates, states = x(S, B, 1024), [operand(3, (B, 256)), operand(4, (B, 256))]
    table, ids, half = x(30522, 768), y(B, S, dtype=I64), x(B, S, 8, dtype=BF16)
    lstm = ops.recurrence(gates, operand(1, (1024, 256)), operand(2, (1024,)), *states, kind="lstm", reverse=True)
    below = ops.permute(ops.pad(half, low=(0, 1, 0), high=(0, 0, 2), value=1.0), dims=(2, 0, 1))
    return {
        "gelu": one(lambda n: ops.gelu(n), (B, S, 3072)),
        "softmax": one(lambda n: ops.softmax(n, dim=2), (B, S, S)),
        "layer_norm": Case([x(B, S, 768), y(768), z(768)], [ops.layer_norm(x(B, S, 768), y(768), z(768), eps=1e-5)]),
        "linear_relu": Case([hidden, w, bias], [ops.relu(ops.linear(hidden, w, bias))], weights=frozenset([1])),
        "attention": Case([q, k, v, mask], [ops.attention(q, k, v, mask, causal=True, scale=0.125)]),
        "lstm": Case([gates, operand(1, (1024, 256)), operand(2, (1024,)), *states], list(ops.results(lstm))),
        "embedding": Case([table, ids], [ops.embedding(table, ids)]),
        "index_put": Case(
            [x(B, 99, 4), y(B, S, 4), z(S, dtype=I64)],
            [ops.index_put(x(B, 99, 4), y(B, S, 4), z(S, dtype=I64), dim=1, accumulate=True)],
        ),
        "guards_and_casts": Case([half], [ops.cast(ops.add(below, below), dtype=torch.float32)]),
        "running_sum": one(lambda n: ops.cumsum(n, dim=1), (B, S, 4)),
    }


def test_golden(golden: Callable[[str, str], None]) -> None:
    text = "\n".join(f"# {name}\n{print_program(case.program())}" for name, case in programs().items())
    golden("kernel_programs.txt", text)


@pytest.mark.parametrize("name", all_regions())
def test_equal_programs_have_equal_text(name: str) -> None:
    first, second = all_regions()[name].program(), all_regions()[name].program()
    assert first == second
    assert print_program(first) == print_program(second)


def test_text_is_linear_in_what_is_shared() -> None:
    def doubled(times: int) -> Case:
        n = x(B, S)
        for _ in range(times):
            n = ops.add(ops.exp(n), n)
        return Case([x(B, S)], [n], FILLED)

    short, long = (len(print_program(doubled(times).program())) for times in (50, 100))
    assert long < 2.2 * short


def test_axes_keep_their_underscore_where_a_size_has_their_name() -> None:
    size = symbol("i1")
    text = print_program(Case([x(4, size)], [ops.softmax(x(4, size), dim=1)]).program())
    assert "[_i1:" in text
    assert "[i0:4]" in text
