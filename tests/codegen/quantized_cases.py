"""Products with weights of few bits, and of rows of int8 and float8."""

from __future__ import annotations

import torch
from torch import Tensor

from smelt.ir import ops
from smelt.ir.ops.quantize import groups_of, stored_dtype, stored_shape
from smelt.ir.types import symbol

from .cases import Case, operand

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
    float8: bool = False,
    sizes: object = ROWS,
) -> Case:
    """A product of ``rows`` with a weight [columns, terms] of few bits; ``group=None`` is one scale for each column."""
    group = group or terms + -terms % 8
    count = groups_of(terms, group)
    x = operand(0, (*rows, terms))  # type: ignore[arg-type]
    weight = [
        operand(1, stored_shape(columns, terms, bits), stored_dtype(bits, zeros, float8)),
        operand(2, (columns, count)),
        *([operand(3, (columns, count), U8)] if zeros else []),
    ]
    inputs = [x, *weight, *([operand(len(weight) + 1, (columns,))] if bias else [])]
    left = ops.rms_norm(x) if norm else x
    y = ops.quantized_linear(left, *inputs[1:], bits=bits, group=group, zeros=zeros, float8=float8)
    weights = frozenset(range(1, len(weight) + 1)) if packed else frozenset()
    given = {"low": -127, "high": 128} if not zeros and not float8 else {"low": 0, "high": 256}
    given = given if bits == 8 else {"low": -(2**31), "high": 2**31}
    return Case(inputs, [y], sizes, weights=weights, rtol=1e-4, **given)  # type: ignore[arg-type]


def int8(terms: int, columns: int, *, packed: bool = True, rows: tuple[object, ...] = (M,)) -> Case:
    """A product of int8 rows, one residual after it."""
    x, r = operand(0, (*rows, terms), I8), operand(1, (*rows, 1))  # type: ignore[arg-type]
    q, s, b = operand(2, (columns, terms), I8), operand(3, (columns, 1)), operand(4, (columns,))
    y = ops.relu(ops.int8_linear(x, r, q, s, b))
    weights = frozenset([2, 3]) if packed else frozenset()
    return Case([x, r, q, s, b], [y], ROWS, weights=weights, rtol=1e-4, low=-127, high=128)


def float8_rows(
    terms: int,
    columns: int,
    *,
    packed: bool = True,
    rows: tuple[object, ...] = (M,),
    bias: bool = True,
    dtype: torch.dtype = F32,
    sizes: object = ROWS,
) -> Case:
    """A product of rows of float8, an activation after it; rounded to ``dtype``."""
    x, r = operand(0, (*rows, terms), U8), operand(1, (*rows, 1))  # type: ignore[arg-type]
    q, s, b = operand(2, (columns, terms), U8), operand(3, (columns, 1)), operand(4, (columns,))
    inputs = [x, r, q, s, b] if bias else [x, r, q, s]
    y = ops.float8_linear(*inputs)
    y = ops.relu(y if dtype == F32 else ops.cast(y, dtype=dtype))
    weights = frozenset([2, 3]) if packed else frozenset()
    rtol = 1e-4 if dtype == F32 else None
    return Case(inputs, [y], sizes, weights=weights, rtol=rtol, low=0, high=256)  # type: ignore[arg-type]


def cases() -> dict[str, Case]:
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
    found.update(float8_cases())
    for terms, columns in [(1, 1), (65, 50), (600, 48)]:
        found[f"int8 {terms}x{columns}"] = int8(terms, columns)
    found["int8 not packed"] = int8(65, 50, packed=False)
    for terms, columns in [(1, 1), (2, 3), (65, 50), (600, 48)]:
        found[f"float8 rows {terms}x{columns}"] = float8_rows(terms, columns)
    found["float8 rows not packed"] = float8_rows(65, 50, packed=False)
    found["float8 rows no bias"] = float8_rows(100, 33, bias=False)
    found["float8 rows two axes"] = float8_rows(43, 17, rows=(B, M), sizes=two)
    found["float8 rows one"] = float8_rows(43, 17, rows=(), sizes=[{}])
    return found


def float8_cases() -> dict[str, Case]:
    """Products with weights of float8."""
    return {
        "float8 65x50": few_bits(65, 50, 8, float8=True),
        "float8 100x50 by 32": few_bits(100, 50, 8, 32, float8=True),
        "float8 one number": few_bits(1, 1, 8, float8=True),
        "float8 many terms": few_bits(600, 17, 8, float8=True),
        "float8 one column": few_bits(257, 1, 8, 128, float8=True),
        "float8 and a rest": few_bits(43, 16, 8, 16, float8=True),
        "float8 not packed": few_bits(70, 33, 8, float8=True, packed=False),
        "float8 norm": few_bits(100, 50, 8, norm=True, float8=True),
    }


def tensors_of(case: Case, sizes: dict[str, int]) -> list[Tensor]:
    """Operands whose products are of moderate size."""
    # float8 or whole numbers, a NaN nowhere
    found = [torch.where(x & 127 == 127, 126, x) if x.dtype == U8 else x for x in case.tensors(sizes)]
    scale = next(i for i, x in enumerate(case.inputs) if x.dtype == F32 and i > 1)
    found[scale] *= 1 / (64 * case.inputs[0].shape[-1] ** 0.5)  # type: ignore[operator]
    if case.inputs[0].dtype in (I8, U8):
        found[1] = found[1].abs() / 64
    return found
