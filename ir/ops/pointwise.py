"""Primitive operators on elements."""

from __future__ import annotations

from typing import Any

import torch

from ..node import REQUIRED, Trait
from ..types import TensorType, broadcast_shapes
from .base import declare, per_element, pointwise, require, same_dtype

# arithmetic
add = pointwise("add", torch.add, 2)
sub = pointwise("sub", torch.sub, 2)
mul = pointwise("mul", torch.mul, 2)
div = pointwise("div", torch.div, 2, floats=True)
floor_div = pointwise("floor_div", lambda a, b: torch.div(a, b, rounding_mode="floor"), 2)
trunc_div = pointwise("trunc_div", lambda a, b: torch.div(a, b, rounding_mode="trunc"), 2)
remainder = pointwise("remainder", torch.remainder, 2)  # sign of the divisor
fmod = pointwise("fmod", torch.fmod, 2)  # sign of the dividend
pow = pointwise("pow", torch.pow, 2, flops=10)
maximum = pointwise("maximum", torch.maximum, 2)  # NaN if either is NaN
minimum = pointwise("minimum", torch.minimum, 2)
atan2 = pointwise("atan2", torch.atan2, 2, floats=True, flops=10)
neg = pointwise("neg", torch.neg)
abs = pointwise("abs", torch.abs)
sign = pointwise("sign", torch.sign)
reciprocal = pointwise("reciprocal", torch.reciprocal, floats=True)

# rounding
floor = pointwise("floor", torch.floor, floats=True)
ceil = pointwise("ceil", torch.ceil, floats=True)
round = pointwise("round", torch.round, floats=True)  # half to even
trunc = pointwise("trunc", torch.trunc, floats=True)

# elementary functions; flops are those of a vectorised polynomial
exp = pointwise("exp", torch.exp, floats=True, flops=10)
exp2 = pointwise("exp2", torch.exp2, floats=True, flops=10)
expm1 = pointwise("expm1", torch.expm1, floats=True, flops=12)
log = pointwise("log", torch.log, floats=True, flops=10)
log1p = pointwise("log1p", torch.log1p, floats=True, flops=12)
log2 = pointwise("log2", torch.log2, floats=True, flops=10)
sqrt = pointwise("sqrt", torch.sqrt, floats=True, flops=4)
rsqrt = pointwise("rsqrt", torch.rsqrt, floats=True, flops=5)
sin = pointwise("sin", torch.sin, floats=True, flops=12)
cos = pointwise("cos", torch.cos, floats=True, flops=12)
tan = pointwise("tan", torch.tan, floats=True, flops=20)
tanh = pointwise("tanh", torch.tanh, floats=True, flops=14)
sigmoid = pointwise("sigmoid", torch.sigmoid, floats=True, flops=12)
erf = pointwise("erf", torch.erf, floats=True, flops=14)

# comparison
eq = pointwise("eq", torch.eq, 2, result=torch.bool)
ne = pointwise("ne", torch.ne, 2, result=torch.bool)
lt = pointwise("lt", torch.lt, 2, result=torch.bool)
le = pointwise("le", torch.le, 2, result=torch.bool)
gt = pointwise("gt", torch.gt, 2, result=torch.bool)
ge = pointwise("ge", torch.ge, 2, result=torch.bool)
isnan = pointwise("isnan", torch.isnan, floats=True, result=torch.bool)

# logic on bool, bits on integers
bit_and = pointwise("bit_and", torch.bitwise_and, 2)
bit_or = pointwise("bit_or", torch.bitwise_or, 2)
bit_xor = pointwise("bit_xor", torch.bitwise_xor, 2)
bit_not = pointwise("bit_not", torch.bitwise_not)


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
