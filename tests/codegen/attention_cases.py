"""Attention: masks, grouped heads, head sizes, layouts, few and many queries."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from smelt.ir import ops
from smelt.ir.types import Dim, symbol

from .cases import Case, operand

B, S, K = symbol("b"), symbol("s"), symbol("k")
SIZES = [
    {"b": b, "s": s, "k": k}
    for b, s, k in [(1, 1, 1), (2, 17, 49), (1, 64, 64), (1, 40, 130), (2, 3, 100), (1, 0, 5), (1, 5, 0), (0, 5, 5)]
]

RTOL = {torch.float32: 2e-5, torch.float64: 1e-11, torch.bfloat16: 2e-2, torch.float16: 4e-3}


def case(
    heads: int = 2,
    groups: int = 1,
    head: int = 16,
    width: int | None = None,
    dtype: torch.dtype = torch.float32,
    mask: Sequence[Dim] | None = None,
    mask_dtype: torch.dtype = torch.bool,
    causal: bool = False,
    softcap: float = 0.0,
    **rest: object,
) -> Case:
    width = head if width is None else width
    inputs = [operand(i, (B, h, n, d), dtype) for i, (h, n, d) in enumerate(_operands(heads, groups, head, width))]
    if mask is not None:
        inputs.append(operand(3, mask, mask_dtype))
    out = ops.attention(*inputs, causal=causal, scale=head**-0.5, softcap=softcap)
    return Case(inputs, [out], **{"sizes": SIZES, "rtol": RTOL[dtype], **rest})  # type: ignore[arg-type]


def _operands(heads: int, groups: int, head: int, width: int) -> list[tuple[int, Dim, int]]:
    return [(heads, S, head), (heads // groups, K, head), (heads // groups, K, width)]


def cases() -> dict[str, Case]:
    by_token = (0, 2, 1, 3)  # memory as [B, S, H, D]
    found = {
        "plain": case(),
        "head of 64, causal": case(head=64, causal=True),
        "odd heads": case(head=17, width=5),
        "three vectors": case(head=80, width=48),
        "head of 256": case(head=256),
        "bool mask": case(mask=(B, 1, S, K)),
        "padding mask": case(mask=(B, 1, 1, K)),
        "float mask, causal": case(mask=(B, 1, S, K), mask_dtype=torch.float32, causal=True),
        "mask of heads": case(mask=(1, 2, S, K), mask_dtype=torch.float32),
        "groups": case(heads=6, groups=3, causal=True),
        "one head of keys": case(heads=4, groups=4, mask=(B, 1, 1, K)),
        "capped scores": case(head=64, softcap=0.7, causal=True),
        "capped scores with a mask": case(heads=4, groups=2, softcap=2.0, mask=(B, 1, S, K), mask_dtype=torch.float32),
        "by token": case(head=32, operands=dict.fromkeys(range(3), by_token), layouts=[by_token]),
        "rows a small page apart": case(
            heads=16, head=64, operands=dict.fromkeys(range(3), by_token), layouts=[by_token], sizes=SIZES[1:4]
        ),
        "keys by head": case(operands={1: (0, 1, 3, 2), 2: (0, 1, 3, 2)}),
    }
    for dtype in RTOL:
        found[str(dtype)] = case(head=20, dtype=dtype, mask=(B, 1, S, K), causal=True)
    return found
