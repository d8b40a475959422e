"""Lowerings of ATen's operators on elements."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..ir import ops
from ..ir.node import Node
from .table import (
    LOWERINGS,
    Call,
    NotLowered,
    Scalar,
    as_node,
    cast,
    elementwise,
    expand,
    full,
    in_dtype,
    is_scalar,
    lowers,
    plain,
    promoted,
    reshape,
)

Define = Callable[..., Node]


def _constant(x: Node, value: Scalar) -> Node:
    return ops.scalar_like(plain(value, x.dtype), x)


# --- one operand ------------------------------------------------------------------------------------------------------


def _sinh(x: Node) -> Node:
    # from expm1, which keeps small arguments exact: (e + e / (e + 1)) / 2
    e = ops.expm1(x)
    return ops.mul(ops.add(e, ops.div(e, ops.add(e, _constant(x, 1)))), _constant(x, 0.5))


def _cosh(x: Node) -> Node:
    return ops.mul(ops.add(ops.exp(x), ops.exp(ops.neg(x))), _constant(x, 0.5))


def _from_asin(x: Node) -> tuple[Node, Node]:
    one = _constant(x, 1)
    return x, ops.sqrt(ops.mul(ops.sub(one, x), ops.add(one, x)))


def _asinh(x: Node) -> Node:
    # sign(x) log1p(|x| + x^2 / (1 + sqrt(x^2 + 1)))
    a, one = ops.abs(x), _constant(x, 1)
    square = ops.mul(a, a)
    inner = ops.add(a, ops.div(square, ops.add(one, ops.sqrt(ops.add(square, one)))))
    return ops.mul(ops.sign(x), ops.log1p(inner))


def _acosh(x: Node) -> Node:
    t = ops.sub(x, _constant(x, 1))
    return ops.log1p(ops.add(t, ops.sqrt(ops.mul(t, ops.add(t, _constant(x, 2))))))


def _atanh(x: Node) -> Node:
    ratio = ops.div(ops.mul(_constant(x, 2), x), ops.sub(_constant(x, 1), x))
    return ops.mul(ops.log1p(ratio), _constant(x, 0.5))


def _log_sigmoid(x: Node) -> Node:
    return ops.sub(ops.minimum(x, _constant(x, 0)), ops.log1p(ops.exp(ops.neg(ops.abs(x)))))


def _hard_sigmoid(x: Node) -> Node:
    return ops.div(ops.clamp(ops.add(x, _constant(x, 3)), low=0.0, high=6.0), _constant(x, 6))


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
    "log10": lambda x: ops.mul(ops.log(x), _constant(x, 1 / math.log(10))),
    "sinh": _sinh,
    "cosh": _cosh,
    "asin": lambda x: ops.atan2(*_from_asin(x)),
    "acos": lambda x: ops.atan2(*_from_asin(x)[::-1]),
    "atan": lambda x: ops.atan2(x, _constant(x, 1)),
    "asinh": _asinh,
    "acosh": _acosh,
    "atanh": _atanh,
    "deg2rad": lambda x: ops.mul(x, _constant(x, math.pi / 180)),
    "rad2deg": lambda x: ops.mul(x, _constant(x, 180 / math.pi)),
    "erfc": lambda x: ops.sub(_constant(x, 1), ops.erf(x)),
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
    return ops.mul(x, x)


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
    return in_dtype(x, call.dtype, lambda v: down(ops.round(up(v, _constant(v, scale))), _constant(v, scale)))


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
        low = ops.mul(_constant(v, alpha * scale), ops.expm1(ops.mul(v, _constant(v, input_scale))))
        return ops.where(ops.gt(v, _constant(v, 0)), ops.mul(v, _constant(v, scale)), low)

    return in_dtype(x, call.dtype, define)


@lowers("selu.default")
def _selu(call: Call, x: Node) -> Node:
    return _elu(call, x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)  # type: ignore[no-any-return]


@lowers("celu.default")
def _celu(call: Call, x: Node, alpha: float = 1.0) -> Node:
    return _elu(call, x, alpha, 1, 1 / alpha)  # type: ignore[no-any-return]


@lowers("hardtanh.default")
def _hardtanh(call: Call, x: Node, min_val: float = -1, max_val: float = 1) -> Node:
    return ops.clamp(x, low=plain(min_val, x.dtype), high=plain(max_val, x.dtype))


@lowers("relu6.default")
def _relu6(call: Call, x: Node) -> Node:
    return ops.clamp(x, low=plain(0, x.dtype), high=plain(6, x.dtype))


@lowers("hardshrink.default")
def _hardshrink(call: Call, x: Node, lambd: float = 0.5) -> Node:
    inside = ops.bit_and(ops.ge(x, _constant(x, -lambd)), ops.le(x, _constant(x, lambd)))
    return ops.where(inside, _constant(x, 0), x)


@lowers("softshrink.default")
def _softshrink(call: Call, x: Node, lambd: float = 0.5) -> Node:
    low = ops.add(x, _constant(x, lambd))
    high = ops.sub(x, _constant(x, lambd))
    middle = ops.where(ops.lt(x, _constant(x, -lambd)), low, ops.mul(x, _constant(x, 0)))
    return ops.where(ops.gt(x, _constant(x, lambd)), high, middle)


@lowers("threshold.default")
def _threshold(call: Call, x: Node, threshold: Scalar, value: Scalar) -> Node:
    return ops.where(ops.le(x, _constant(x, threshold)), _constant(x, value), x)


@lowers("prelu.default", "_prelu_kernel.default")
def _prelu(call: Call, x: Node, weight: Node) -> Node:
    if weight.tensor_type.rank == 1 and x.tensor_type.rank > 1:
        weight = reshape(weight, (weight.shape[0], *[1] * (x.tensor_type.rank - 2)))
    return ops.where(ops.gt(x, _constant(x, 0)), x, ops.mul(weight, x))


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
        return ops.log(ops.div(inside, ops.sub(_constant(v, 1), inside)))

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


# --- two operands -----------------------------------------------------------------------------------------------------


@lowers("add.Tensor", "add.Scalar")
def _add(call: Call, x: Any, y: Any, alpha: Scalar = 1) -> Node:
    return _linear_combination(call, ops.add, x, y, alpha)


@lowers("sub.Tensor", "sub.Scalar", "subtract.Tensor", "subtract.Scalar")
def _sub(call: Call, x: Any, y: Any, alpha: Scalar = 1) -> Node:
    return _linear_combination(call, ops.sub, x, y, alpha)


@lowers("rsub.Tensor", "rsub.Scalar")
def _rsub(call: Call, x: Any, y: Any, alpha: Scalar = 1) -> Node:
    return _linear_combination(call, ops.sub, y, x, alpha)


def _linear_combination(call: Call, op: Define, x: Any, y: Any, alpha: Scalar) -> Node:
    if call.dtype == torch.bool and op is ops.add:
        return ops.bit_or(x, as_node(y, torch.bool))
    if is_scalar(alpha) and alpha == 1:
        return elementwise(op, x, y, result=call.dtype)
    if is_scalar(y):
        return elementwise(op, x, y * alpha, result=call.dtype)
    # alpha is of the result's kind: the product and the sum are rounded together
    wide = torch.float32 if call.dtype in ops.HALF else call.dtype
    scaled = ops.mul(as_node(y, wide), ops.scalar(plain(alpha, wide), wide))
    return cast(op(as_node(x, wide), scaled), call.dtype)


def _mul(x: Node, y: Node) -> Node:
    return ops.bit_and(x, y) if x.dtype == torch.bool else ops.mul(x, y)


WITH_TENSOR_FIRST: dict[str, Define] = {
    "eq": ops.eq,
    "ne": ops.ne,
    "lt": ops.lt,
    "le": ops.le,
    "gt": ops.gt,
    "ge": ops.ge,
    "not_equal": ops.ne,
    "less": ops.lt,
    "less_equal": ops.le,
    "greater": ops.gt,
    "greater_equal": ops.ge,
    "mul": _mul,
    "multiply": _mul,
    "fmod": ops.fmod,
    "__and__": ops.bit_and,
    "__or__": ops.bit_or,
    "__xor__": ops.bit_xor,
}
WITH_NUMBER_FIRST: dict[str, Define] = {
    "remainder": ops.remainder,
    "bitwise_and": ops.bit_and,
    "bitwise_or": ops.bit_or,
    "bitwise_xor": ops.bit_xor,
}
BINARY: dict[str, Define] = {
    **{f"{name}.{kind}": op for name, op in (WITH_TENSOR_FIRST | WITH_NUMBER_FIRST).items() for kind in ("Tensor", "Scalar")},
    **{f"{name}.Scalar_Tensor": op for name, op in WITH_NUMBER_FIRST.items()},
    "floor_divide.default": ops.floor_div,
    "floor_divide.Scalar": ops.floor_div,
    "maximum.default": ops.maximum,
    "minimum.default": ops.minimum,
    "max.other": ops.maximum,
    "min.other": ops.minimum,
}
for _name, _define in BINARY.items():
    lowers(_name)(lambda call, x, y, define=_define: elementwise(define, x, y, result=call.dtype))


def _ignoring_nan(op: Define) -> Define:
    """The other operand where one is NaN."""

    def define(x: Node, y: Node) -> Node:
        if not ops.is_float(x.dtype):
            return op(x, y)
        return ops.where(ops.isnan(x), y, ops.where(ops.isnan(y), x, op(x, y)))

    return define


for _name, _define in {"fmax": ops.maximum, "fmin": ops.minimum}.items():
    lowers(f"{_name}.default")(
        lambda call, x, y, define=_ignoring_nan(_define): elementwise(define, x, y, result=call.dtype)
    )


def _as_float(x: Any, dtype: torch.dtype) -> Any:
    """An operand of a true division: integers become floats first."""
    return cast(x, dtype) if isinstance(x, Node) and not ops.is_float(x.dtype) else x


@lowers("div.Tensor", "div.Scalar", "divide.Tensor", "divide.Scalar", "true_divide.Tensor", "true_divide.Scalar")
def _div(call: Call, x: Any, y: Any) -> Node:
    return elementwise(ops.div, _as_float(x, call.dtype), _float_number(_as_float(y, call.dtype)), result=call.dtype)


def _float_number(x: Any) -> Any:
    return float(x) if isinstance(x, bool | int) else x


@lowers("div.Tensor_mode", "div.Scalar_mode", "divide.Tensor_mode", "divide.Scalar_mode")
def _div_mode(call: Call, x: Any, y: Any, *, rounding_mode: str | None = None) -> Node:
    if rounding_mode is None:
        return _div(call, x, y)  # type: ignore[no-any-return]
    op = ops.floor_div if rounding_mode == "floor" else ops.trunc_div
    return elementwise(op, x, y, result=call.dtype)


@lowers("atan2.default", "arctan2.default")
def _atan2(call: Call, x: Node, y: Node) -> Node:
    return elementwise(ops.atan2, _as_float(x, call.dtype), _as_float(y, call.dtype), result=call.dtype)


def _sqrt_power(x: Node) -> Node:
    return ops.sqrt(x)


# PyTorch's own shortcuts: their results differ from those of a general power
POWERS: dict[float, Define] = {
    1.0: lambda x: x,
    2.0: lambda x: ops.mul(x, x),
    3.0: lambda x: ops.mul(ops.mul(x, x), x),
}
FLOAT_POWERS: dict[float, Define] = {
    0.5: ops.sqrt,
    -0.5: ops.rsqrt,
    -1.0: ops.reciprocal,
    -2.0: lambda x: ops.reciprocal(ops.mul(x, x)),
}


@lowers("pow.Tensor_Scalar")
def _pow_number(call: Call, x: Node, exponent: Scalar) -> Node:
    known = float(exponent) if isinstance(exponent, bool | int | float) else None
    if known == 0.0:
        return full(call.shape, 1, call.dtype)
    if known in POWERS:
        return in_dtype(x, call.dtype, POWERS[known])
    if known in FLOAT_POWERS and ops.is_float(call.dtype):
        return in_dtype(x, call.dtype, FLOAT_POWERS[known])
    return elementwise(ops.pow, cast(x, call.dtype), exponent, result=call.dtype)


@lowers("pow.Tensor_Tensor", "pow.Scalar")
def _pow(call: Call, x: Any, exponent: Node) -> Node:
    return elementwise(ops.pow, x, exponent, result=call.dtype)


@lowers("bitwise_not.default")
def _bitwise_not(call: Call, x: Node) -> Node:
    return ops.bit_not(x)


def truth(x: Any) -> Node:
    """Whether elements are not zero, as bool."""
    node: Node = x
    return node if node.dtype == torch.bool else ops.ne(node, _constant(node, 0))


@lowers("logical_not.default")
def _logical_not(call: Call, x: Node) -> Node:
    return ops.bit_not(truth(x))


for _name, _define in {"and": ops.bit_and, "or": ops.bit_or, "xor": ops.bit_xor}.items():
    lowers(f"logical_{_name}.default")(lambda call, x, y, define=_define: define(truth(x), truth(y)))


@lowers("isnan.default")
def _isnan(call: Call, x: Node) -> Node:
    return ops.isnan(x) if ops.is_float(x.dtype) else full(x.shape, False, torch.bool)


@lowers("isinf.default")
def _isinf(call: Call, x: Node) -> Node:
    return ops.eq(ops.abs(x), _constant(x, math.inf)) if ops.is_float(x.dtype) else full(x.shape, False, torch.bool)


@lowers("isfinite.default")
def _isfinite(call: Call, x: Node) -> Node:
    return ops.lt(ops.abs(x), _constant(x, math.inf)) if ops.is_float(x.dtype) else full(x.shape, True, torch.bool)


@lowers("isposinf.default", "isneginf.default")
def _is_infinity(call: Call, x: Node) -> Node:
    sign = 1 if "pos" in call.name else -1
    return ops.eq(x, _constant(x, sign * math.inf)) if ops.is_float(x.dtype) else full(x.shape, False, torch.bool)


@lowers("nan_to_num.default")
def _nan_to_num(call: Call, x: Node, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> Node:
    if not ops.is_float(x.dtype):
        return x
    info = torch.finfo(x.dtype)
    high, low = info.max if posinf is None else posinf, info.min if neginf is None else neginf
    y = ops.where(ops.isnan(x), _constant(x, nan or 0.0), x)
    y = ops.where(ops.eq(x, _constant(x, math.inf)), _constant(x, high), y)
    return ops.where(ops.eq(x, _constant(x, -math.inf)), _constant(x, low), y)


# --- three operands ---------------------------------------------------------------------------------------------------


@lowers("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar")
def _where(call: Call, condition: Node, x: Any, y: Any) -> Node:
    return ops.where(truth(condition), as_node(x, call.dtype), as_node(y, call.dtype))


@lowers("masked_fill.Scalar", "masked_fill.Tensor")
def _masked_fill(call: Call, x: Node, mask: Node, value: Any) -> Node:
    return expand(ops.where(mask, as_node(value, x.dtype), x), call.shape)


@lowers("addcmul.default")
def _addcmul(call: Call, x: Node, a: Node, b: Node, *, value: Scalar = 1) -> Node:
    return _add_scaled(call, x, ops.mul, a, b, value)


@lowers("addcdiv.default")
def _addcdiv(call: Call, x: Node, a: Node, b: Node, *, value: Scalar = 1) -> Node:
    return _add_scaled(call, x, ops.div, a, b, value)


def _add_scaled(call: Call, x: Node, op: Define, a: Node, b: Node, value: Scalar) -> Node:
    wide = torch.float32 if call.dtype in ops.HALF else call.dtype
    term = op(cast(a, wide), cast(b, wide))
    if value != 1:
        term = ops.mul(ops.scalar(plain(value, wide), wide), term)
    return cast(ops.add(cast(x, wide), term), call.dtype)


@lowers("lerp.Scalar", "lerp.Tensor")
def _lerp(call: Call, x: Node, end: Node, weight: Any) -> Node:
    wide = torch.float32 if call.dtype in ops.HALF else call.dtype
    a, b, w = cast(x, wide), cast(end, wide), as_node(weight, wide)
    difference, one = ops.sub(b, a), ops.scalar(plain(1, wide), wide)
    # PyTorch computes from the nearer end
    near = ops.add(a, ops.mul(w, difference))
    far = ops.sub(b, ops.mul(difference, ops.sub(one, w)))
    half = ops.scalar(plain(0.5, wide), wide)
    return cast(ops.where(ops.lt(ops.abs(w), half), near, far), call.dtype)


@lowers("hypot.default")
def _hypot(call: Call, x: Node, y: Node) -> Node:
    return elementwise(lambda a, b: ops.sqrt(ops.add(ops.mul(a, a), ops.mul(b, b))), x, y, result=call.dtype)


@lowers("xlogy.Tensor", "xlogy.Scalar_Other", "xlogy.Scalar_Self", "special_xlogy.default")
def _xlogy(call: Call, x: Any, y: Any) -> Node:
    def define(a: Node, b: Node) -> Node:
        zero = _constant(a, 0)
        product = ops.where(ops.eq(a, zero), zero, ops.mul(a, ops.log(b)))
        return ops.where(ops.isnan(b), b, product)

    return elementwise(define, _as_float(x, call.dtype), _as_float(y, call.dtype), result=call.dtype)


@lowers("heaviside.default")
def _heaviside(call: Call, x: Node, values: Node) -> Node:
    zero = _constant(x, 0)
    step = cast(ops.gt(x, zero), x.dtype)
    return ops.where(ops.eq(x, zero), values, step)


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


__all__ = ["LOWERINGS", "promoted", "truth"]
