"""Copies of weights that several graphs need, kept once: the graphs of one model pack the same weights in the same way.

Equal copies are found by their values, so that nothing need be known of where they come from, and none can be stale.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor

LEAST_BYTES = 1 << 12  # smaller ones are not worth a comparison
_SAMPLES = 64

_lock = threading.RLock()  # taken again where a collection ends a shared tensor meanwhile
_known: dict[Any, weakref.WeakSet[_Held]] = {}


class _Held:
    """A tensor that is shared. Weak references to tensors themselves do not outlive changes of their Python objects."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def shared(made: Tensor) -> tuple[Tensor, Any]:
    """A tensor of these values that is kept already, or else this one, which is kept from now on.

    The tensor must never be written to. It is kept for as long as somebody holds the second result.

    Args:
        made: a dense tensor in memory of its own.
    """
    if made.nbytes < LEAST_BYTES or not made.is_contiguous():
        return made, None
    key = (made.shape, made.dtype, made.device, _sample(made))
    with _lock:
        held = _known.setdefault(key, weakref.WeakSet())
        for other in held:
            if _equal(other.tensor, made):
                return other.tensor, other
        new = _Held(made)
        held.add(new)
        weakref.finalize(new, _forget, key)
    return made, new


def nothing_shared() -> bool:
    """Whether nothing is kept."""
    return not _known


def _forget(key: Any) -> None:
    with _lock:
        held = _known.get(key)
        if held is not None and not any(True for _ in held):  # its length still counts the one that ended
            del _known[key]


def _bytes(tensor: Tensor) -> Tensor:
    flat = tensor.view(-1).view(torch.uint8)
    return flat.view(torch.int64) if flat.numel() % 8 == 0 else flat


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(_bytes(one), _bytes(other))


def _sample(tensor: Tensor) -> tuple[int, ...]:
    """Some of the values: nearly always other ones in another weight."""
    flat = _bytes(tensor)
    found: list[int] = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES].tolist()
    return tuple(found)
