"""What a model with weights of few bits means: the same model on the numbers that those bits stand for."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from ...ir import ops
from ...ir.interpret import evaluate
from ...rewrites.quantization import Quantization, quantization_of

M = TypeVar("M", bound=nn.Module)


def dequantised(model: M, quantize: str) -> tuple[M, M, int]:
    """Copies of a model whose linear layers have the numbers that ``compile(quantize=...)`` stores.

    Returns:
        a copy in the model's dtype, for PyTorch to run; one in float32 with the exact numbers; and how many bytes the
        stored weights save. Embeddings keep their own numbers, also where the language head is tied to one.
    """
    settings = quantization_of(quantize)
    assert settings is not None
    own, wide, saved = copy.deepcopy(model), copy.deepcopy(model).float(), 0
    for ours, theirs in zip(own.modules(), wide.modules(), strict=True):
        if isinstance(ours, nn.Linear) and isinstance(theirs, nn.Linear):
            numbers, nbytes = stands_for(ours.weight.detach(), settings)
            saved += ours.weight.nbytes - nbytes
            ours.weight = nn.Parameter(numbers.to(ours.weight.dtype), requires_grad=False)
            theirs.weight = nn.Parameter(numbers, requires_grad=False)
    return own, wide, saved


def stands_for(weight: Tensor, settings: Quantization) -> tuple[Tensor, int]:
    """The numbers that a weight [N, K] becomes, in float32, and the bytes that they are stored in."""
    features = weight.shape[1]
    whole = features + -features % ops.quantize.WORD
    how = {"bits": settings.bits, "group": min(settings.group_size or whole, whole)}
    w = ops.weight(name="w", shape=tuple(weight.shape), dtype=weight.dtype)
    how["float8"] = settings.float8
    scale = ops.weight_scale(w, **how, zeros=False)
    q = ops.quantize_weight(w, scale, **how)
    numbers = ops.dequantize(q, scale, **how, features=features)
    with torch.no_grad():
        scales, stored, found = evaluate([scale, q, numbers], {"w": weight})
    return found.float(), scales.nbytes + stored.nbytes
