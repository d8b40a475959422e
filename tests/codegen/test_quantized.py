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


def test_a_nan_among_rows_of_float8_reaches_its_row(kernels: dict[str, Kernel]) -> None:
    kernel = kernels["float8 rows 65x50"]
    x, scale, *rest = tensors_of(kernel.case, {"m": 4})
    x[1, 3], x[2, 64], scale[3] = 0x7F, 0xFF, float("nan")
    (y,) = kernel.run([x, scale, *rest], {"m": 4})
    assert y[0].isfinite().all()
    assert y[1:].isnan().all()


# --- rows as int8 and float8 ------------------------------------------------------------------------------------------


def _rows(x: Node, float8: bool = False) -> tuple[Node, Node]:
    scale = ops.row_scale(x, float8=float8)
    return ops.quantize_rows(x, scale, float8=float8), scale


@pytest.fixture(scope="module")
def made() -> dict[str, Kernel]:
    x, one = operand(0, (M, 37)), operand(0, (M, 1))
    found = {
        "int8": Case([x], list(_rows(x)), ROWS),
        "float8": Case([x], list(_rows(x, True)), ROWS),
        "float8 of one": Case([one], list(_rows(one, True)), ROWS),
    }
    return build(found)


@pytest.fixture
def rows(made: dict[str, Kernel]) -> Kernel:
    return made["int8"]


def test_rows_of_float8(made: dict[str, Kernel]) -> None:
    for name, columns in (("float8", 37), ("float8 of one", 1)):
        for sizes in made[name].case.sizes:
            x = torch.randn(sizes["m"], columns) * 10.0 ** torch.randint(-30, 30, (sizes["m"], 1))
            q, scale = made[name].run([x], sizes)
            wanted, expected = made[name].case.meaning([x], sizes)
            assert torch.equal(scale, expected)
            assert torch.equal(q, wanted)
            numbers = q.view(torch.float8_e4m3fn).float() * scale
            assert ((numbers - x).abs() <= x.abs() / 16 + scale * 2**-10).all()


def test_edges_of_rows_of_float8(made: dict[str, Kernel]) -> None:
    x = torch.zeros(9, 37)
    x[1, 3] = 3e38
    x[2, :2] = torch.tensor([1.0, float("inf")])
    x[3, :2] = torch.tensor([1.0, float("nan")])
    x[4] = 1e-40
    x[5] = torch.linspace(-1, 1, 37)
    x[6, :4] = torch.tensor([448.0, 17.0, 19.0, -17.0])  # half to even
    x[7, :4] = torch.tensor([448.0, 2.0**-10, 1.5 * 2.0**-9, 2.0**-9])  # subnormal
    x[8] = -torch.finfo(torch.float32).max
    q, scale = made["float8"].run([x], {"m": 9})
    wanted, expected = made["float8"].case.meaning([x], {"m": 9})
    torch.testing.assert_close(scale, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(q, wanted)
    numbers = q.view(torch.float8_e4m3fn).float()
    assert numbers.isfinite().all()
    assert numbers[1].tolist() == [0, 0, 0, 448] + [0] * 33
    assert scale[2:4].isnan().all()
    assert not numbers[[0, 2, 3, 4]].any()
    assert numbers[6, :4].tolist() == [448, 16, 20, -16]
    assert numbers[7, :4].tolist() == [448, 0, 2.0**-8, 2.0**-9]
    assert (numbers[8] == -448).all()


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
