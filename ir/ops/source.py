"""Values that come from outside or from attributes alone: inputs, weights, constants, ranges."""

from __future__ import annotations

from typing import Any

import sympy
import torch

from ..node import REQUIRED, Node, Trait
from ..types import Dim, Shape, TensorType
from .base import declare, require


def _declared(*, shape: Shape, dtype: torch.dtype, **_: Any) -> TensorType:
    return TensorType(tuple(shape), dtype)


def _bound_outside(**_: Any) -> torch.Tensor:
    raise LookupError("inputs and weights are bound by the interpreter, not computed")


input = declare(
    "input",
    infer=_declared,
    evaluate=_bound_outside,
    arity=(0, 0),
    attrs={"name": REQUIRED, "shape": REQUIRED, "dtype": REQUIRED},
    traits={Trait.SOURCE},
)
weight = declare(
    "weight",
    infer=_declared,
    evaluate=_bound_outside,
    arity=(0, 0),
    attrs={"name": REQUIRED, "shape": REQUIRED, "dtype": REQUIRED},
    traits={Trait.SOURCE},
)


def _full(*, shape: Shape, value: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, value, dtype=dtype)


# value may be a dim: then the tensor holds a size
full = declare(
    "full",
    infer=_declared,
    evaluate=_full,
    arity=(0, 0),
    attrs={"shape": REQUIRED, "value": REQUIRED, "dtype": REQUIRED},
    traits={Trait.CREATION},
)


def _arange_type(*, size: Dim, start: Any, step: Any, dtype: torch.dtype) -> TensorType:
    require(not isinstance(size, int) or size >= 0, f"arange: negative size {size}")
    return TensorType((size,), dtype)


def _arange(*, size: int, start: Any, step: Any, dtype: torch.dtype) -> torch.Tensor:
    # computed in a wide type and cast once, as PyTorch does
    wide = torch.float64 if dtype.is_floating_point else torch.int64
    return (torch.arange(size, dtype=wide) * step + start).to(dtype)


# arange(n, a, s)[i] = a + s * i
arange = declare(
    "arange",
    infer=_arange_type,
    evaluate=_arange,
    arity=(0, 0),
    attrs={"size": REQUIRED, "start": 0, "step": 1, "dtype": torch.int64},
    traits={Trait.CREATION},
)


def scalar(value: float | int | bool | sympy.Expr, dtype: torch.dtype) -> Node:
    """A 0-d constant."""
    return full(shape=(), value=value, dtype=dtype)


def scalar_like(value: float | int | bool | sympy.Expr, like: Node) -> Node:
    """A 0-d constant of another node's dtype."""
    return scalar(value, like.dtype)
