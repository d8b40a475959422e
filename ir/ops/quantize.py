"""Weights in few bits: made once, when a model is loaded, by round to nearest (RTN).

A weight [N, K] has a scale for each row, or for each group of ``group`` terms of a row: ``G = ceil(K / group)`` scales
a row.

==========  =====  =================================================================
bits        zeros  q
==========  =====  =================================================================
8           no     int8 [N, K] in -127 .. 127, worth q * scale
8           yes    uint8 [N, K], worth (q - zero) * scale
8, float8   no     uint8 [N, K], the bits of float8_e4m3fn, worth their number * scale
4           no     int32 [N, ceil(K / 8)], eight to a word, worth (q - 8) * scale
4           yes    int32 [N, ceil(K / 8)], eight to a word, worth (q - zero) * scale
==========  =====  =================================================================

Of a word the lowest four bits are the first term. ``ir.ops.quantized`` reads such weights.

float8_e4m3fn (P. Micikevicius et al., 2022) has four bits of exponent and three of mantissa, subnormal numbers from
2^-9, a largest number of 448, no infinities, and a NaN of either sign. Its bits are held as whole numbers, so that no
operator needs arithmetic of its own for them. A weight has no NaN there: the scale of a row with one is NaN.
"""

from __future__ import annotations

from typing import Any

import torch

from ..node import REQUIRED
from ..types import TensorType
from .base import declare, is_float, per_input_element, require, require_dtype
from .rounding import accumulated_dtype

BITS = (4, 8)
WORD = 8  # numbers of four bits in a word
MIDDLE = 8  # what stands for 0 in four bits without zeros
LARGEST = torch.finfo(torch.float8_e4m3fn).max  # 448
_SETTINGS = {"bits": REQUIRED, "group": REQUIRED}


