"""The state of a model: buffers that a call may change, put back after a trial."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..frontend.untouched import untouched


def buffers_of(model: Callable[..., Any]) -> dict[str, Tensor]:
    """A model's buffers by name, each once; none for a function."""
    return dict(model.named_buffers()) if isinstance(model, nn.Module) else {}


@contextmanager
def preserved(model: Callable[..., Any]) -> Iterator[None]:
    """Put the model's buffers back to their values afterwards."""
    kept = [(tensor, tensor.clone()) for tensor in buffers_of(model).values()]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in kept:
                if not same(tensor, value):
                    tensor.copy_(value)


def attributes_preserved(model: Callable[..., Any]) -> AbstractContextManager[Any]:
    """Put the attributes of the model's modules back afterwards."""
    return untouched(model) if isinstance(model, nn.Module) else nullcontext()


def same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors of one type hold the same values, NaN equal to itself."""
    return bool(((left == right) | ((left != left) & (right != right))).all())
