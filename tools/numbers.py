"""Which numbers a model is on: the dtype of its weights and inputs, and what its weights are quantised to.

``bf16`` is a dtype, ``bf16+int4`` bfloat16 with the weights of linear layers in four bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ..rewrites.quantization import NAMED, Quantization
from .errors import ModelError
from .models import Model, load_model

DTYPES: Mapping[str, torch.dtype] = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def numbers_of(text: str) -> tuple[torch.dtype, Quantization | None]:
    """The dtype and the quantisation that a text names.

    Raises:
        ModelError: it names none.
    """
    dtype, plus, quantize = text.partition("+")
    if dtype not in DTYPES or (plus and quantize not in NAMED):
        raise ModelError(
            f"there are no numbers {text!r}: say {', '.join(DTYPES)}, and after a + {', '.join(NAMED)}, as bf16+int4"
        )
    return DTYPES[dtype], NAMED[quantize] if plus else None


def load_on(spec: str, dtype: torch.dtype) -> Model:
    """The model that a command line names, its weights and floating-point inputs in a dtype.

    Raises:
        ModelError: there is no such model, or it is not a module and so has no weights to convert.
        UserCodeError: importing or making it raised.
    """
    model = load_model(spec)
    if dtype == torch.float32:
        return model
    if not isinstance(model.model, nn.Module):
        raise ModelError(f"{spec} is not a module: its weights cannot be made {dtype}")

    def cast(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    args, kwargs = pytree.tree_map(cast, (tuple(model.args), dict(model.kwargs)))
    return replace(model, model=model.model.to(dtype), args=args, kwargs=kwargs)
