"""Lowerings of ATen's operators on elements."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ..ir import ops
from ..ir.node import Node
from .table import Call, NotLowered, Scalar, cast, constant, in_dtype, lowers, plain, reshape

Define = Callable[..., Node]


# --- one operand ------------------------------------------------------------------------------------------------------


def _sinh(x: Node) -> Node:
    # by expm1, which keeps small arguments exact
    return ops.mul(ops.sub(ops.expm1(x), ops.expm1(ops.neg(x))), constant(x, 0.5))


def _cosh(x: Node) -> Node:
    return ops.mul(ops.add(ops.exp(x), ops.exp(ops.neg(x))), constant(x, 0.5))


def _from_asin(x: Node) -> tuple[Node, Node]:
    one = constant(x, 1)
    return x, ops.sqrt(ops.mul(ops.sub(one, x), ops.add(one, x)))


def _asinh(x: Node) -> Node:
    # sign(x) log1p(|x| + x^2 / (1 + sqrt(x^2 + 1)))
    a, one = ops.abs(x), constant(x, 1)
    square = ops.mul(a, a)
    inner = ops.add(a, ops.div(square, ops.add(one, ops.sqrt(ops.add(square, one)))))
    return ops.mul(ops.sign(x), ops.log1p(inner))


def _acosh(x: Node) -> Node:
    t = ops.sub(x, constant(x, 1))
    return ops.log1p(ops.add(t, ops.sqrt(ops.mul(t, ops.add(t, constant(x, 2))))))


def _atanh(x: Node) -> Node:
    ratio = ops.div(ops.mul(constant(x, 2), x), ops.sub(constant(x, 1), x))
    return ops.mul(ops.log1p(ratio), constant(x, 0.5))


def _log_sigmoid(x: Node) -> Node:
    return ops.sub(ops.minimum(x, constant(x, 0)), ops.log1p(ops.exp(ops.neg(ops.abs(x)))))


def _hard_sigmoid(x: Node) -> Node:
    return ops.div(ops.clamp(ops.add(x, constant(x, 3)), low=0.0, high=6.0), constant(x, 6))


FLOAT_UNARY: dict[str, Define] = {
    "exp": ops.exp,
    "exp2": ops.exp2,
    "expm1": ops.expm1,
    "log": ops.log,
    "log1p": ops.log1p,
    "log2": ops.log2,
    "sqrt": ops.sqrt,
    "rsqrt": ops.rsqrt,
    "sin": ops.sin,
    "cos": ops.cos,
    "tan": ops.tan,
    "tanh": ops.tanh,
    "sigmoid": ops.sigmoid,
    "erf": ops.erf,
    "reciprocal": ops.reciprocal,
    "special_expit": ops.sigmoid,
    "special_exp2": ops.exp2,
    "special_expm1": ops.expm1,
    "special_log1p": ops.log1p,
    "special_erf": ops.erf,
    "silu": ops.silu,
    "mish": lambda x: ops.mul(x, ops.tanh(ops.softplus(x))),
    "hardswish": lambda x: ops.mul(x, _hard_sigmoid(x)),
    "hardsigmoid": _hard_sigmoid,
    "log_sigmoid": _log_sigmoid,
    "log10": lambda x: ops.mul(ops.log(x), constant(x, 1 / math.log(10))),
    "sinh": _sinh,
    "cosh": _cosh,
    "asin": lambda x: ops.atan2(*_from_asin(x)),
    "acos": lambda x: ops.atan2(*_from_asin(x)[::-1]),
    "atan": lambda x: ops.atan2(x, constant(x, 1)),
    "asinh": _asinh,
    "acosh": _acosh,
    "atanh": _atanh,
    "deg2rad": lambda x: ops.mul(x, constant(x, math.pi / 180)),
    "rad2deg": lambda x: ops.mul(x, constant(x, 180 / math.pi)),
    "erfc": lambda x: ops.sub(constant(x, 1), ops.erf(x)),
}
# one rounding for half types, where the definition has several steps
for _name, _define in FLOAT_UNARY.items():
    lowers(f"{_name}.default")(lambda call, x, define=_define: in_dtype(x, call.dtype, define))

# the dtype is kept; on integers rounding does nothing
KEPT_UNARY: dict[str, Define] = {"neg": ops.neg, "abs": ops.abs, "sign": ops.sign, "sgn": ops.sign}
for _name, _define in KEPT_UNARY.items():
    lowers(f"{_name}.default")(lambda call, x, define=_define: define(x))
ROUNDING: dict[str, Define] = {
    "floor": ops.floor,
    "ceil": ops.ceil,
    "round": ops.round,
    "trunc": ops.trunc,
    "fix": ops.trunc,
}
for _name, _define in ROUNDING.items():
    lowers(f"{_name}.default")(lambda call, x, define=_define: define(x) if ops.is_float(x.dtype) else x)


@lowers("relu.default")
def _relu(call: Call, x: Node) -> Node:
    return ops.relu(x)


@lowers("square.default")
def _square(call: Call, x: Node) -> Node:
    return ops.mul(cast(x, call.dtype), cast(x, call.dtype))


@lowers("positive.default", "real.default", "conj.default", "resolve_conj.default", "resolve_neg.default")
def _same(call: Call, x: Node) -> Node:
    if x.dtype.is_complex:
        raise NotLowered("complex numbers")
    return x


@lowers("frac.default")
def _frac(call: Call, x: Node) -> Node:
    return ops.sub(x, ops.trunc(x))


@lowers("round.decimals")
def _round_decimals(call: Call, x: Node, *, decimals: int = 0) -> Node:
    scale = 10.0 ** abs(decimals)
    up, down = (ops.mul, ops.div) if decimals >= 0 else (ops.div, ops.mul)
    return in_dtype(x, call.dtype, lambda v: down(ops.round(up(v, constant(v, scale))), constant(v, scale)))


@lowers("gelu.default")
def _gelu(call: Call, x: Node, *, approximate: str = "none") -> Node:
    return ops.gelu(x, approximate=approximate)


@lowers("softplus.default")
def _softplus(call: Call, x: Node, beta: float = 1, threshold: float = 20) -> Node:
    return ops.softplus(x, beta=float(beta), threshold=float(threshold))


@lowers("leaky_relu.default")
def _leaky_relu(call: Call, x: Node, negative_slope: float = 0.01) -> Node:
    return ops.leaky_relu(x, slope=float(negative_slope))


@lowers("elu.default")
def _elu(call: Call, x: Node, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Node:
    def define(v: Node) -> Node:
        low = ops.mul(constant(v, alpha * scale), ops.expm1(ops.mul(v, constant(v, input_scale))))
        return ops.where(ops.gt(v, constant(v, 0)), ops.mul(v, constant(v, scale)), low)

    return in_dtype(x, call.dtype, define)


@lowers("selu.default")
def _selu(call: Call, x: Node) -> Node:
    return _elu(call, x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@lowers("celu.default")
def _celu(call: Call, x: Node, alpha: float = 1.0) -> Node:
    return _elu(call, x, alpha, 1, 1 / alpha)


@lowers("hardtanh.default")
def _hardtanh(call: Call, x: Node, min_val: float = -1, max_val: float = 1) -> Node:
    return ops.clamp(x, low=plain(min_val, x.dtype), high=plain(max_val, x.dtype))


@lowers("relu6.default")
def _relu6(call: Call, x: Node) -> Node:
    return ops.clamp(x, low=plain(0, x.dtype), high=plain(6, x.dtype))


@lowers("hardshrink.default")
def _hardshrink(call: Call, x: Node, lambd: float = 0.5) -> Node:
    inside = ops.bit_and(ops.ge(x, constant(x, -lambd)), ops.le(x, constant(x, lambd)))
    return ops.where(inside, constant(x, 0), x)


@lowers("softshrink.default")
def _softshrink(call: Call, x: Node, lambd: float = 0.5) -> Node:
    low = ops.add(x, constant(x, lambd))
    high = ops.sub(x, constant(x, lambd))
    middle = ops.where(ops.lt(x, constant(x, -lambd)), low, ops.mul(x, constant(x, 0)))
    return ops.where(ops.gt(x, constant(x, lambd)), high, middle)


@lowers("threshold.default")
def _threshold(call: Call, x: Node, threshold: Scalar, value: Scalar) -> Node:
    return ops.where(ops.le(x, constant(x, threshold)), constant(x, value), x)


@lowers("prelu.default", "_prelu_kernel.default")
def _prelu(call: Call, x: Node, weight: Node) -> Node:
    if weight.tensor_type.rank == 1 and x.tensor_type.rank > 1:
        weight = reshape(weight, (weight.shape[0], *[1] * (x.tensor_type.rank - 2)))
    return ops.where(ops.gt(x, constant(x, 0)), x, ops.mul(weight, x))


@lowers("glu.default")
def _glu(call: Call, x: Node, dim: int = -1) -> Node:
    at = dim % x.tensor_type.rank
    half = call.shape[at]
    left, right = (ops.slice_(x, dim=at, start=i * half, stop=(i + 1) * half) for i in range(2))
    return in_dtype(left, call.dtype, lambda v: ops.mul(v, ops.sigmoid(cast(right, v.dtype))))


@lowers("logit.default", "special_logit.default")
def _logit(call: Call, x: Node, eps: float | None = None) -> Node:
    def define(v: Node) -> Node:
        inside = v if eps is None else ops.clamp(v, low=eps, high=1 - eps)
        return ops.log(ops.div(inside, ops.sub(constant(v, 1), inside)))

    return in_dtype(x, call.dtype, define)


@lowers("clamp.default", "clip.default")
def _clamp(call: Call, x: Node, min: Scalar | None = None, max: Scalar | None = None) -> Node:
    low, high = (None if end is None else plain(end, call.dtype) for end in (min, max))
    return ops.clamp(cast(x, call.dtype), low=low, high=high)


@lowers("clamp_min.default")
def _clamp_min(call: Call, x: Node, min: Scalar) -> Node:
    return ops.clamp(cast(x, call.dtype), low=plain(min, call.dtype))


@lowers("clamp_max.default")
def _clamp_max(call: Call, x: Node, max: Scalar) -> Node:
    return ops.clamp(cast(x, call.dtype), high=plain(max, call.dtype))


@lowers("clamp.Tensor", "clip.Tensor", "clamp_min.Tensor", "clamp_max.Tensor")
def _clamp_tensor(call: Call, x: Node, min: Node | None = None, max: Node | None = None) -> Node:
    if call.name == "aten.clamp_max.Tensor":
        min, max = None, min if max is None else max
    x = cast(x, call.dtype)
    if min is not None:
        x = ops.maximum(x, cast(min, call.dtype))
    return x if max is None else ops.minimum(x, cast(max, call.dtype))


# --- dtype ------------------------------------------------------------------------------------------------------------


@lowers(
    "to.dtype", "to.dtype_layout", "to.device", "to.other", "to.prim_Device", "to.prim_dtype", "_to_copy.default",
    "type_as.default", "_autocast_to_reduced_precision.default", "_autocast_to_full_precision.default",
)  # fmt: skip
def _to(call: Call, x: Node, *_: Any, **__: Any) -> Node:
    return cast(x, call.dtype)


@lowers(
    "detach.default", "detach_.default", "alias.default", "clone.default", "contiguous.default",
    "lift_fresh_copy.default", "lift_fresh.default", "lift.default", "dropout.default", "feature_dropout.default",
    "alpha_dropout.default", "requires_grad_.default", "alias_copy.default", "detach_copy.default",
)  # fmt: skip
def _identity(call: Call, x: Node, *args: Any, **kwargs: Any) -> Node:
    if "dropout" in call.name:
        _refuse_training(call, *args, **kwargs)
    return x


def _refuse_training(call: Call, p: float = 0.5, train: bool | None = True) -> None:
    if train and p:
        raise NotLowered("dropout in training mode")
