"""Whether what a model keeps on itself from call to call changes results: a graph neither writes nor reads it.

A ``forward`` may set attributes of its modules. Where no later call reads them, as where the last attention weights are
kept to be looked at, results are the same without; so too of a tensor that every call would compute alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from .calls import Call
from .state import attributes_preserved, preserved, same

_VALUES = (bool, int, float, complex, str)


def state_matters(model: Callable[..., Any], call: Call) -> bool:
    """Whether a call gives another result after an earlier one, tried in PyTorch: after itself and after other values.

    The other values are the same ones in the opposite order. A model that refuses one of the calls is taken to be one
    whose state matters.
    """
    first = list(call.leaves)
    other = [leaf.flip(tuple(range(leaf.ndim))) if isinstance(leaf, Tensor) else leaf for leaf in first]
    try:
        return any(
            not _alike(_last_of(model, call, [last]), _last_of(model, call, [first, last])) for last in (first, other)
        )
    except Exception:  # whatever the model raises: PyTorch runs it then, and says so
        return True


def _last_of(model: Callable[..., Any], call: Call, calls: Sequence[list[Any]]) -> list[Any]:
    """The leaves of the last call's result. The model is left as it was, and arguments are copies."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]), preserved(model), attributes_preserved(model):
        for leaves in calls:
            copies = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            args, kwargs = pytree.tree_unflatten(copies, call.spec)
            torch.manual_seed(0)
            found = model(*args, **kwargs)
        return [x.clone() if isinstance(x, Tensor) else x for x in pytree.tree_leaves(found)]


def _alike(found: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(found) == len(others) and all(map(_is_same, found, others))


def _is_same(found: Any, other: Any) -> bool:
    if isinstance(found, Tensor):
        like = isinstance(other, Tensor) and found.shape == other.shape and found.dtype == other.dtype
        return like and same(found, other)
    return not isinstance(found, _VALUES) or bool(found == other)
