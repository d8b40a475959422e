"""Products with weights of few bits (see ``ir.ops.quantize``), and rows of activations as int8 or float8.

A row of activations has a scale of its own, ``max |x|`` over the largest number of int8 or float8, and its numbers are
``x / scale`` rounded to nearest, half to even. A row with a NaN or an infinity has NaN as its scale, by which every
output of that row is NaN.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..node import REQUIRED, Node, Trait
from ..types import DTYPE_NAMES, Dim, TensorType
from .base import declare, elements, is_float, per_element, require, require_dtype, same_dtype
from .composite import linear
from .pointwise import abs, add, bit_and, cast, div, floor_div, ge, le, mul, reciprocal, round, sub, where
from .quantize import (
    LARGEST,
    MIDDLE,
    WORD,
    check_matrix,
    check_settings,
    float8_bits,
    groups_of,
    stored_dtype,
    stored_shape,
)
from .reduction import amax
from .rounding import accumulated_dtype, evaluated_in_float32
from .source import scalar, scalar_like
from .view import concat, expand, reshape, slice_

LEAST_SCALE = 2.0**-120  # a row of a smaller scale counts as zeros: the reciprocal might overflow
FLOAT8_NAN = 0x7F  # the bits of NaN but the sign
MOST_TERMS = 2**31 // 127**2 - 1  # of products of int8 whose sum an int32 holds


def _flops(node: Node) -> Dim:
    return 2 * elements(node) * node.inputs[0].shape[-1]


# --- weights as numbers again -----------------------------------------------------------------------------------------


def _float8_type(x: TensorType, *, dtype: torch.dtype) -> TensorType:
    require(x.dtype == torch.uint8, f"float8_value: {x} are not the bits of float8")
    require(dtype == torch.float32, f"float8_value: numbers of {dtype}: they are float32")
    return x.with_dtype(dtype)


def _float8_value(x: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return x.contiguous().view(torch.float8_e4m3fn).to(dtype)


# float8_value(bits uint8) -> float32: the number whose bits in float8_e4m3fn they are
float8_value = declare(
    "float8_value",
    infer=_float8_type,
    evaluate=_float8_value,
    attrs={"dtype": torch.float32},
    traits={Trait.POINTWISE},
    flops=per_element(1),
)


def _float8_of_type(x: TensorType) -> TensorType:
    require(x.dtype == torch.float32, f"float8_of: {x} are not float32")
    return x.with_dtype(torch.uint8)


def _float8_of(x: torch.Tensor) -> torch.Tensor:
    sign = torch.where(torch.signbit(x), 0x80, 0)
    return torch.where(x.isnan(), sign | FLOAT8_NAN, float8_bits(x)).to(torch.uint8)


# float8_of(x float32) -> bits uint8: those of the nearest number of float8_e4m3fn, half to even; the largest for what
# is beyond it, infinities included; NaN for NaN
float8_of = declare(
    "float8_of", infer=_float8_of_type, evaluate=_float8_of, traits={Trait.POINTWISE}, flops=per_element(8)
)


def _check_stored(name: str, parts: tuple[TensorType, ...], features: Dim, bits: int, group: int, float8: bool) -> None:
    """Raise TypeRuleError unless q, scale and the zeros that there may be belong together."""
    q, scale, *zero = parts
    check_matrix(name, q)
    check_settings(name, bits, group, bool(zero), float8)
    require(isinstance(features, int) and features > 0, f"{name}: a weight of {features} features")
    rows = int(q.shape[0])
    held = TensorType(stored_shape(rows, int(features), bits), stored_dtype(bits, bool(zero), float8))
    require(q == held, f"{name}: {q} is no weight of {bits} bits with {features} features: that is {held}")
    require_dtype(name, scale, is_float)
    shape = (rows, groups_of(int(features), group))
    require(scale.shape == shape, f"{name}: scales {scale} in groups of {group} terms: they are {list(shape)}")
    for z in zero:
        require(z == TensorType(shape, torch.uint8), f"{name}: zeros {z} in groups of {group} terms")


def _dequantize_type(*parts: TensorType, bits: int, group: int, features: int, float8: bool) -> TensorType:
    _check_stored("dequantize", parts, features, bits, group, float8)
    return TensorType((parts[0].shape[0], features), parts[1].dtype)


def _unpacked(q: Node, features: int) -> Node:
    """Eight numbers of four bits from each word, [N, ceil(K / 8)] as [N, K]."""
    n, words = q.shape
    shifted = (floor_div(q, scalar(16**place, q.dtype)) for place in range(WORD))
    parts = [reshape(bit_and(x, scalar(15, q.dtype)), shape=(n, words, 1)) for x in shifted]
    return slice_(reshape(concat(*parts, dim=2), shape=(n, WORD * words)), dim=1, stop=features)


def _each_term(x: Node, group: int, features: int) -> Node:
    """What is [N, G], one for each group, as [N, K], one for each term."""
    n, count = x.shape
    wide = expand(reshape(x, shape=(n, count, 1)), shape=(n, count, group))
    return slice_(reshape(wide, shape=(n, count * group)), dim=1, stop=features)


def _dequantize(q: Node, scale: Node, *zero: Node, bits: int, group: int, features: int, float8: bool) -> Node:
    q = float8_value(q) if float8 else q
    whole = cast(_unpacked(q, features) if bits == 4 else q, dtype=scale.dtype)
    if zero:
        whole = sub(whole, cast(_each_term(zero[0], group, features), dtype=scale.dtype))
    elif bits == 4:
        whole = sub(whole, scalar_like(float(MIDDLE), whole))
    return mul(whole, _each_term(scale, group, features))


@evaluated_in_float32
def _numbers(scale: torch.Tensor, q: torch.Tensor, *zero: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    middle = zero[0].to(scale.dtype).repeat_interleave(group, 1)[:, : q.shape[1]] if zero else MIDDLE * (bits == 4)
    return (q.to(scale.dtype) - middle) * scale.repeat_interleave(group, 1)[:, : q.shape[1]]


def _dequantize_value(
    q: torch.Tensor,
    scale: torch.Tensor,
    *zero: torch.Tensor,
    bits: int,
    group: int,
    features: int,
    float8: bool = False,
) -> torch.Tensor:
    if float8:
        q = _float8_value(q)
    if bits == 4:
        q = torch.stack([q >> 4 * place & 15 for place in range(WORD)], 2).flatten(1)[:, :features]
    return _numbers(scale, q, *zero, bits=bits, group=group)


# dequantize(q, scale [N, G] [, zero [N, G]]) -> [N, K]: (q - zero) * scale, each group with its own
dequantize = declare(
    "dequantize",
    infer=_dequantize_type,
    evaluate=_dequantize_value,
    arity=(2, 3),
    attrs={"bits": REQUIRED, "group": REQUIRED, "features": REQUIRED, "float8": False},
    traits={Trait.COMPOSITE},
    flops=per_element(2),
    decompose=lambda q, scale, *zero, **attrs: cast(_dequantize(q, _up(scale), *zero, **attrs), dtype=scale.dtype),
)


def _up(x: Node) -> Node:
    wide = accumulated_dtype(x.dtype)
    return x if x.dtype == wide else cast(x, dtype=wide)


# --- products with such weights ---------------------------------------------------------------------------------------


def _quantized_type(x: TensorType, *rest: TensorType, bits: int, group: int, zeros: bool, float8: bool) -> TensorType:
    count = 3 if zeros else 2
    require(count <= len(rest) <= count + 1, f"quantized_linear: {1 + len(rest)} operands with zeros={zeros}")
    weight, bias = rest[:count], rest[count:]
    require_dtype("quantized_linear", x, is_float)
    require(x.rank >= 1, f"quantized_linear: {x} has no features")
    _check_stored("quantized_linear", weight, x.shape[-1], bits, group, float8)
    for b in bias:
        require(b.shape == (weight[0].shape[0],), f"quantized_linear: bias {b} does not fit {weight[0]}")
    return TensorType((*x.shape[:-1], weight[0].shape[0]), same_dtype("quantized_linear", (x, weight[1], *bias)))


def _quantized(x: Node, *rest: Node, bits: int, group: int, zeros: bool, float8: bool) -> Node:
    count = 3 if zeros else 2
    weight = dequantize(*rest[:count], bits=bits, group=group, features=x.shape[-1], float8=float8)
    return linear(x, weight, *rest[count:])


def _quantized_value(
    x: torch.Tensor, *rest: torch.Tensor, bits: int, group: int, zeros: bool, float8: bool
) -> torch.Tensor:
    count = 3 if zeros else 2
    q, scale, *zero = rest[:count]
    weight = _dequantize_value(q, scale, *zero, bits=bits, group=group, features=x.shape[-1], float8=float8)
    return F.linear(x, weight, *rest[count:])


# quantized_linear(x [..., K], q, scale [, zero] [, bias [N]]) -> [..., N]: linear(x, dequantize(q, scale, zero), bias)
quantized_linear = declare(
    "quantized_linear",
    infer=_quantized_type,
    evaluate=_quantized_value,
    arity=(3, 5),
    attrs={"bits": REQUIRED, "group": REQUIRED, "zeros": False, "float8": False},
    traits={Trait.COMPOSITE, Trait.CONTRACTION},
    flops=_flops,
    decompose=_quantized,
)


# --- rows as int8 or float8 -------------------------------------------------------------------------------------------


def _row_scale_type(x: TensorType, *, float8: bool = False) -> TensorType:
    require_dtype("row_scale", x, is_float)
    require(x.rank >= 1, f"row_scale: {x} has no rows")
    return TensorType((*x.shape[:-1], 1), accumulated_dtype(x.dtype))


def _most(float8: bool) -> float:
    return LARGEST if float8 else 127.0


def _row_scale(x: Node, *, float8: bool) -> Node:
    top = amax(abs(_up(x)), dims=(x.tensor_type.rank - 1,), keepdim=True)
    largest = scalar_like(torch.finfo(top.dtype).max, top)
    return where(le(top, largest), div(top, scalar_like(_most(float8), top)), scalar_like(float("nan"), top))


def _row_scale_value(x: torch.Tensor, *, float8: bool) -> torch.Tensor:
    top = x.to(accumulated_dtype(x.dtype)).abs().amax(-1, keepdim=True)
    return torch.where(top.isfinite(), top / _most(float8), torch.nan)


# row_scale(x [..., K]) -> [..., 1]: max |x| of each row / 127, or / 448 for float8; NaN for a row with a NaN or an
# infinity
row_scale = declare(
    "row_scale",
    infer=_row_scale_type,
    evaluate=_row_scale_value,
    attrs={"float8": False},
    traits={Trait.COMPOSITE, Trait.REDUCTION},
    flops=lambda node: 2 * elements(node) * node.inputs[0].shape[-1],
    decompose=_row_scale,
)


def _quantize_rows_type(x: TensorType, scale: TensorType, *, float8: bool) -> TensorType:
    require(scale == _row_scale_type(x), f"quantize_rows: {scale} are not the scales of {x}")
    return x.with_dtype(torch.uint8 if float8 else torch.int8)


def _quantize_rows(x: Node, scale: Node, *, float8: bool) -> Node:
    divided = mul(_up(x), reciprocal(scale))
    rounded = divided if float8 else round(divided)
    known = where(ge(scale, scalar_like(LEAST_SCALE, scale)), rounded, scalar_like(0.0, rounded))
    if not float8:
        return cast(known, dtype=torch.int8)
    return float8_of(known if known.dtype == torch.float32 else cast(known, dtype=torch.float32))


def _quantize_rows_value(x: torch.Tensor, scale: torch.Tensor, *, float8: bool) -> torch.Tensor:
    divided = x.to(scale.dtype) * scale.reciprocal()
    known = torch.where(scale >= LEAST_SCALE, divided if float8 else torch.round(divided), 0)
    return float8_bits(known) if float8 else known.to(torch.int8)


# quantize_rows(x [..., K], row_scale(x)) -> int8, or bits of float8, [..., K]: x / scale, half to even; 0 where the
# scale is NaN or tiny
quantize_rows = declare(
    "quantize_rows",
    infer=_quantize_rows_type,
    evaluate=_quantize_rows_value,
    arity=(2, 2),
    attrs={"float8": False},
    traits={Trait.COMPOSITE, Trait.POINTWISE},
    flops=per_element(3),
    decompose=_quantize_rows,
)


def _rows_type(
    name: str, dtype: torch.dtype, x: TensorType, rows: TensorType, q: TensorType, scale: TensorType, *bias: TensorType
) -> TensorType:
    check_matrix(name, q)
    require(x.dtype == q.dtype == dtype, f"{name}: {x} and {q} are not {DTYPE_NAMES[dtype]}")
    require(x.rank >= 1 and x.shape[-1] == q.shape[1], f"{name}: {x} has not the features of the weight {q}")
    require_dtype(name, rows, is_float)
    require(rows.shape == (*x.shape[:-1], 1), f"{name}: {rows} are not the scales of the rows of {x}")
    require(scale.shape == (q.shape[0], 1), f"{name}: {scale} are not the scales of {q}")
    for b in bias:
        require(b.shape == (q.shape[0],), f"{name}: bias {b} does not fit the weight {q}")
    return TensorType((*x.shape[:-1], q.shape[0]), same_dtype(name, (rows, scale, *bias)))


def _int8_type(x: TensorType, rows: TensorType, q: TensorType, scale: TensorType, *bias: TensorType) -> TensorType:
    found = _rows_type("int8_linear", torch.int8, x, rows, q, scale, *bias)
    require(int(q.shape[1]) <= MOST_TERMS, f"int8_linear: sums of {q.shape[1]} terms may not fit an int32")
    return found


def _int8(x: Node, rows: Node, q: Node, scale: Node, *bias: Node) -> Node:
    whole = linear(cast(x, dtype=torch.int32), cast(q, dtype=torch.int32))
    y = mul(mul(cast(whole, dtype=scale.dtype), rows), reshape(scale, shape=(q.shape[0],)))
    return add(y, bias[0]) if bias else y


@evaluated_in_float32
def _scaled(rows: torch.Tensor, scale: torch.Tensor, *bias: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    y = whole.to(scale.dtype) * rows * scale[:, 0]
    return y + bias[0] if bias else y


def _int8_value(
    x: torch.Tensor, rows: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, *bias: torch.Tensor
) -> torch.Tensor:
    # float64 holds these sums exactly, and PyTorch multiplies it faster than integers
    return _scaled(rows, scale, *bias, whole=F.linear(x.double(), q.double()))


# int8_linear(x int8 [..., K], rows [..., 1], q int8 [N, K], scale [N, 1] [, bias [N]]) -> [..., N]: exact sums of
# products, times the scales of row and column
int8_linear = declare(
    "int8_linear",
    infer=_int8_type,
    evaluate=_int8_value,
    arity=(4, 5),
    traits={Trait.COMPOSITE, Trait.CONTRACTION},
    flops=_flops,
    decompose=_int8,
)


def _float8_linear_type(*operands: TensorType) -> TensorType:
    return _rows_type("float8_linear", torch.uint8, *operands)


def _float8_linear(x: Node, rows: Node, q: Node, scale: Node, *bias: Node) -> Node:
    wide = accumulated_dtype(scale.dtype)
    left, right = (float8_value(v) if wide == torch.float32 else cast(float8_value(v), dtype=wide) for v in (x, q))
    y = mul(mul(linear(left, right), _up(rows)), reshape(_up(scale), shape=(q.shape[0],)))
    y = add(y, _up(bias[0])) if bias else y
    return y if y.dtype == scale.dtype else cast(y, dtype=scale.dtype)


def _float8_linear_value(
    x: torch.Tensor, rows: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, *bias: torch.Tensor
) -> torch.Tensor:
    wide = accumulated_dtype(scale.dtype)
    return _scaled(rows, scale, *bias, whole=F.linear(_float8_value(x, wide), _float8_value(q, wide)))


# float8_linear(x float8 [..., K], rows [..., 1], q float8 [N, K], scale [N, 1] [, bias [N]]) -> [..., N]: sums of
# products, each of which is exact, in float32 or wider, times the scales of row and column
float8_linear = declare(
    "float8_linear",
    infer=_float8_linear_type,
    evaluate=_float8_linear_value,
    arity=(4, 5),
    traits={Trait.COMPOSITE, Trait.CONTRACTION},
    flops=_flops,
    decompose=_float8_linear,
)
