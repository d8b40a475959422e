"""Recurrent layers: all kinds, directions and dtypes, sequences of any length."""

from __future__ import annotations

from dataclasses import replace

import torch

from smelt.codegen.schedule import RecurrenceSchedule
from smelt.ir import ops
from smelt.ir.ops.recurrent import GATES
from smelt.ir.types import symbol

from .cases import Case, operand

T, B = symbol("t"), symbol("b")
SIZES = [{"t": t, "b": b} for t, b in [(0, 3), (1, 1), (5, 0), (17, 3), (9, 9), (3, 17)]]
RTOL = {torch.float32: 2e-5, torch.float64: 1e-11, torch.bfloat16: 4e-2, torch.float16: 1e-2}

SHARED = RecurrenceSchedule(rows=4, tile_n=16, vector=16, tasks=2, shared=True)


def case(
    kind: str,
    hidden: int,
    dtype: torch.dtype = torch.float32,
    reverse: bool = False,
    schedule: RecurrenceSchedule | None = None,
) -> Case:
    wide = GATES[kind] * hidden
    inputs = [operand(0, (T, B, wide), dtype), operand(1, (wide, hidden), dtype), operand(2, (wide,), dtype)]
    inputs += [operand(3 + i, (B, hidden), dtype) for i in range(2 if kind == "lstm" else 1)]
    node = ops.recurrence(*inputs, kind=kind, reverse=reverse)
    outputs = list(ops.results(node))
    return Case(inputs, outputs, SIZES, weights=frozenset([1]), rtol=RTOL[dtype], schedule=schedule)


def cases() -> dict[str, Case]:
    found = {f"{kind} {hidden}": case(kind, hidden) for kind in GATES for hidden in (1, 17, 48)}
    found |= {f"{kind} reverse": case(kind, 20, reverse=True) for kind in GATES}
    found |= {f"{kind} {dtype}": case(kind, 24, dtype) for kind in ("lstm", "gru") for dtype in RTOL}
    found |= {f"{rows} rows": case("lstm", 33, schedule=RecurrenceSchedule(rows=rows, tile_n=32)) for rows in (1, 2, 8)}
    found |= {f"{kind} shared": case(kind, 33, schedule=SHARED) for kind in GATES}
    found |= {f"{kind} not shared": case(kind, 33, schedule=replace(SHARED, shared=False)) for kind in GATES}
    found["shared reverse"] = case("lstm", 32, torch.bfloat16, True, SHARED)
    found["narrow"] = case("gru", 21, schedule=RecurrenceSchedule(rows=3, tile_n=8, vector=4))
    return found
