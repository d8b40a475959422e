"""Primitive operators on elements."""

from __future__ import annotations

from typing import Any

import torch

from ..node import REQUIRED, Trait
from ..types import TensorType, broadcast_shapes
from .base import (
    declare,
    is_bits,
    is_float,
    is_number,
    is_real,
    per_element,
    pointwise,
    require,
    require_dtype,
    same_dtype,
)

# arithmetic
add = pointwise("add", torch.add, 2)
sub = pointwise("sub", torch.sub, 2, of=is_number)
mul = pointwise("mul", torch.mul, 2)
div = pointwise("div", torch.div, 2, of=is_float)
floor_div = pointwise("floor_div", lambda a, b: torch.div(a, b, rounding_mode="floor"), 2, of=is_number)
trunc_div = pointwise("trunc_div", lambda a, b: torch.div(a, b, rounding_mode="trunc"), 2, of=is_number)
remainder = pointwise("remainder", torch.remainder, 2, of=is_number)  # sign of the divisor
fmod = pointwise("fmod", torch.fmod, 2, of=is_number)  # sign of the dividend
pow = pointwise("pow", torch.pow, 2, flops=10, of=is_number)
maximum = pointwise("maximum", torch.maximum, 2)  # NaN if either is NaN
minimum = pointwise("minimum", torch.minimum, 2)
atan2 = pointwise("atan2", torch.atan2, 2, of=is_float, flops=10)
neg = pointwise("neg", torch.neg, of=is_number)
abs = pointwise("abs", torch.abs, of=is_number)
sign = pointwise("sign", torch.sign)
reciprocal = pointwise("reciprocal", torch.reciprocal, of=is_float)

# rounding
floor = pointwise("floor", torch.floor, of=is_float)
ceil = pointwise("ceil", torch.ceil, of=is_float)
round = pointwise("round", torch.round, of=is_float)  # half to even
trunc = pointwise("trunc", torch.trunc, of=is_float)

# elementary functions; flops are those of a vectorised polynomial
exp = pointwise("exp", torch.exp, of=is_float, flops=10)
exp2 = pointwise("exp2", torch.exp2, of=is_float, flops=10)
expm1 = pointwise("expm1", torch.expm1, of=is_float, flops=12)
log = pointwise("log", torch.log, of=is_float, flops=10)
log1p = pointwise("log1p", torch.log1p, of=is_float, flops=12)
log2 = pointwise("log2", torch.log2, of=is_float, flops=10)
sqrt = pointwise("sqrt", torch.sqrt, of=is_float, flops=4)
rsqrt = pointwise("rsqrt", torch.rsqrt, of=is_float, flops=5)
sin = pointwise("sin", torch.sin, of=is_float, flops=12)
cos = pointwise("cos", torch.cos, of=is_float, flops=12)
tan = pointwise("tan", torch.tan, of=is_float, flops=20)
tanh = pointwise("tanh", torch.tanh, of=is_float, flops=14)
sigmoid = pointwise("sigmoid", torch.sigmoid, of=is_float, flops=12)
erf = pointwise("erf", torch.erf, of=is_float, flops=14)

# comparison
eq = pointwise("eq", torch.eq, 2, result=torch.bool)
ne = pointwise("ne", torch.ne, 2, result=torch.bool)
lt = pointwise("lt", torch.lt, 2, result=torch.bool)
le = pointwise("le", torch.le, 2, result=torch.bool)
gt = pointwise("gt", torch.gt, 2, result=torch.bool)
ge = pointwise("ge", torch.ge, 2, result=torch.bool)
isnan = pointwise("isnan", torch.isnan, of=is_float, result=torch.bool)

# logic on bool, bits on integers
bit_and = pointwise("bit_and", torch.bitwise_and, 2, of=is_bits)
bit_or = pointwise("bit_or", torch.bitwise_or, 2, of=is_bits)
bit_xor = pointwise("bit_xor", torch.bitwise_xor, 2, of=is_bits)
bit_not = pointwise("bit_not", torch.bitwise_not, of=is_bits)


def _where_type(cond: TensorType, a: TensorType, b: TensorType) -> TensorType:
    require(cond.dtype == torch.bool, f"where: the condition is {cond}, not bool")
    return TensorType(broadcast_shapes(cond.shape, a.shape, b.shape), same_dtype("where", (a, b)))


where = declare(
    "where",
    infer=_where_type,
    evaluate=torch.where,
    arity=(3, 3),
    traits={Trait.POINTWISE},
    flops=per_element(1),
)


def _cast_type(x: TensorType, *, dtype: torch.dtype) -> TensorType:
    require_dtype("cast", x, is_real)
    require_dtype("cast", x.with_dtype(dtype), is_real)
    return x.with_dtype(dtype)


def _cast(x: torch.Tensor, *, dtype: torch.dtype) -> Any:
    return x.to(dtype)


cast = declare(
    "cast",
    infer=_cast_type,
    evaluate=_cast,
    attrs={"dtype": REQUIRED},
    traits={Trait.POINTWISE},
    flops=per_element(0),
)
