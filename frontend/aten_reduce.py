"""Lowerings of ATen's reductions, norms and running sums."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..ir import ops
from ..ir.node import Node
from ..ir.types import product
from .table import Call, NotLowered, cast, dims_of, full, in_dtype, lowers, reshape, truth

Reduce = Callable[..., Node]


def _arguments(dim: Any = None, keepdim: bool = False, **_: Any) -> tuple[Any, bool]:
    return dim, keepdim


def _along(x: Node, args: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    dim, keepdim = _arguments(*args, **named)
    return {"dims": dims_of(dim, x.tensor_type.rank), "keepdim": keepdim}


@lowers("sum.default", "sum.dim_IntList", "nansum.default")
def _sum(call: Call, x: Node, *args: Any, **named: Any) -> Node:
    value = cast(x, call.dtype)
    if call.name == "aten.nansum.default" and ops.is_float(value.dtype):
        value = ops.where(ops.isnan(value), full((), 0, value.dtype), value)
    return ops.sum(value, **_along(x, args, named))


@lowers("mean.default", "mean.dim")
def _mean(call: Call, x: Node, *args: Any, **named: Any) -> Node:
    return ops.mean(cast(x, call.dtype), **_along(x, args, named))


@lowers("amax.default", "max.default", "amin.default", "min.default")
def _extreme(call: Call, x: Node, *args: Any, **named: Any) -> Node:
    op = ops.amax if "max" in call.name else ops.amin
    along = _along(x, args, named)
    return cast(op(_ordered(x), **along), x.dtype) if along["dims"] else x


def _ordered(x: Node) -> Node:
    """Elements that can be compared: bool as 0 and 1."""
    return cast(x, torch.uint8) if x.dtype == torch.bool else x


@lowers("max.dim", "min.dim")
def _extreme_with_index(call: Call, x: Node, dim: int, keepdim: bool = False) -> tuple[Node, Node]:
    if not x.tensor_type.rank:
        return x, full((), 0, torch.int64)
    op, where = (ops.amax, ops.argmax) if "max" in call.name else (ops.amin, ops.argmin)
    value = _ordered(x)
    return cast(op(value, dims=(dim,), keepdim=keepdim), x.dtype), where(value, dim=dim, keepdim=keepdim)


@lowers("aminmax.default")
def _both_extremes(call: Call, x: Node, *, dim: int | None = None, keepdim: bool = False) -> tuple[Node, Node]:
    along: dict[str, Any] = {"dims": dims_of(dim, x.tensor_type.rank), "keepdim": keepdim}
    value = _ordered(x)
    return cast(ops.amin(value, **along), x.dtype), cast(ops.amax(value, **along), x.dtype)


@lowers("argmax.default", "argmin.default")
def _position(call: Call, x: Node, dim: int | None = None, keepdim: bool = False) -> Node:
    op = ops.argmax if "max" in call.name else ops.argmin
    if not x.tensor_type.rank:
        return full((), 0, torch.int64)
    if dim is None:
        return reshape(op(reshape(x, (x.tensor_type.numel,)), dim=0), call.shape)
    return op(x, dim=dim, keepdim=keepdim)


@lowers("any.default", "any.dim", "any.dims", "all.default", "all.dim", "all.dims")
def _logical(call: Call, x: Node, *args: Any, **named: Any) -> Node:
    op = ops.any if "any" in call.name else ops.all
    along = _along(x, args, named)
    return cast(op(truth(x), **along) if along["dims"] else truth(x), call.dtype)


@lowers("count_nonzero.default", "count_nonzero.dim_IntList")
def _count_nonzero(call: Call, x: Node, dim: Any = None) -> Node:
    return ops.sum(cast(truth(x), torch.int64), dims=dims_of(dim, x.tensor_type.rank))


@lowers("prod.default", "prod.dim_int")
def _prod(call: Call, x: Node, *args: Any, **named: Any) -> Node:
    return ops.prod(cast(x, call.dtype), **_along(x, args, named))


# --- variance ---------------------------------------------------------------------------------------------------------


def _variance(x: Node, dim: Any, correction: float | None, keepdim: bool) -> Node:
    dims = dims_of(dim, x.tensor_type.rank)
    by = 1 if correction is None else correction
    if not isinstance(by, bool | int) and by != int(by):
        raise NotLowered("a variance with a fractional correction")
    count = product(x.shape[d] for d in dims)
    # PyTorch divides by no less than 0
    least = min(int(by), count) if isinstance(count, int) else int(by)
    return ops.var(x, dims=dims, keepdim=keepdim, correction=least)


def _moments(
    call: Call, x: Node, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False,
    correction: float | None = None,
) -> Node:  # fmt: skip
    # the overloads without a dim take `unbiased` in its place
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if unbiased is not None and correction is None:
        correction = int(unbiased)
    return _variance(x, dim, correction, keepdim)


def _root(variance: Node) -> Node:
    return in_dtype(variance, variance.dtype, ops.sqrt)


@lowers("var.default", "var.dim", "var.correction")
def _var(call: Call, x: Node, *args: Any, **named: Any) -> Node:
    return _moments(call, x, *args, **named)


@lowers("std.default", "std.dim", "std.correction")
def _std(call: Call, x: Node, *args: Any, **named: Any) -> Node:
    wide = cast(x, torch.float32) if x.dtype in ops.HALF else x
    return cast(_root(_moments(call, wide, *args, **named)), x.dtype)


@lowers("var_mean.default", "var_mean.dim", "var_mean.correction")
@lowers("std_mean.default", "std_mean.dim", "std_mean.correction")
def _with_mean(call: Call, x: Node, *args: Any, **named: Any) -> tuple[Node, Node]:
    spread = (_var if "var" in call.name else _std)(call, x, *args, **named)
    dim = None if args and isinstance(args[0], bool) else (args[0] if args else named.get("dim"))
    keepdim = named.get("keepdim", args[2] if len(args) > 2 else False)
    return spread, ops.mean(x, dims=dims_of(dim, x.tensor_type.rank), keepdim=keepdim)


# --- norms ------------------------------------------------------------------------------------------------------------


@lowers("norm.Scalar", "norm.ScalarOpt_dim", "norm.ScalarOpt_dtype", "norm.ScalarOpt_dim_dtype")
def _norm(call: Call, x: Node, p: float | None = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> Node:
    return _vector_norm(call, x, 2.0 if p is None else p, dim, keepdim)


@lowers("linalg_vector_norm.default")
def _vector_norm(
    call: Call, x: Node, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Node:
    along: dict[str, Any] = {"dims": dims_of(dim, x.tensor_type.rank), "keepdim": keepdim}

    def define(v: Node) -> Node:
        a = ops.abs(v)
        if math.isinf(ord):
            return (ops.amax if ord > 0 else ops.amin)(a, **along)
        if ord == 0:
            return ops.sum(cast(truth(v), v.dtype), **along)
        if ord == 1:
            return ops.sum(a, **along)
        if ord == 2:
            return ops.sqrt(ops.sum(ops.mul(v, v), **along))
        powers = ops.pow(a, ops.scalar_like(float(ord), v))
        return ops.pow(ops.sum(powers, **along), ops.scalar_like(1 / ord, v))

    return in_dtype(x, call.dtype, define)


@lowers("logsumexp.default", "special_logsumexp.default")
def _logsumexp(call: Call, x: Node, dim: Any, keepdim: bool = False) -> Node:
    dims = dims_of(dim, x.tensor_type.rank)

    def define(v: Node) -> Node:
        top = ops.amax(v, dims=dims, keepdim=True)
        infinite = ops.eq(ops.abs(top), ops.scalar_like(math.inf, v))
        base = ops.where(infinite, ops.scalar_like(0.0, v), top)
        total = ops.log(ops.sum(ops.exp(ops.sub(v, base)), dims=dims, keepdim=True))
        return reshape(ops.add(total, base), call.shape)

    return in_dtype(x, call.dtype, define)


@lowers("cumsum.default")
def _cumsum(call: Call, x: Node, dim: int, *, dtype: Any = None) -> Node:
    value = cast(x, call.dtype)
    return ops.cumsum(value, dim=dim) if x.tensor_type.rank else value


# --- softmax ----------------------------------------------------------------------------------------------------------


@lowers("softmax.int", "_softmax.default", "special_softmax.default")
def _softmax(call: Call, x: Node, dim: int, *_: Any, **__: Any) -> Node:
    value = cast(x, call.dtype)
    return ops.softmax(value, dim=dim) if x.tensor_type.rank else full((), 1, call.dtype)


@lowers("log_softmax.int", "_log_softmax.default", "special_log_softmax.default")
def _log_softmax(call: Call, x: Node, dim: int, *_: Any, **__: Any) -> Node:
    value = cast(x, call.dtype)
    return ops.log_softmax(value, dim=dim) if x.tensor_type.rank else full((), 0, call.dtype)


@lowers("_safe_softmax.default")
def _safe_softmax(call: Call, x: Node, dim: int, dtype: Any = None) -> Node:
    rank = x.tensor_type.rank
    if dim % rank != rank - 1:
        raise NotLowered("a safe softmax along another axis than the last")
    return in_dtype(x, call.dtype, ops.safe_softmax)
