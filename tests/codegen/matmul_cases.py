"""Products with weights and of activations, on awkward sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from smelt.ir import ops
from smelt.ir.node import Node
from smelt.ir.types import Dim, symbol

from .cases import Case, operand

M, N, K, B = symbol("m"), symbol("n"), symbol("k"), symbol("b")
ROWS = [{"m": m} for m in (0, 1, 2, 4, 5, 7, 8, 9, 17, 49, 100, 203)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALF_RTOL = {torch.bfloat16: 5e-2, torch.float16: 5e-3}


def linear_case(
    rows: tuple[Dim, ...],
    terms: int,
    columns: int,
    dtype: torch.dtype = torch.float32,
    after: Callable[[Node], Node] = lambda x: x,
    **rest: object,
) -> Case:
    x, w, b = operand(0, (*rows, terms), dtype), operand(1, (columns, terms), dtype), operand(2, (columns,), dtype)
    rtol = HALF_RTOL.get(dtype, 1e-4 if dtype == torch.float32 else 1e-11)
    given = {"sizes": ROWS, "weights": frozenset([1]), "rtol": rtol, **rest}
    return Case([x, w, b], [after(ops.linear(x, w, b))], **given)  # type: ignore[arg-type]


def linears() -> dict[str, Case]:
    found = {
        f"{terms}x{columns}": linear_case((M,), terms, columns)
        for terms, columns in [(0, 16), (1, 1), (3, 17), (64, 2), (17, 49), (768, 48), (48, 100), (600, 200), (5, 1000)]
    }
    for dtype in DTYPES:
        found[f"relu {dtype}"] = linear_case((M,), 65, 50, dtype, ops.relu)
    for dtype in (torch.float32, torch.bfloat16):  # weights that no cache is sure to hold
        found[f"few rows {dtype}"] = linear_case((M,), 700, 331, dtype, sizes=[{"m": m} for m in (1, 2, 5, 8, 16)])
    found["gelu"] = linear_case((M,), 64, 96, after=ops.gelu)
    found["two row axes"] = linear_case((B, M), 40, 33, sizes=[{"b": b, "m": m} for b, m in ((0, 3), (1, 1), (3, 17))])
    found["no rows"] = linear_case((), 40, 33, sizes=[{}])
    found["permuted"] = linear_case((B, M), 24, 40, layouts=[(1, 0, 2)], sizes=[{"b": 3, "m": 7}])
    found["column major"] = linear_case((M,), 24, 40, layouts=[(1, 0)])
    found["transposed operand"] = linear_case((M,), 24, 40, operands={0: (1, 0)})
    found["prologue"] = _prologue()
    found["residual"] = _residual()
    return found


def _residual() -> Case:
    x, w, r = operand(0, (M, 30)), operand(1, (20, 30)), operand(2, (M, 20))
    return Case([x, w, r], [ops.add(ops.linear(x, w), r)], ROWS, weights=frozenset([1]))


def _prologue() -> Case:
    x, w = operand(0, (M, 30)), operand(1, (20, 30))
    return Case([x, w], [ops.linear(ops.sigmoid(x), w)], ROWS, weights=frozenset([1]))


BATCHED = [
    {"b": b, "m": m, "n": n, "k": k}
    for b, m, n, k in [
        (1, 1, 1, 1),
        (2, 17, 33, 5),
        (3, 49, 64, 300),
        (0, 2, 2, 2),
        (2, 0, 3, 4),
        (2, 3, 0, 4),
        (2, 3, 4, 0),
    ]
]


def activations() -> dict[str, Case]:
    found = {}
    for dtype in DTYPES:
        rtol = HALF_RTOL.get(dtype, 1e-4 if dtype == torch.float32 else 1e-11)
        a, b = operand(0, (B, M, K), dtype), operand(1, (B, K, N), dtype)
        found[f"batched {dtype}"] = Case([a, b], [ops.matmul(a, b)], BATCHED, rtol=rtol)
    a, b = operand(0, (B, M, K)), operand(1, (B, N, K))
    right = ops.permute(b, dims=(0, 2, 1))
    found["transposed"] = Case([a, b], [ops.matmul(a, right)], BATCHED, rtol=1e-4)
    found["strided"] = Case([a, b], [ops.matmul(a, right)], BATCHED, operands={0: (1, 0, 2), 1: (2, 1, 0)}, rtol=1e-4)
    flat = operand(1, (K, N))
    for dtype in (torch.int32, torch.int64):
        a, b = operand(0, (B, M, K), dtype), operand(1, (B, K, N), dtype)
        found[f"batched {dtype}"] = Case([a, b], [ops.matmul(a, b)], BATCHED)
    a, b = operand(0, (B, M, K)), operand(1, (B, N, K))
    found["shared right"] = Case([a, flat], [ops.matmul(a, flat)], BATCHED, rtol=1e-4)
    for terms in (40, 400):  # one thread alone up to some rows, and tasks always
        x, y = operand(0, (M, terms)), operand(1, (300, terms))
        product = ops.matmul(x, ops.permute(y, dims=(1, 0)))
        found[f"rows by {terms} terms"] = Case([x, y], [product], [{"m": 3}, {"m": 150}], rtol=1e-4)
    found["epilogue"] = Case([a, b], [ops.tanh(ops.matmul(a, right))], BATCHED, rtol=1e-4)
    return found | _chosen()


def _chosen() -> dict[str, Case]:
    """Products with the matrix that an index chooses for each, whose columns or terms lie side by side."""
    found = {}
    place = operand(2, (B,), torch.int64)
    for dtype in (torch.float32, torch.bfloat16):
        rtol = HALF_RTOL.get(dtype, 1e-4)
        a, along, across = operand(0, (B, M, K), dtype), operand(1, (5, K, N), dtype), operand(1, (5, N, K), dtype)
        rows = ops.permute(ops.index(across, place, dim=0), dims=(0, 2, 1))
        first = ops.index(ops.permute(across, dims=(0, 2, 1)), place, dim=0)
        for name, b, right in (
            ("columns", along, ops.index(along, place, dim=0)),
            ("terms", across, rows),
            ("terms of a view", across, first),
        ):
            found[f"chosen by {name} {dtype}"] = Case(
                [a, b, place], [ops.matmul(a, right)], BATCHED, rtol=rtol, high=5, low=-5
            )
    return found