def groups_of(features: int, group: int) -> int:
    """How many groups a row of a weight has."""
    return -(-features // group)


def stored_shape(rows: int, features: int, bits: int) -> tuple[int, int]:
    """The shape in which a weight of few bits is held."""
    return (rows, features if bits == 8 else groups_of(features, WORD))


def stored_dtype(bits: int, zeros: bool, float8: bool = False) -> torch.dtype:
    """The dtype in which a weight of few bits is held."""
    if bits == 4:
        return torch.int32
    return torch.uint8 if zeros or float8 else torch.int8


def check_settings(name: str, bits: int, group: int, zeros: bool, float8: bool) -> None:
    """Raise TypeRuleError for settings that no weight has."""
    require(bits in BITS, f"{name}: {bits} bits; it is 4 or 8")
    require(not float8 or (bits == 8 and not zeros), f"{name}: float8 has 8 bits and no zeros")
    require(isinstance(group, int) and group > 0, f"{name}: a group of {group} terms")
    require(bits == 8 or group % WORD == 0, f"{name}: a group of {group} terms of 4 bits, where {WORD} share a word")


def check_matrix(name: str, x: TensorType) -> None:
    """Raise TypeRuleError for what is no matrix of fixed sizes."""
    require(x.rank == 2, f"{name}: {x} is not a matrix")
    require(all(isinstance(d, int) and d > 0 for d in x.shape), f"{name}: the sizes of {x} are not fixed")


def _check_weight(name: str, w: TensorType, bits: int, group: int, zeros: bool = False, float8: bool = False) -> None:
    require_dtype(name, w, is_float)
    check_matrix(name, w)
    check_settings(name, bits, group, zeros, float8)


def _per_group(w: TensorType, group: int, dtype: torch.dtype) -> TensorType:
    return TensorType((w.shape[0], groups_of(int(w.shape[1]), group)), dtype)


def _in_groups(w: torch.Tensor, group: int) -> torch.Tensor:
    """[N, K] as [N, G, group], the last group filled up with its row's last number."""
    n, k = w.shape
    missing = -k % group
    if missing:
        w = torch.cat([w, w[:, -1:].expand(n, missing)], 1)
    return w.reshape(n, -1, group)


def _wide(w: torch.Tensor) -> torch.Tensor:
    return w.to(accumulated_dtype(w.dtype))


# --- scales and zeros -------------------------------------------------------------------------------------------------


def _scale_type(w: TensorType, *, bits: int, group: int, zeros: bool, float8: bool) -> TensorType:
    _check_weight("weight_scale", w, bits, group, zeros, float8)
    return _per_group(w, group, accumulated_dtype(w.dtype))


def _scale(w: torch.Tensor, *, bits: int, group: int, zeros: bool, float8: bool) -> torch.Tensor:
    parts = _in_groups(_wide(w), group)
    low, high = parts.amin(2), parts.amax(2)
    if zeros:
        steps: int = 2**bits - 1
        return (high.clamp_min(0) - low.clamp_max(0)) / steps
    if bits == 8:
        return torch.maximum(high, -low) / (LARGEST if float8 else 127)
    # four bits hold -8 but not 8: at -8 is the number that is largest without its sign
    largest: torch.Tensor = torch.where(high >= -low, high, low)
    return largest / -8


# weight_scale(w [N, K]) -> [N, G]
weight_scale = declare(
    "weight_scale",
    infer=_scale_type,
    evaluate=_scale,
    attrs={**_SETTINGS, "zeros": False, "float8": False},
    flops=per_input_element(3),
)


def _zero_type(w: TensorType, scale: TensorType, *, bits: int, group: int) -> TensorType:
    _check_weight("weight_zero", w, bits, group)
    expected = _per_group(w, group, accumulated_dtype(w.dtype))
    require(scale == expected, f"weight_zero: {scale} are not the scales of {w}")
    return expected.with_dtype(torch.uint8)


def _over(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """x / scale, 0 for a scale of 0."""
    return torch.where(scale == 0, 0, x / scale)


def _zero(w: torch.Tensor, scale: torch.Tensor, *, bits: int, group: int) -> torch.Tensor:
    low = _in_groups(_wide(w), group).amin(2).clamp_max(0)
    return torch.round(_over(-low, scale)).clamp(0, 2**bits - 1).to(torch.uint8)


# weight_zero(w [N, K], scale [N, G]) -> uint8 [N, G]: what stands for 0
weight_zero = declare(
    "weight_zero",
    infer=_zero_type,
    evaluate=_zero,
    arity=(2, 2),
    attrs=_SETTINGS,
    flops=per_input_element(1),
)


# --- values -----------------------------------------------------------------------------------------------------------


def _quantize_type(
    w: TensorType, scale: TensorType, *zero: TensorType, bits: int, group: int, float8: bool
) -> TensorType:
    _check_weight("quantize_weight", w, bits, group, bool(zero), float8)
    expected = _per_group(w, group, accumulated_dtype(w.dtype))
    require(scale == expected, f"quantize_weight: {scale} are not the scales of {w}")
    for z in zero:
        require(z == expected.with_dtype(torch.uint8), f"quantize_weight: {z} are not the zeros of {w}")
    shape = stored_shape(int(w.shape[0]), int(w.shape[1]), bits)
    return TensorType(shape, stored_dtype(bits, bool(zero), float8))


def _quantize(
    w: torch.Tensor, scale: torch.Tensor, *zero: torch.Tensor, bits: int, group: int, float8: bool
) -> torch.Tensor:
    features = w.shape[1]
    q = _over(_in_groups(_wide(w), group), scale[:, :, None])
    if float8:
        return float8_bits(q.flatten(1)[:, :features])
    q = torch.round(q)
    middle: Any = zero[0][:, :, None] if zero else MIDDLE if bits == 4 else 0
    low, high = (-127, 127) if bits == 8 and not zero else (0, 2**bits - 1)
    q = (q + middle).clamp(low, high).flatten(1)[:, :features]
    return q.to(stored_dtype(bits, bool(zero))) if bits == 8 else _in_words(q.to(torch.int32))


def float8_bits(x: torch.Tensor) -> torch.Tensor:
    """Numbers as the bits of the nearest float8_e4m3fn, half to even, the largest beyond it; 0 for NaN: uint8."""
    x = x.float().nan_to_num(0.0).clamp(-LARGEST, LARGEST)
    return x.to(torch.float8_e4m3fn).contiguous().view(torch.uint8)


def _in_words(q: torch.Tensor) -> torch.Tensor:
    """Numbers of four bits, eight to a word; after the last stand zeros."""
    q = torch.nn.functional.pad(q, (0, -q.shape[1] % WORD))
    words = q[:, ::WORD].clone()
    for place in range(1, WORD):
        words |= q[:, place::WORD] << 4 * place
    return words


# quantize_weight(w [N, K], scale [N, G] [, zero [N, G]]) -> q, rounded to nearest, half to even
quantize_weight = declare(
    "quantize_weight",
    infer=_quantize_type,
    evaluate=_quantize,
    arity=(2, 3),
    attrs={**_SETTINGS, "float8": False},
    flops=per_input_element(3),
)
