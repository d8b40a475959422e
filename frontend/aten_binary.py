"""Lowerings of ATen's operators on elements of two and three operands."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from ..ir import ops
from ..ir.node import Node
from .table import (
    Call,
    Scalar,
    as_node,
    cast,
    constant,
    elementwise,
    expand,
    full,
    in_dtype,
    is_scalar,
    lowers,
    plain,
    truth,
)

Define = Callable[..., Node]


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
    **{
        f"{name}.{kind}": op
        for name, op in (WITH_TENSOR_FIRST | WITH_NUMBER_FIRST).items()
        for kind in ("Tensor", "Scalar")
    },
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


IGNORING_NAN = {"fmax.default": _ignoring_nan(ops.maximum), "fmin.default": _ignoring_nan(ops.minimum)}
for _name, _define in IGNORING_NAN.items():
    lowers(_name)(lambda call, x, y, define=_define: elementwise(define, x, y, result=call.dtype))


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
        return _div(call, x, y)
    op = ops.floor_div if rounding_mode == "floor" else ops.trunc_div
    return elementwise(op, x, y, result=call.dtype)


@lowers("atan2.default", "arctan2.default")
def _atan2(call: Call, x: Node, y: Node) -> Node:
    return elementwise(ops.atan2, _as_float(x, call.dtype), _as_float(y, call.dtype), result=call.dtype)


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
    return ops.eq(ops.abs(x), constant(x, math.inf)) if ops.is_float(x.dtype) else full(x.shape, False, torch.bool)


@lowers("isfinite.default")
def _isfinite(call: Call, x: Node) -> Node:
    return ops.lt(ops.abs(x), constant(x, math.inf)) if ops.is_float(x.dtype) else full(x.shape, True, torch.bool)


@lowers("isposinf.default", "isneginf.default")
def _is_infinity(call: Call, x: Node) -> Node:
    sign = 1 if "pos" in call.name else -1
    return ops.eq(x, constant(x, sign * math.inf)) if ops.is_float(x.dtype) else full(x.shape, False, torch.bool)


@lowers("nan_to_num.default")
def _nan_to_num(
    call: Call, x: Node, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Node:
    if not ops.is_float(x.dtype):
        return x
    info = torch.finfo(x.dtype)
    high, low = info.max if posinf is None else posinf, info.min if neginf is None else neginf
    y = ops.where(ops.isnan(x), constant(x, nan or 0.0), x)
    y = ops.where(ops.eq(x, constant(x, math.inf)), constant(x, high), y)
    return ops.where(ops.eq(x, constant(x, -math.inf)), constant(x, low), y)


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
    """The larger times the square root of 1 plus the square of the quotient: no square overflows."""
    wide = torch.float32 if call.dtype in ops.HALF else call.dtype
    a, b = (ops.abs(cast(v, wide)) for v in (x, y))
    most, least = ops.maximum(a, b), ops.minimum(a, b)
    zero, one, infinity = (ops.scalar(value, wide) for value in (0.0, 1.0, math.inf))
    ratio = ops.where(ops.eq(most, zero), zero, ops.div(least, most))
    length = ops.mul(most, ops.sqrt(ops.add(one, ops.mul(ratio, ratio))))
    infinite = ops.bit_or(ops.eq(a, infinity), ops.eq(b, infinity))  # even where the other one is NaN
    return cast(ops.where(infinite, infinity, length), call.dtype)


@lowers("xlogy.Tensor", "xlogy.Scalar_Other", "xlogy.Scalar_Self", "special_xlogy.default")
def _xlogy(call: Call, x: Any, y: Any) -> Node:
    def define(a: Node, b: Node) -> Node:
        zero = constant(a, 0)
        product = ops.where(ops.eq(a, zero), zero, ops.mul(a, ops.log(b)))
        return ops.where(ops.isnan(b), b, product)

    return elementwise(define, _as_float(x, call.dtype), _as_float(y, call.dtype), result=call.dtype)


@lowers("heaviside.default")
def _heaviside(call: Call, x: Node, values: Node) -> Node:
    zero = constant(x, 0)
    step = cast(ops.gt(x, zero), x.dtype)
    return ops.where(ops.eq(x, zero), values, step)
