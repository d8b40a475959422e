"""Composite operators: known by name to rewrites and code generation, defined by their decomposition.

Half types are computed in float32 and rounded once at the end, as PyTorch's own kernels do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ..node import REQUIRED, Node, OpDef, Trait
from ..types import Dim, TensorType, canonical_dim, product
from .base import axes, axis, declare, elements, is_float, per_element, pointwise, require, same_dtype
from .contraction import matmul
from .indexing import index
from .pointwise import (
    add,
    cast,
    div,
    erf,
    exp,
    gt,
    log,
    log1p,
    maximum,
    minimum,
    mul,
    neg,
    rsqrt,
    sigmoid,
    sub,
    tanh,
    where,
)
from .reduction import amax, reduced_shape
from .reduction import sum as sum_
from .source import scalar_like
from .view import concat, permute, reshape, slice_

HALF = (torch.float16, torch.bfloat16)


def accumulated_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over elements of ``dtype`` are kept."""
    return torch.float32 if dtype in HALF else dtype


def in_float32(define: Callable[..., Node]) -> Callable[..., Node]:
    """Compute a definition in float32 where the operands are of a half type, and round its result once."""

    def wrapped(*inputs: Node, **attrs: Any) -> Node:
        dtype = inputs[0].dtype
        if dtype not in HALF:
            return define(*inputs, **attrs)
        wide = [cast(x, dtype=torch.float32) if x.dtype == dtype else x for x in inputs]
        return cast(define(*wide, **attrs), dtype=dtype)

    return wrapped


# --- activations ------------------------------------------------------------------------------------------------------


def _activation(
    name: str, evaluate: Callable[..., Any], define: Callable[..., Node], flops: int, **attrs: Any
) -> OpDef:
    return pointwise(name, evaluate, flops=flops, floats=True, decompose=in_float32(define), attrs=attrs)


relu = pointwise("relu", torch.relu, decompose=lambda x: maximum(x, scalar_like(0, x)))
silu = _activation("silu", F.silu, lambda x: mul(x, sigmoid(x)), 13)


def _gelu(x: Node, *, approximate: str) -> Node:
    half = mul(scalar_like(0.5, x), x)
    if approximate == "none":
        # 0.5 x (1 + erf(x / sqrt 2))
        return mul(half, add(scalar_like(1.0, x), erf(mul(x, scalar_like(math.sqrt(0.5), x)))))
    # 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
    cubed = mul(mul(x, x), x)
    inner = mul(scalar_like(math.sqrt(2 / math.pi), x), add(x, mul(scalar_like(0.044715, x), cubed)))
    return mul(half, add(scalar_like(1.0, x), tanh(inner)))


gelu = _activation("gelu", F.gelu, _gelu, 20, approximate="none")


def _softplus(x: Node, *, beta: float, threshold: float) -> Node:
    scaled = mul(x, scalar_like(beta, x))
    soft = div(log1p(exp(scaled)), scalar_like(beta, x))
    return where(gt(scaled, scalar_like(threshold, x)), x, soft)


softplus = _activation("softplus", F.softplus, _softplus, 25, beta=1.0, threshold=20.0)


def _leaky_relu(x: Node, *, slope: float) -> Node:
    return where(gt(x, scalar_like(0.0, x)), x, mul(x, scalar_like(slope, x)))


leaky_relu = _activation("leaky_relu", lambda x, *, slope: F.leaky_relu(x, slope), _leaky_relu, 2, slope=0.01)


def _clamp(x: Node, *, low: Any, high: Any) -> Node:
    if low is not None:
        x = maximum(x, scalar_like(low, x))
    return x if high is None else minimum(x, scalar_like(high, x))


def _clamp_value(x: torch.Tensor, *, low: Any, high: Any) -> torch.Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


clamp = pointwise("clamp", _clamp_value, flops=2, decompose=_clamp, attrs={"low": None, "high": None})


# silu(g) * u
swiglu = pointwise(
    "swiglu",
    lambda gate, up: F.silu(gate) * up,
    2,
    flops=14,
    floats=True,
    decompose=in_float32(lambda gate, up: mul(mul(gate, sigmoid(gate)), up)),
)

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
    evaluate=lambda x, *, dims, keepdim: x.mean(dims, keepdim),
    attrs={"dims": None, "keepdim": False},
    traits={Trait.COMPOSITE, Trait.REDUCTION},
    flops=lambda node: product(node.inputs[0].shape),
    decompose=in_float32(_mean),
    normalise=_normal_dims,
)


def _var(x: Node, *, dims: tuple[int, ...], keepdim: bool, correction: int) -> Node:
    centred = sub(x, _mean(x, dims=dims, keepdim=True))
    count = canonical_dim(_count(x, dims) - correction)
    # torch divides by max(0, n - correction): 0 / 0 is NaN there too
    return div(sum_(mul(centred, centred), dims=dims, keepdim=keepdim), scalar_like(count, x))


var = declare(
    "var",
    infer=_reduced,
    evaluate=lambda x, *, dims, keepdim, correction: x.var(dims, keepdim=keepdim, correction=correction),
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


def _layer_norm_value(x: torch.Tensor, *affine: torch.Tensor, eps: float, axes: int) -> torch.Tensor:
    return F.layer_norm(x, x.shape[x.ndim - axes :], *affine, eps=eps)


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


def _rope_type(x: TensorType, cos: TensorType, sin: TensorType) -> TensorType:
    from_type: TensorType = mul.infer(x, cos)
    require(from_type.shape == x.shape and cos == sin, f"rope: {cos} and {sin} do not fit {x}")
    return x


def _rope(x: Node, cos: Node, sin: Node) -> Node:
    last = x.tensor_type.rank - 1
    size = x.shape[last]
    half = size // 2
    low, high = slice_(x, dim=last, start=0, stop=half), slice_(x, dim=last, start=half, stop=size)
    return add(mul(x, cos), mul(concat(neg(high), low, dim=last), sin))


def _rope_value(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


# rope(x, cos, sin) = x cos + rotate_half(x) sin, the halves paired (Hugging Face's order)
rope = declare(
    "rope",
    infer=_rope_type,
    evaluate=_rope_value,
    arity=(3, 3),
    traits={Trait.COMPOSITE, Trait.POINTWISE},
    flops=per_element(4),
    decompose=_rope,
)
