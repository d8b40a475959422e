"""What PyTorch is asked for of products of float32 on a GPU."""

from __future__ import annotations

from typing import Any

import torch


def products_of(backend: str) -> str:
    """How exact float32 products of a backend are to be, as PyTorch names it: ``"ieee"``, ``"tf32"``, ``"bf16"``.

    ``torch.get_float32_matmul_precision`` raises an error where both ways of asking were used; this does not.
    """
    getter: Any = getattr(torch._C, "_get_fp32_precision_getter", None)
    asked = torch.get_float32_matmul_precision() if getter is None else getter(backend, "matmul")
    return "ieee" if asked in ("none", "highest") else str(asked)


def asks_for_tf32() -> bool:
    """Whether products on a GPU may round their operands to TensorFloat-32.

    Asked for by ``torch.set_float32_matmul_precision("high")``, ``torch.backends.cuda.matmul.allow_tf32 = True`` or
    ``torch.backends.cuda.matmul.fp32_precision = "tf32"``.
    """
    return products_of("cuda") != "ieee"
