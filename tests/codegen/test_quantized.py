"""Kernels of products with weights of few bits, held to what the dequantised weights give in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from smelt.codegen.machine import Machine
from smelt.codegen.schedule import candidates
from smelt.ir import ops
from smelt.ir.node import Node

from .harness import Case, Kernel, build, operand
from .quantized_cases import ROWS, M, cases, tensors_of


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return build(cases())


@pytest.mark.parametrize("name", list(cases()))
def test_product(kernels: dict[str, Kernel], name: str) -> None:
    kernel = kernels[name]
    for sizes in kernel.case.sizes:
        kernel.check(sizes, tensors_of(kernel.case, dict(sizes)))


def test_a_weight_is_read_in_few_bits(kernels: dict[str, Kernel]) -> None:
    program = kernels["4 bits zeros 100x50 by 32"].program
    read = [(str(p.type), p.format.value) for p in program.inputs[1:4]]
    assert read == [("i32[13, 50]", "panels"), ("f32[4, 50]", "panels"), ("u8[4, 50]", "panels")]


def test_infinities_and_nan_reach_their_rows(kernels: dict[str, Kernel]) -> None:
    kernel = kernels["8 bits 65x50"]
    x, *rest = tensors_of(kernel.case, {"m": 3})
    x[1, 5], x[2, 6] = float("inf"), float("nan")
    (y,) = kernel.run([x, *rest], {"m": 3})
    (eager,) = kernel.case.meaning([x, *rest], {"m": 3})
    assert y[2].isnan().all()
    assert torch.equal(y.isinf(), eager.isinf())
    torch.testing.assert_close(y[0], eager[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["4 bits 100x50 by 32", "8 bits 65x50", "float8 65x50"])
def test_every_schedule(name: str) -> None:
    case = cases()[name]
    schedules = candidates(case.program(), Machine())[1:]  # the first is what all others are tried with
    built = build({str(s): replace(case, schedule=s) for s in schedules})
    for kernel in built.values():
        for m in (1, 5, 33):
            kernel.check({"m": m}, tensors_of(case, {"m": m}))


# --- rows as int8 -----------------------------------------------------------------------------------------------------


def _rows(x: Node) -> tuple[Node, Node]:
    scale = ops.row_scale(x)
    return ops.quantize_rows(x, scale), scale


@pytest.fixture(scope="module")
def rows() -> Kernel:
    x = operand(0, (M, 37))
    return build({"rows": Case([x], list(_rows(x)), ROWS)})["rows"]


def test_rows(rows: Kernel) -> None:
    for sizes in rows.case.sizes:
        x = torch.randn(sizes["m"], 37)
        q, scale = rows.run([x], sizes)
        wanted, expected = rows.case.meaning([x], sizes)
        torch.testing.assert_close(scale, expected, rtol=1e-6, atol=0)
        assert torch.equal(q, wanted)


def test_edges_of_rows(rows: Kernel) -> None:
    x = torch.zeros(7, 37)
    x[1, 3] = 3e38
    x[2, :2] = torch.tensor([1.0, float("inf")])
    x[3, :2] = torch.tensor([1.0, float("nan")])
    x[4] = 1e-40
    x[5] = torch.linspace(-1, 1, 37)
    x[6, :3] = torch.tensor([127.0, 0.5, 1.5])  # half to even
    q, scale = rows.run([x], {"m": 7})
    wanted, expected = rows.case.meaning([x], {"m": 7})
    assert torch.equal(q, wanted)
    torch.testing.assert_close(scale, expected, rtol=1e-6, atol=0, equal_nan=True)
    assert not q[0].any()
    assert q[1].tolist() == [0, 0, 0, 127] + [0] * 33
    assert scale[2:4].isnan().all()
    assert not q[2:5].any()
    assert q[6, :3].tolist() == [127, 0, 2]
