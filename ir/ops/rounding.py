"""How half types are computed: in float32, rounded once at the end, as PyTorch's own kernels do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..node import Node
from .pointwise import cast

HALF = (torch.float16, torch.bfloat16)


def accumulated_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over elements of ``dtype`` are kept."""
    return torch.float32 if dtype in HALF else dtype


def in_float32(define: Callable[..., Node]) -> Callable[..., Node]:
    """Compute a definition in float32 where the operands are of a half type, and round its result once."""

    def wrapped(*inputs: Node, **attrs: Any) -> Node:
        dtype = inputs[0].dtype
        if dtype not in HALF:
            return define(*inputs, **attrs)
        wide = [cast(x, dtype=torch.float32) if x.dtype == dtype else x for x in inputs]
        return cast(define(*wide, **attrs), dtype=dtype)

    return wrapped


def evaluated_in_float32(evaluate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The same for a meaning: tensors instead of nodes."""

    def wrapped(*inputs: torch.Tensor, **attrs: Any) -> torch.Tensor:
        dtype = inputs[0].dtype
        if dtype not in HALF:
            return evaluate(*inputs, **attrs)
        return evaluate(*(x.float() if x.dtype == dtype else x for x in inputs), **attrs).to(dtype)

    return wrapped
