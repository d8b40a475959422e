"""Kernels of products with weights of few bits, held to what the dequantised weights give in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from smelt.codegen.schedule import Machine, candidates
from smelt.ir import ops
from smelt.ir.node import Node
from smelt.ir.ops.quantize import groups_of, stored_dtype, stored_shape
from smelt.ir.types import symbol

from .harness import Case, Kernel, build, operand

M, B = symbol("m"), symbol("b")
ROWS = [{"m": m} for m in (0, 1, 2, 3, 7, 8, 9, 17, 33)]
F32, U8, I8 = torch.float32, torch.uint8, torch.int8


def few_bits(
    terms: int,
    columns: int,
    bits: int,
    group: int | None = None,
    *,
    zeros: bool = False,
    bias: bool = True,
    rows: tuple[object, ...] = (M,),
    packed: bool = True,
    norm: bool = False,
    sizes: object = ROWS,
) -> Case:
    """A product of ``rows`` with a weight [columns, terms] of few bits; ``group=None`` is one scale for each column."""
    group = group or terms + -terms % 8
    count = groups_of(terms, group)
    x = operand(0, (*rows, terms))  # type: ignore[arg-type]
    weight = [
        operand(1, stored_shape(columns, terms, bits), stored_dtype(bits, zeros)),
        operand(2, (columns, count)),
        *([operand(3, (columns, count), U8)] if zeros else []),
    ]
    inputs = [x, *weight, *([operand(len(weight) + 1, (columns,))] if bias else [])]
    left = ops.rms_norm(x) if norm else x
    y = ops.quantized_linear(left, *inputs[1:], bits=bits, group=group, zeros=zeros)
    weights = frozenset(range(1, len(weight) + 1)) if packed else frozenset()
    given = {"low": -127, "high": 128} if not zeros else {"low": 0, "high": 256}
    given = given if bits == 8 else {"low": -(2**31), "high": 2**31}
    return Case(inputs, [y], sizes, weights=weights, rtol=1e-4, **given)  # type: ignore[arg-type]


def int8(terms: int, columns: int, *, packed: bool = True, rows: tuple[object, ...] = (M,)) -> Case:
    """A product of int8 rows, one residual after it."""
    x, r = operand(0, (*rows, terms), I8), operand(1, (*rows, 1))  # type: ignore[arg-type]
    q, s, b = operand(2, (columns, terms), I8), operand(3, (columns, 1)), operand(4, (columns,))
    y = ops.relu(ops.int8_linear(x, r, q, s, b))
    weights = frozenset([2, 3]) if packed else frozenset()
    return Case([x, r, q, s, b], [y], ROWS, weights=weights, rtol=1e-4, low=-127, high=128)


def _cases() -> dict[str, Case]:
    found = {}
    for bits, zeros in ((8, False), (8, True), (4, False), (4, True)):
        kind = f"{bits} bits{' zeros' if zeros else ''}"
        found[f"{kind} 65x50"] = few_bits(65, 50, bits, zeros=zeros)
        found[f"{kind} 100x50 by 32"] = few_bits(100, 50, bits, 32, zeros=zeros)
    found["one number"] = few_bits(1, 1, 4)
    found["many terms"] = few_bits(600, 17, 8)
    found["one column"] = few_bits(257, 1, 4, 128)
    found["even"] = few_bits(64, 48, 4, 32)
    found["a word and a rest"] = few_bits(108, 48, 4, 32)
    found["fewer terms than a step"] = few_bits(15, 17, 4, zeros=True)
    found["bytes and a rest"] = few_bits(43, 16, 8, 16)
    found["not packed"] = few_bits(70, 33, 4, 32, zeros=True, packed=False)
    two = [{"b": b, "m": m} for b, m in ((0, 3), (1, 1), (3, 17))]
    found["no bias"] = few_bits(100, 50, 4, 32, bias=False)
    found["two row axes"] = few_bits(100, 50, 4, 32, rows=(B, M), sizes=two)
    found["one row"] = few_bits(100, 50, 8, rows=(1, 1), sizes=[{}])
    found["no rows"] = few_bits(100, 50, 4, 32, rows=(), sizes=[{}])
    found["norm"] = few_bits(100, 50, 4, 32, norm=True)
    found["norm 8"] = few_bits(100, 50, 8, norm=True)
    for terms, columns in [(1, 1), (65, 50), (600, 48)]:
        found[f"int8 {terms}x{columns}"] = int8(terms, columns)
    found["int8 not packed"] = int8(65, 50, packed=False)
    return found


def tensors_of(case: Case, sizes: dict[str, int]) -> list[Tensor]:
    """Operands whose products are of moderate size."""
    found = case.tensors(sizes)
    scale = next(i for i, x in enumerate(case.inputs) if x.dtype == F32 and i > 1)
    found[scale] *= 1 / (64 * case.inputs[0].shape[-1] ** 0.5)  # type: ignore[operator]
    if case.inputs[0].dtype == I8:
        found[1] = found[1].abs() / 64
    return found


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return build(_cases())


@pytest.mark.parametrize("name", list(_cases()))
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


@pytest.mark.parametrize("name", ["4 bits 100x50 by 32", "8 bits 65x50"])
def test_every_schedule(name: str) -> None:
    case = _cases()[name]
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
