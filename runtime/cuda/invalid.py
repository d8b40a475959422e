"""What results are where an index was out of range and nobody waited to find out: no number."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int64, torch.int32)


def has_invalid(dtype: torch.dtype) -> bool:
    """Whether a dtype has a value that no result is taken for: NaN, or the lowest integer of 32 or 64 bits."""
    return dtype in _FLOATS or dtype in _INTEGERS


def invalid(dtype: torch.dtype, device: torch.device) -> Tensor:
    """That value [] on a device."""
    value = math.nan if dtype.is_floating_point else torch.iinfo(dtype).min
    return torch.full((), value, dtype=dtype, device=device)
