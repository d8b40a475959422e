"""Scaled dot-product attention, one operator for all its variants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..node import REQUIRED, Node, Trait
from ..types import Dim, TensorType, broadcast_shapes, product
from .base import declare, is_float, require, require_dtype, same_dtype
from .contraction import matmul
from .pointwise import add, bit_and, div, eq, exp, le, mul, sub, tanh, where
from .reduction import amax
from .reduction import sum as sum_
from .rounding import in_float32
from .source import arange, scalar, scalar_like
from .view import expand, permute, reshape


def _is_offset(x: TensorType | torch.Tensor) -> bool:
    return x.dtype == torch.int64


def mask_and_offset(node: Node) -> tuple[Node | None, Node | None]:
    """The mask and the offset of an attention, None for what it does not have."""
    rest = node.inputs[3:]
    mask = next((x for x in rest if not _is_offset(x.tensor_type)), None)
    return mask, next((x for x in rest if _is_offset(x.tensor_type)), None)


def _attention_type(
    q: TensorType, k: TensorType, v: TensorType, *rest: TensorType, causal: bool, scale: float, softcap: float
) -> TensorType:
    require(softcap >= 0, f"attention: softcap is {softcap}: it must be positive, or 0 for none")
    mask = [m for m in rest if not _is_offset(m)]
    same_dtype("attention", (q, k, v))
    require_dtype("attention", q, is_float)
    require(q.rank == k.rank == v.rank == 4, f"attention: q, k, v need rank 4 [B, H, S, D], got {q}, {k}, {v}")
    require(k.shape[:3] == v.shape[:3] and q.shape[3] == k.shape[3], f"attention: {q}, {k} and {v} do not fit")
    heads, kv_heads = q.shape[1], k.shape[1]
    grouped = isinstance(heads, int) and isinstance(kv_heads, int) and kv_heads > 0 and heads % kv_heads == 0
    require(q.shape[0] == k.shape[0] and (grouped or heads == kv_heads), f"attention: heads of {q} and {k}")
    scores = (*q.shape[:3], k.shape[2])
    require(len(mask) <= 1 and len(rest) - len(mask) <= 1, "attention: at most one mask and one offset, in this order")
    for o in rest[len(mask) :]:
        require(_is_offset(o), f"attention: the mask {o} stands before the offset")
        require(o.rank == 0 and causal, f"attention: an offset is one number and for causal attention, got {o}")
    for m in mask:
        require(m.dtype in (torch.bool, q.dtype), f"attention: the mask is {m}: it must be bool or {q.dtype}")
        require(broadcast_shapes(scores, m.shape) == scores, f"attention: mask {m} does not fit the scores {scores}")
    return q.with_shape((*q.shape[:3], v.shape[3]))


def _attention_value(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *rest: torch.Tensor, causal: bool, scale: float, softcap: float
) -> torch.Tensor:
    mask, offset = [m for m in rest if not _is_offset(m)], [o for o in rest if _is_offset(o)]
    groups = q.shape[1] // k.shape[1] if k.shape[1] else 1
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if causal and (rest or softcap):
        queries, keys = (torch.arange(x.shape[2], device=q.device) for x in (q, k))
        allowed = keys <= queries[:, None] + (offset[0] if offset else 0)
        merged = [m & allowed if m.dtype == torch.bool else m.masked_fill(~allowed, float("-inf")) for m in mask]
        mask, causal = merged or [allowed], False
    if softcap:
        return _capped(q, k, v, mask, scale, softcap)
    # PyTorch takes no masks of rank below 2
    bias = [m[(None,) * (4 - m.ndim)] for m in mask]
    return F.scaled_dot_product_attention(q, k, v, bias[0] if bias else None, is_causal=causal, scale=scale)


def _capped(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Sequence[torch.Tensor],
    scale: float,
    softcap: float,
) -> torch.Tensor:
    """Attention with capped scores, which PyTorch has no function for."""
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = softcap * torch.tanh(q.to(wide) @ k.to(wide).transpose(-1, -2) * (scale / softcap))
    for m in mask:
        scores = scores.masked_fill(~m, float("-inf")) if m.dtype == torch.bool else scores + m
    none = (scores == float("-inf")).all(-1, keepdim=True)
    weights = torch.softmax(scores, -1).masked_fill(none, 0.0)
    return (weights @ v.to(wide)).to(q.dtype)


def repeat_heads(x: Node, groups: int) -> Node:
    """Repeat each head of [B, H, S, D] ``groups`` times in place: [B, H * groups, S, D]."""
    if groups == 1:
        return x
    b, h, s, d = x.shape
    wide = expand(reshape(x, shape=(b, h, 1, s, d)), shape=(b, h, groups, s, d))
    return reshape(wide, shape=(b, h * groups, s, d))


def causal_mask(queries: Dim, keys: Dim, offset: Node | None = None) -> Node:
    """Which keys a query may see, [S, T] bool: key j for query i where j <= i, or j <= i + offset."""
    i = reshape(arange(size=queries), shape=(queries, 1))
    i = i if offset is None else add(i, offset)
    j = reshape(arange(size=keys), shape=(1, keys))
    return le(j, i)


def safe_softmax(scores: Node) -> Node:
    """Softmax over the last axis that is 0 where every score of a row is -inf, as in PyTorch's attention."""
    last = (scores.tensor_type.rank - 1,)
    low = scalar_like(float("-inf"), scores)
    top = amax(scores, dims=last, keepdim=True)
    none = eq(top, low)
    shifted = exp(sub(scores, where(none, scalar_like(0.0, scores), top)))
    total = sum_(shifted, dims=last, keepdim=True)
    return div(shifted, where(none, scalar_like(1.0, scores), total))


