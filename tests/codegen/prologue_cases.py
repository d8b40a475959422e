"""Products that compute their own rows first: norms, softmax, activations, embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from smelt.codegen.machine import Machine
from smelt.codegen.schedule import MatmulSchedule, default_schedule
from smelt.ir import ops
from smelt.ir.node import Node
from smelt.ir.types import Dim, symbol

from .cases import Case, operand
from .regions import I64

M, B = symbol("m"), symbol("b")
ROWS = [{"m": m} for m in (0, 1, 2, 8, 9, 17, 100)]
GRID = [{"b": b, "m": m} for b, m in ((0, 3), (1, 1), (2, 0), (3, 17))]
HALF_RTOL = {torch.float32: 1e-4, torch.float64: 1e-11, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def norm_case(
    terms: int = 48,
    columns: int = 33,
    dtype: torch.dtype = torch.float32,
    rows: Sequence[Dim] = (M,),
    before: Callable[[Node], Node] = lambda x: x,
    after: Callable[[Node], Node] = lambda x: x,
    stored: Callable[[Node, Node], Sequence[Node]] = lambda x, norm: (),
    **rest: object,
) -> Case:
    """linear(layer_norm(before(x))), with what else is ``stored``."""
    x, g, h = operand(0, (*rows, terms), dtype), operand(1, (terms,), dtype), operand(2, (terms,), dtype)
    w, b = operand(3, (columns, terms), dtype), operand(4, (columns,), dtype)
    total = before(x)
    norm = ops.layer_norm(total, g, h)
    outputs = [after(ops.linear(norm, w, b)), *stored(total, norm)]
    given = {"sizes": ROWS, "weights": frozenset([3]), "rtol": HALF_RTOL[dtype], **rest}
    return Case([x, g, h, w, b], outputs, **given)  # type: ignore[arg-type]


def small_steps(case: Case) -> Case:
    """The case with eight rows held at a time."""
    schedule = default_schedule(case.program(), Machine())
    assert isinstance(schedule, MatmulSchedule)
    return replace(case, schedule=replace(schedule, held_rows=8))


def doubled(x: Node) -> Node:
    return ops.add(x, x)


def cases() -> dict[str, Case]:
    found = {str(dtype): norm_case(dtype=dtype, after=ops.relu) for dtype in HALF_RTOL}
    found |= {f"{dtype}, stored": norm_case(dtype=dtype, stored=lambda x, n: [n]) for dtype in HALF_RTOL}
    found |= {
        "odd": norm_case(17, 5),
        "one column": norm_case(19, 1, stored=lambda x, n: [x], before=doubled),
        "square": norm_case(48, 48, stored=lambda x, n: [n]),
        "two row axes": norm_case(rows=(B, M), sizes=GRID, stored=lambda x, n: [x, n], before=doubled),
        "held, two row axes": small_steps(norm_case(rows=(B, M), sizes=GRID)),
        "no rows": norm_case(rows=(), sizes=[{}]),
        "fixed rows": norm_case(rows=(5,), sizes=[{}]),
        "many fixed rows": norm_case(rows=(400,), sizes=[{}]),
        "fixed rows in steps": small_steps(norm_case(rows=(21,), sizes=[{}])),
        "permuted operand": norm_case(rows=(B, M), sizes=GRID, operands={0: (1, 0, 2)}),
        "stored permuted": norm_case(rows=(B, M), sizes=GRID, stored=lambda x, n: [n], layouts=[(0, 1, 2), (1, 0, 2)]),
        "in steps": small_steps(norm_case()),
        "in steps, bfloat16": small_steps(norm_case(dtype=torch.bfloat16)),
        "statistics are stored": norm_case(stored=lambda x, n: [ops.mean(x, dims=(1,))]),
        "more than the rows": norm_case(48, 48, stored=lambda x, n: [ops.tanh(n), ops.add(x, n)], before=doubled),
        "norms side by side": norm_case(48, 48, stored=lambda x, n: [ops.rms_norm(x)], before=doubled),
        "all threads": replace(norm_case(384, 16), sizes=[{"m": 50}]),
        "softmax": _softmax(),
        "swiglu": _swiglu(),
        "embedding": _embedding(),
        "patches": patches(3, 16, 16, 128),
        "patches in steps": small_steps(patches(3, 16, 16, 130)),
        "patches of odd sizes": patches(2, 3, 5, 131),
        "patches of one row": patches(1, 1, 7, 128),
        "heads apart": _heads(),
    }
    return found


def _softmax() -> Case:
    x, w = operand(0, (M, 40)), operand(1, (30, 40))
    return Case([x, w], [ops.linear(ops.softmax(x, dim=1), w)], ROWS, weights=frozenset([1]))


def _swiglu() -> Case:
    """The two halves of one product, gated, before the next."""
    x, w = operand(0, (B, M, 80)), operand(1, (24, 40))
    gate, up = ops.slice_(x, dim=2, start=0, stop=40), ops.slice_(x, dim=2, start=40, stop=80)
    return Case([x, w], [ops.linear(ops.swiglu(gate, up), w)], GRID, weights=frozenset([1]), rtol=1e-4)


def patches(channels: int, height: int, width: int, columns: int) -> Case:
    """Patches of an image, each a row whose terms lie apart in it."""
    down, across = 3, M
    image = operand(0, (B, channels, down * height, across * width))
    w = operand(1, (columns, channels * height * width))
    parts = ops.reshape(image, shape=(B, channels, down, height, across, width))
    rows = ops.permute(parts, dims=(0, 2, 4, 1, 3, 5))
    rows = ops.reshape(rows, shape=(B, down * across, channels * height * width))
    sizes = [{"b": b, "m": m} for b, m in ((0, 3), (1, 1), (2, 5), (1, 40))]
    return Case([image, w], [ops.relu(ops.linear(rows, w))], sizes, weights=frozenset([1]), rtol=1e-4)


def _heads() -> Case:
    """Heads [B, H, M, D] side by side, which nothing copied together before."""
    x, w = operand(0, (B, 5, M, 24)), operand(1, (128, 120))
    rows = ops.reshape(ops.permute(x, dims=(0, 2, 1, 3)), shape=(B, M, 120))
    return Case([x, w], [ops.linear(rows, w)], GRID, weights=frozenset([1]), rtol=1e-4)


def _embedding() -> Case:
    table, ids, g, w = operand(0, (11, 40)), operand(1, (B, M), I64), operand(2, (40,)), operand(3, (24, 40))
    rows = ops.embedding(table, ids)
    outputs = [ops.linear(ops.rms_norm(rows, g), w), rows]
    return Case([table, ids, g, w], outputs, GRID, weights=frozenset([3]), high=11, low=0, rtol=1e-4)
