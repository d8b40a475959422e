"""All lowerings of ATen operators: importing this module fills the table."""

from __future__ import annotations

from . import (
    aten_binary,
    aten_create,
    aten_experts,
    aten_index,
    aten_linear,
    aten_norm,
    aten_order,
    aten_pointwise,
    aten_pool,
    aten_recurrent,
    aten_reduce,
    aten_view,
)
from .table import LOWERINGS

__all__ = [
    "LOWERINGS",
    "aten_binary",
    "aten_create",
    "aten_experts",
    "aten_index",
    "aten_linear",
    "aten_norm",
    "aten_order",
    "aten_pointwise",
    "aten_pool",
    "aten_recurrent",
    "aten_reduce",
    "aten_view",
]
