"""Primitive operators that combine elements along axes, and the running sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..node import REQUIRED, Node, OpDef, Trait
from ..types import TensorType
from .base import (
    axes,
    axis,
    declare,
    is_bool,
    is_number,
    is_real,
    per_element,
    per_input_element,
    require,
    require_dtype,
)


def reduced_shape(x: TensorType, dims: tuple[int, ...], keepdim: bool) -> tuple[Any, ...]:
    """The shape of ``x`` combined along ``dims``."""
    if keepdim:
        return tuple(1 if i in dims else d for i, d in enumerate(x.shape))
    return tuple(d for i, d in enumerate(x.shape) if i not in dims)


def _normal_dims(x: TensorType, *, dims: Any, keepdim: bool) -> dict[str, Any]:
    return {"dims": axes(dims, x.rank)}


def _reduction(name: str, evaluate: Callable[..., Any], of: Callable[[torch.dtype], bool] = is_real) -> OpDef:
    def infer(x: TensorType, *, dims: tuple[int, ...], keepdim: bool) -> TensorType:
        require_dtype(name, x, of)
        return x.with_shape(reduced_shape(x, dims, keepdim))

    return declare(
        name,
        infer=infer,
        evaluate=evaluate,
        attrs={"dims": None, "keepdim": False},
        traits={Trait.REDUCTION},
        flops=per_input_element(1),
        normalise=_normal_dims,
    )


def _sum(x: torch.Tensor, *, dims: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    return x.sum(dims, keepdim, dtype=x.dtype) if dims else x


def _prod(x: torch.Tensor, *, dims: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    for d in reversed(dims):
        x = x.prod(d, keepdim, dtype=x.dtype)
    return x


def _amax(x: torch.Tensor, *, dims: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    return x.amax(dims, keepdim) if dims else x


def _amin(x: torch.Tensor, *, dims: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    return x.amin(dims, keepdim) if dims else x


def _any(x: torch.Tensor, *, dims: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    return x.any(dims, keepdim) if dims else x


def _all(x: torch.Tensor, *, dims: tuple[int, ...], keepdim: bool) -> torch.Tensor:
    return x.all(dims, keepdim) if dims else x


sum = _reduction("sum", _sum)
prod = _reduction("prod", _prod)
amax = _reduction("amax", _amax)  # NaN if any is NaN
amin = _reduction("amin", _amin)
any = _reduction("any", _any, is_bool)
all = _reduction("all", _all, is_bool)


def _arg(name: str, evaluate: Callable[..., Any]) -> OpDef:
    def infer(x: TensorType, *, dim: int, keepdim: bool) -> TensorType:
        require(x.rank > 0, f"{name}: needs an axis, got {x}")
        require_dtype(name, x, is_number)
        return TensorType(reduced_shape(x, (dim,), keepdim), torch.int64)

    return declare(
        name,
        infer=infer,
        evaluate=lambda x, *, dim, keepdim: evaluate(x, dim, keepdim),
        attrs={"dim": REQUIRED, "keepdim": False},
        traits={Trait.REDUCTION},
        flops=per_input_element(1),
        normalise=lambda x, *, dim, keepdim: {"dim": axis(dim, x.rank)},
    )


argmax = _arg("argmax", torch.argmax)  # the first of equals; NaN counts as largest
argmin = _arg("argmin", torch.argmin)


def _cumsum_type(x: TensorType, *, dim: int) -> TensorType:
    require_dtype("cumsum", x, is_number)
    return x


cumsum = declare(
    "cumsum",
    infer=_cumsum_type,
    evaluate=lambda x, *, dim: x.cumsum(dim, dtype=x.dtype),
    attrs={"dim": REQUIRED},
    traits={Trait.SCAN},
    flops=per_element(1),
    normalise=lambda x, *, dim: {"dim": axis(dim, x.rank)},
)


def reduced_axes(node: Node) -> tuple[int, ...]:
    """The axes that a reduction, a norm or a scan combines along, in rising order."""
    attrs = node.attrs
    if "dims" in attrs:
        return tuple(attrs["dims"])  # type: ignore[arg-type]
    if "dim" in attrs:
        return (int(attrs["dim"]),)  # type: ignore[arg-type]
    rank = node.inputs[0].tensor_type.rank
    return tuple(range(rank - int(attrs.get("axes", 1)), rank))  # type: ignore[arg-type]