def _attention(q: Node, k: Node, v: Node, *rest: Node, causal: bool, scale: float, softcap: float) -> Node:
    mask = [x for x in rest if not _is_offset(x.tensor_type)]
    offset = next((x for x in rest if _is_offset(x.tensor_type)), None)
    heads, kv_heads = q.shape[1], k.shape[1]
    groups = int(heads) // int(kv_heads) if heads != kv_heads else 1
    k, v = repeat_heads(k, groups), repeat_heads(v, groups)
    scores = mul(matmul(q, permute(k, dims=(0, 1, 3, 2))), scalar_like(scale, q))
    if softcap:
        scores = mul(tanh(div(scores, scalar_like(softcap, q))), scalar_like(softcap, q))
    allowed = [causal_mask(q.shape[2], k.shape[2], offset)] if causal else []
    for m in mask:
        if m.dtype == torch.bool:
            allowed.append(m)
        else:
            scores = add(scores, m)
    if allowed:
        both = allowed[0] if len(allowed) == 1 else bit_and(*allowed)
        scores = where(both, scores, scalar(float("-inf"), scores.dtype))
    return matmul(safe_softmax(scores), v)


def _attention_flops(node: Node) -> Dim:
    q, k, v = node.inputs[:3]
    return 2 * product((*q.shape[:3], k.shape[2])) * (q.shape[3] + v.shape[3] + 7)


# attention(q [B, H, S, D], k [B, G, T, D], v [B, G, T, E] [, mask] [, offset]) -> [B, H, S, E]:
# softmax(scale q k^T + mask) v. G divides H. A bool mask says which keys may be seen, a float one is added; it
# broadcasts to [B, H, S, T]. With causal, query i sees keys up to i, or up to i + offset where that is given, one i64:
# so queries at the end of a cache see what was written. A query that sees no key gets 0. With softcap c > 0 a score x
# becomes c tanh(x / c) before it is masked (Gemma Team, "Gemma 2", 2024).
attention = declare(
    "attention",
    infer=_attention_type,
    evaluate=_attention_value,
    arity=(3, 5),
    attrs={"causal": False, "scale": REQUIRED, "softcap": 0.0},
    traits={Trait.COMPOSITE, Trait.ATTENTION},
    flops=_attention_flops,
    decompose=in_float32(_attention),
)

__all__: list[Any] = ["attention", "causal_mask", "mask_and_offset", "repeat_heads", "safe_softmax"]
