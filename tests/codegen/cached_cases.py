"""Attention over a cache: positions from an offset, rotated queries and keys, writes to the cache."""

from __future__ import annotations

import torch

from smelt.ir import ops
from smelt.ir.node import Node
from smelt.ir.types import symbol

from .cases import Case, operand

F32, I64 = torch.float32, torch.int64
B, S, K = symbol("b"), symbol("s"), symbol("k")
SIZES = [{"b": b, "s": s, "k": k} for b, s, k in [(1, 1, 1), (2, 17, 49), (1, 40, 130), (2, 3, 100), (1, 0, 5)]]
STEPS = [{"b": b, "k": k} for b, k in [(1, 1), (2, 49), (1, 130), (3, 64)]]


def from_offset(queries: object, sizes: list[dict[str, int]], high: int, mask: bool = False) -> Case:
    heads = [operand(0, (B, 6, queries, 32)), operand(1, (B, 2, K, 32)), operand(2, (B, 2, K, 32))]  # type: ignore[list-item]
    masks = [operand(3, (B, 1, 1, K), torch.bool)] if mask else []
    inputs = [*heads, *masks, operand(4, (), I64)]
    return Case(inputs, [ops.attention(*inputs, causal=True, scale=0.2)], sizes, high=high, low=-3, rtol=2e-5)


def turned(x: Node, first: int) -> tuple[Node, list[Node]]:
    cos, sin = operand(first, (1, 1, 1, 32)), operand(first + 1, (1, 1, 1, 32))
    return ops.rope(x, cos, sin), [cos, sin]


def turned_queries() -> Case:
    q, k, v = operand(0, (B, 6, 1, 32)), operand(1, (B, 2, K, 32)), operand(2, (B, 2, K, 32))
    query, angles = turned(q, 3)
    return Case([q, k, v, *angles], [ops.attention(query, k, v, scale=0.2)], STEPS, rtol=2e-5)


def written_together() -> Case:
    """Keys turned and values as they are, both out of one row, to one place of two caches."""
    keys, values, row = operand(0, (B, 2, 9, 32)), operand(1, (B, 2, 9, 32)), operand(2, (B, 1, 128))
    place = operand(5, (1,), I64)
    key, value = (ops.reshape(ops.slice_(row, dim=2, start=at, stop=at + 64), shape=(B, 2, 1, 32)) for at in (0, 64))
    key, angles = turned(key, 3)
    puts = [ops.index_put(keys, key, place, dim=2), ops.index_put(values, value, place, dim=2)]
    return Case([keys, values, row, *angles, place], puts, [{"b": 1}, {"b": 3}], high=9, low=-9)


def stored(queries: object, sizes: list[dict[str, int]], dtype: torch.dtype = torch.bfloat16, **rest: int) -> Case:
    """Keys and values in half the bytes of the queries, which become floats where they are read."""
    size = {"head": 32, "width": 32} | rest
    caches = [operand(1, (B, 2, K, size["head"]), dtype), operand(2, (B, 2, K, size["width"]), dtype)]
    q = operand(0, (B, 6, queries, size["head"]))  # type: ignore[arg-type]
    offset = operand(3, (), I64)
    wide = (ops.cast(x, dtype=torch.float32) for x in caches)
    out = ops.attention(q, *wide, offset, causal=True, scale=0.2)
    return Case([q, *caches, offset], [out], sizes, high=60, low=-3, rtol=2e-5)


def scaled(queries: object, sizes: list[dict[str, int]], head: int = 32, width: int = 32, mask: bool = False) -> Case:
    """Keys and values in int8, each row with a scale."""
    q = operand(0, (B, 6, queries, head))  # type: ignore[arg-type]
    codes = [operand(i, (B, 2, K, size), torch.int8) for i, size in ((1, head), (2, width))]
    scales, offset = [operand(i, (B, 2, K)) for i in (3, 4)], operand(5, (), I64)
    wide = [ops.cast(x, dtype=torch.float32) for x in codes]
    keys, values = (ops.mul(x, ops.reshape(s, shape=(B, 2, K, 1))) for x, s in zip(wide, scales, strict=True))
    masks = [operand(6, (B, 1, 1, K), torch.bool)] if mask else []
    out = ops.attention(q, keys, values, *masks, offset, causal=True, scale=0.002, softcap=2.0 if mask else 0.0)
    return Case([q, *codes, *scales, offset, *masks], [out], sizes, high=60, low=-60, rtol=2e-4)


CASES = {
    "one query, int8": scaled(1, STEPS),
    "one query, int8, capped": scaled(1, STEPS, mask=True),
    "int8, awkward sizes": scaled(1, STEPS, head=17, width=48),
    "any number of queries, int8": scaled(S, SIZES),
    "one query, half the bytes": stored(1, STEPS),
    "float16, awkward sizes": stored(1, STEPS, torch.float16, head=17, width=40),
    "several queries, half the bytes": stored(4, STEPS),
    "any number of queries, half the bytes": stored(S, SIZES),
    "one query": from_offset(1, STEPS, 60),
    "one query and a mask": from_offset(1, STEPS, 60, mask=True),
    "several queries": from_offset(4, STEPS, 60),
    "any number of queries": from_offset(S, SIZES, 60),
    "turned queries": turned_queries(),
    "two writes": written_together(),
}
