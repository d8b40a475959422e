"""The built-in models in their tiny sizes, compiled for the GPU and held against PyTorch in float64."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ...runtime.compile import compile
from ..models import load_model

TOLERANCE = 2e-5  # of the largest value of a result, in float32
CALLS = 3  # of which a GPU launches two kernel by kernel and captures the third


def errors_of(spec: str, device: str, calls: int = CALLS) -> list[float]:
    """How far each result of a model is from float64, and each state that it changes, over its largest value.

    The first of ``calls`` launches kernel by kernel, the third replays a graph. A model may go on from the state that
    the call before left.
    """
    found = load_model(spec)
    model, args, kwargs = _on((found.model, tuple(found.args), dict(found.kwargs)), device)
    wide, wide_args, wide_kwargs = _wide(copy.deepcopy((model, args, kwargs)))
    fast = compile(model, target="cuda")
    errors: list[float] = []
    with torch.no_grad():
        for _ in range(calls):
            ours = _values((fast(*args, **kwargs), args, kwargs), model)
            theirs = _values((wide(*wide_args, **wide_kwargs), wide_args, wide_kwargs), wide)
            errors += [_distance(a, b) for a, b in zip(ours, theirs, strict=True)]
    return errors


def _on(parts: Any, device: str) -> Any:
    return pytree.tree_map(lambda x: x.to(device) if isinstance(x, Tensor | nn.Module) else x, parts)


def _wide(parts: Any) -> Any:
    """A model and arguments in float64."""

    def cast(x: Any) -> Any:
        if isinstance(x, nn.Module):
            return x.double()
        return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

    return pytree.tree_map(cast, parts)


def _values(parts: Any, model: nn.Module) -> list[Tensor]:
    """Every tensor among results and arguments, and the model's buffers; as they are now."""
    leaves = [x for x in pytree.tree_leaves(parts) if isinstance(x, Tensor)]
    return [x.detach().to("cpu", copy=True) for x in (*leaves, *model.buffers())]


def _distance(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    wide = expected.double()
    return float((found.double() - wide).abs().max() / wide.abs().max().clamp(min=1))


def worst_error(name: str, device: str, calls: int = CALLS) -> float:
    """The largest error of a model's tiny variant; NaN where a result has one.

    Raises:
        MissingExtraError: the model needs a package that is not installed.
    """
    errors = errors_of(f"zoo:{name}:tiny", device, calls)
    return next((e for e in errors if e != e), max(errors, default=0.0))
