"""Values that come from outside or from attributes alone: inputs, weights, constants, ranges."""

from __future__ import annotations

from typing import Any

import sympy
import torch

from ..node import REQUIRED, Node, Trait
from ..types import Dim, Shape, TensorType
from .base import declare, is_number, number, require, require_dtype


def _declared(*, shape: Shape, dtype: torch.dtype, **_: Any) -> TensorType:
    return TensorType(shape, dtype)


def _named(*, name: str, shape: Shape, dtype: torch.dtype) -> TensorType:
    require(isinstance(name, str), f"a name must be a string, not {name!r}")
    return TensorType(shape, dtype)


def _bound_outside(**_: Any) -> torch.Tensor:
    raise LookupError("inputs and weights are bound by the interpreter, not computed")


input = declare(
    "input",
    infer=_named,
    evaluate=_bound_outside,
    arity=(0, 0),
    attrs={"name": REQUIRED, "shape": REQUIRED, "dtype": REQUIRED},
    traits={Trait.SOURCE},
)
weight = declare(
    "weight",
    infer=_named,
    evaluate=_bound_outside,
    arity=(0, 0),
    attrs={"name": REQUIRED, "shape": REQUIRED, "dtype": REQUIRED},
    traits={Trait.SOURCE},
)


def _full(*, shape: Shape, value: Any, dtype: torch.dtype) -> torch.Tensor:
    # through float64, because torch.full refuses what a half type rounds to infinity
    wide = torch.float64 if dtype.is_floating_point else dtype
    return torch.full(shape, value, dtype=wide).to(dtype)


# value may be a dim: then the tensor holds a size. In normal form it is a bool, int or float as the dtype says
full = declare(
    "full",
    infer=_declared,
    evaluate=_full,
    arity=(0, 0),
    attrs={"shape": REQUIRED, "value": REQUIRED, "dtype": REQUIRED},
    traits={Trait.CREATION},
    normalise=lambda *, shape, value, dtype: {"value": number(value, dtype)},
)


def _arange_type(*, size: Dim, start: Any, step: Any, dtype: torch.dtype) -> TensorType:
    result = TensorType((size,), dtype)
    require_dtype("arange", result, is_number)
    return result


def _arange_numbers(*, size: Dim, start: Any, step: Any, dtype: torch.dtype) -> dict[str, Any]:
    # whole numbers stay integers whatever the dtype: 0 and 1 are the defaults
    return {"start": _whole(number(start, dtype)), "step": _whole(number(step, dtype))}


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _arange(*, size: int, start: Any, step: Any, dtype: torch.dtype) -> torch.Tensor:
    # computed in a wide type and cast once, as PyTorch does
    wide = torch.float64 if dtype.is_floating_point else torch.int64
    return torch.arange(size, dtype=wide).mul_(step).add_(start).to(dtype)


# arange(n, a, s)[i] = a + s * i
arange = declare(
    "arange",
    infer=_arange_type,
    evaluate=_arange,
    arity=(0, 0),
    attrs={"size": REQUIRED, "start": 0, "step": 1, "dtype": torch.int64},
    traits={Trait.CREATION},
    normalise=_arange_numbers,
)


def scalar(value: float | int | bool | sympy.Expr, dtype: torch.dtype) -> Node:
    """A 0-d constant."""
    return full(shape=(), value=value, dtype=dtype)


def scalar_like(value: float | int | bool | sympy.Expr, like: Node) -> Node:
    """A 0-d constant of another node's dtype."""
    return scalar(value, like.dtype)
