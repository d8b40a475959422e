"""One lock for each model: while it is traced its weights are tensors without values, which no other thread may see."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from torch import nn

Lock = Any  # threading.RLock is a function

_LOCKS: weakref.WeakKeyDictionary[nn.Module, Lock] = weakref.WeakKeyDictionary()
_OWN = threading.Lock()


def lock_of(model: Any) -> Lock:
    """The lock of a model, by whatever it is compiled; a new one for what is no module."""
    if not isinstance(model, nn.Module):
        return threading.RLock()
    with _OWN:
        return _LOCKS.setdefault(model, threading.RLock())


def share_lock(part: nn.Module, whole: nn.Module) -> None:
    """Let a part of a model, or what holds the model, have the model's lock. To call before it is compiled."""
    lock = lock_of(whole)
    with _OWN:
        _LOCKS[part] = lock
