"""Activations: composite operators on elements. Half types are computed in float32 and rounded once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ..node import Node, OpDef
from ..types import TensorType
from .base import is_float, is_number, number, pointwise, require
from .pointwise import add, div, erf, exp, gt, log1p, maximum, minimum, mul, sigmoid, tanh, where
from .rounding import evaluated_in_float32, in_float32
from .source import scalar_like


def _activation(
    name: str, evaluate: Callable[..., Any], define: Callable[..., Node], flops: int, **attrs: Any
) -> OpDef:
    def normalise(x: TensorType, **given: Any) -> dict[str, Any]:
        require(
            given.get("approximate", "none") in ("none", "tanh"), f"{name}: there is no {given.get('approximate')!r}"
        )
        return {key: float(value) for key, value in given.items() if isinstance(value, int)}

    decompose = in_float32(define)
    return pointwise(name, evaluate, flops=flops, of=is_float, decompose=decompose, attrs=attrs, normalise=normalise)


relu = pointwise("relu", torch.relu, of=is_number, decompose=lambda x: maximum(x, scalar_like(0, x)))
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


gelu = _activation("gelu", F.gelu, _gelu, 20, approximate="none")  # or "tanh"


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


def _clamp_bounds(x: TensorType, *, low: Any, high: Any) -> dict[str, Any]:
    return {name: None if b is None else number(b, x.dtype) for name, b in (("low", low), ("high", high))}


# min(max(x, low), high): high where they cross
clamp = pointwise(
    "clamp",
    _clamp_value,
    flops=2,
    of=is_number,
    decompose=_clamp,
    attrs={"low": None, "high": None},
    normalise=_clamp_bounds,
)


# silu(g) * u
swiglu = pointwise(
    "swiglu",
    evaluated_in_float32(lambda gate, up: F.silu(gate) * up),
    2,
    flops=14,
    of=is_float,
    decompose=in_float32(lambda gate, up: mul(mul(gate, sigmoid(gate)), up)),
)
