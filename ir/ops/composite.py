"""Composite operators along rows, products with weights, look-ups: known by name, defined by their decomposition.

Half types are computed in float32 and rounded once at the end.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
import torch.nn.functional as F

from ..node import REQUIRED, Node, Trait
from ..types import Dim, TensorType, broadcast_shapes, canonical_dim, product
from .base import (
    axes,
    axis,
    declare,
    elements,
    is_float,
    is_integer,
    is_number,
    per_element,
    require,
    require_dtype,
    same_dtype,
)
from .contraction import matmul
from .indexing import index
from .pointwise import add, div, exp, log, mul, neg, rsqrt, sub
from .reduction import amax, reduced_shape
from .reduction import sum as sum_
from .rounding import accumulated_dtype, evaluated_in_float32, in_float32
from .source import scalar_like
from .view import concat, permute, reshape, slice_

# --- rows -------------------------------------------------------------------------------------------------------------


def _row_dim(x: TensorType, *, dim: int) -> dict[str, Any]:
    return {"dim": axis(dim, x.rank)}


def _float_row(x: TensorType, *, dim: int) -> TensorType:
    require(is_float(x.dtype), f"a floating-point operand is needed, got {x}")
    return x


def _softmax(x: Node, *, dim: int) -> Node:
    shifted = exp(sub(x, amax(x, dims=(dim,), keepdim=True)))
    return div(shifted, sum_(shifted, dims=(dim,), keepdim=True))


softmax = declare(
    "softmax",
    infer=_float_row,
    evaluate=lambda x, *, dim: torch.softmax(x, dim),
    attrs={"dim": REQUIRED},
    traits={Trait.COMPOSITE, Trait.REDUCTION},
    flops=per_element(14),
    decompose=in_float32(_softmax),
    normalise=_row_dim,
)


def _log_softmax(x: Node, *, dim: int) -> Node:
    shifted = sub(x, amax(x, dims=(dim,), keepdim=True))
    return sub(shifted, log(sum_(exp(shifted), dims=(dim,), keepdim=True)))


log_softmax = declare(
    "log_softmax",
    infer=_float_row,
    evaluate=lambda x, *, dim: torch.log_softmax(x, dim),
    attrs={"dim": REQUIRED},
    traits={Trait.COMPOSITE, Trait.REDUCTION},
    flops=per_element(14),
    decompose=in_float32(_log_softmax),
    normalise=_row_dim,
)


def _reduced(x: TensorType, *, dims: tuple[int, ...], keepdim: bool, **_: Any) -> TensorType:
    require(is_float(x.dtype), f"a floating-point operand is needed, got {x}")
    return x.with_shape(reduced_shape(x, dims, keepdim))


def _normal_dims(x: TensorType, *, dims: Any, **_: Any) -> dict[str, Any]:
    return {"dims": axes(dims, x.rank)}


def _count(x: Node, dims: tuple[int, ...]) -> Dim:
    return product(x.shape[d] for d in dims)


def _mean(x: Node, *, dims: tuple[int, ...], keepdim: bool) -> Node:
    return div(sum_(x, dims=dims, keepdim=keepdim), scalar_like(_count(x, dims), x))


mean = declare(
    "mean",
    infer=_reduced,
    # PyTorch takes no axes for all of them
    evaluate=lambda x, *, dims, keepdim: x.mean(dims, keepdim) if dims else x,
    attrs={"dims": None, "keepdim": False},
    traits={Trait.COMPOSITE, Trait.REDUCTION},
    flops=lambda node: product(node.inputs[0].shape),
    decompose=in_float32(_mean),
    normalise=_normal_dims,
)


def _var(x: Node, *, dims: tuple[int, ...], keepdim: bool, correction: int) -> Node:
    centred = sub(x, _mean(x, dims=dims, keepdim=True))
    # as in PyTorch, never negative: too few elements give NaN or infinity
    count = sympy.Max(0, _count(x, dims) - correction)
    return div(sum_(mul(centred, centred), dims=dims, keepdim=keepdim), scalar_like(canonical_dim(count), x))


def _var_value(x: torch.Tensor, *, dims: tuple[int, ...], keepdim: bool, correction: int) -> torch.Tensor:
    if not dims:
        # of one element: PyTorch takes no axes for all of them
        return x.unsqueeze(-1).var(-1, correction=correction)
    return x.var(dims, keepdim=keepdim, correction=correction)


var = declare(
    "var",
    infer=_reduced,
    evaluate=_var_value,
    attrs={"dims": None, "keepdim": False, "correction": 1},
    traits={Trait.COMPOSITE, Trait.REDUCTION},
    flops=lambda node: 4 * product(node.inputs[0].shape),
    decompose=in_float32(_var),
    normalise=_normal_dims,
)


def _norm_type(x: TensorType, *affine: TensorType, eps: float, axes: int = 1) -> TensorType:
    require(is_float(x.dtype) and 1 <= axes <= x.rank, f"a norm over {axes} axes of {x}")
    for a in affine:
        require(a.shape == x.shape[x.rank - axes :], f"a norm over {axes} axes of {x} with an affine of {a}")
        require(a.dtype in (x.dtype, accumulated_dtype(x.dtype)), f"a norm of {x} with an affine of {a}: insert a cast")
    return x


def _layer_norm(x: Node, *affine: Node, eps: float, axes: int) -> Node:
    rank = x.tensor_type.rank
    dims = tuple(range(rank - axes, rank))
    centred = sub(x, _mean(x, dims=dims, keepdim=True))
    variance = _mean(mul(centred, centred), dims=dims, keepdim=True)
    y = mul(centred, rsqrt(add(variance, scalar_like(eps, x))))
    if affine:
        y = mul(y, affine[0])
    return add(y, affine[1]) if len(affine) > 1 else y


@evaluated_in_float32
def _layer_norm_value(x: torch.Tensor, *affine: torch.Tensor, eps: float, axes: int) -> torch.Tensor:
    return F.layer_norm(x, x.shape[x.ndim - axes :], *affine, eps=eps)  # type: ignore[misc, arg-type]


# layer_norm(x [, weight [, bias]]) over the last axes: (x - mean) / sqrt(var + eps) * weight + bias
layer_norm = declare(
    "layer_norm",
    infer=_norm_type,
    evaluate=_layer_norm_value,
    arity=(1, 3),
    attrs={"eps": 1e-5, "axes": 1},
    traits={Trait.COMPOSITE, Trait.REDUCTION},
    flops=per_element(8),
    decompose=in_float32(_layer_norm),
)


def _rms_norm(x: Node, *affine: Node, eps: float) -> Node:
    variance = _mean(mul(x, x), dims=(x.tensor_type.rank - 1,), keepdim=True)
    y = mul(x, rsqrt(add(variance, scalar_like(eps, x))))
    return mul(y, affine[0]) if affine else y


@evaluated_in_float32
def _rms_norm_value(x: torch.Tensor, *affine: torch.Tensor, eps: float) -> torch.Tensor:
    y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return y * affine[0] if affine else y


# rms_norm(x [, weight]) over the last axis: x / sqrt(mean(x^2) + eps) * weight
rms_norm = declare(
    "rms_norm",
    infer=_norm_type,
    evaluate=_rms_norm_value,
    arity=(1, 2),
    attrs={"eps": 1e-6},
    traits={Trait.COMPOSITE, Trait.REDUCTION},
    flops=per_element(5),
    decompose=in_float32(_rms_norm),
)

# --- products ---------------------------------------------------------------------------------------------------------


def _linear_type(x: TensorType, w: TensorType, *bias: TensorType) -> TensorType:
    require_dtype("linear", x, is_number)
    require(w.rank == 2 and x.rank >= 1, f"linear: weight {w} must be [out, in]")
    require(x.shape[-1] == w.shape[1], f"linear: {x} has not the {w.shape[1]} features of the weight {w}")
    for b in bias:
        require(b.shape == (w.shape[0],), f"linear: bias {b} does not fit the weight {w}")
    return TensorType((*x.shape[:-1], w.shape[0]), same_dtype("linear", (x, w, *bias)))


def _linear(x: Node, w: Node, *bias: Node) -> Node:
    # as one matrix of rows, whatever the rank of x
    rows = reshape(x, shape=(product(x.shape[:-1]), x.shape[-1]))
    y = reshape(matmul(rows, permute(w, dims=(1, 0))), shape=(*x.shape[:-1], w.shape[0]))
    return add(y, bias[0]) if bias else y


# linear(x [..., K], weight [N, K] [, bias [N]]) -> [..., N]
linear = declare(
    "linear",
    infer=_linear_type,
    evaluate=F.linear,
    arity=(2, 3),
    traits={Trait.COMPOSITE, Trait.CONTRACTION},
    flops=lambda node: 2 * elements(node) * node.inputs[0].shape[-1],
    decompose=_linear,
)


def _embedding_type(w: TensorType, ids: TensorType) -> TensorType:
    require(w.rank == 2, f"embedding: the table is {w}, not a matrix")
    require_dtype("embedding by an index", ids, is_integer)
    return TensorType((*ids.shape, w.shape[1]), w.dtype)


def _embedding_value(w: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= w.shape[0]):
        raise IndexError(f"embedding: an index is outside [0, {w.shape[0]})")
    return F.embedding(ids.long(), w)


# embedding(table [V, D], ids [...]) -> [..., D]; ids outside [0, V) raise IndexError
embedding = declare(
    "embedding",
    infer=_embedding_type,
    evaluate=_embedding_value,
    arity=(2, 2),
    traits={Trait.COMPOSITE, Trait.GATHER},
    decompose=lambda w, ids: index(w, ids, dim=0, wrap=False),
)


def _rope_type(x: TensorType, cos: TensorType, sin: TensorType, interleaved: bool) -> TensorType:
    same_dtype("rope", (x, cos, sin))
    require_dtype("rope", x, is_float)
    require(x.rank > 0 and cos == sin, f"rope: {cos} and {sin} do not fit {x}")
    require(broadcast_shapes(x.shape, cos.shape) == x.shape, f"rope: {cos} does not fit {x}")
    require(canonical_dim(x.shape[-1] % 2) == 0, f"rope: {x} has no two halves")
    return x


def _rope(x: Node, cos: Node, sin: Node, interleaved: bool) -> Node:
    turned = _neighbours_turned(x) if interleaved else _halves_turned(x)
    return add(mul(x, cos), mul(turned, sin))


def _halves_turned(x: Node) -> Node:
    last = x.tensor_type.rank - 1
    size = x.shape[last]
    half = size // 2
    low, high = slice_(x, dim=last, start=0, stop=half), slice_(x, dim=last, start=half, stop=size)
    return concat(neg(high), low, dim=last)


def _neighbours_turned(x: Node) -> Node:
    rank, size = x.tensor_type.rank, x.shape[-1]
    pairs = reshape(x, shape=(*x.shape[:-1], size // 2, 2))
    even, odd = (slice_(pairs, dim=rank, start=i, stop=i + 1) for i in range(2))
    return reshape(concat(neg(odd), even, dim=rank), shape=x.shape)


def _rope_value(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    if interleaved:
        return x * cos + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) * sin
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


# rope(x, cos, sin) = x cos + turned(x) sin. Element i is paired with the one half a row away, as in Llama and GPT-NeoX,
# or with its neighbour where interleaved, as in GPT-J; turned(x) is the partner, negated for the first of a pair (Su et
# al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021).
rope = declare(
    "rope",
    infer=_rope_type,
    evaluate=_rope_value,
    arity=(3, 3),
    attrs={"interleaved": False},
    traits={Trait.COMPOSITE},
    flops=per_element(4),
    decompose=_rope,
)
