"""What a model keeps on itself from call to call, which a graph neither writes nor reads.

A ``forward`` may set attributes of its modules. A compiled call would not, and holds as constants what it reads of
them. So a model is captured only where the first call settles what it sets, as with tables that are computed when they
are first needed. All else is left to PyTorch, for every kind of call: one may read what another one stored.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..frontend.untouched import assigned, untouched, value_of, watched
from .calls import Call
from .state import preserved, same

_VALUES = (bool, int, float, complex, str, type(None))


class _Resettable(Protocol):
    def reset(self) -> None: ...


class Kept:
    """What is known of the state of one model, shared by all that is captured of it.

    Attributes:
        lock: held while the model is traced: its weights have no values then, and no other thread may see them.
        reason: why nothing of it can be captured; "" as far as is known.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.reason = ""
        self._captures: weakref.WeakSet[_Resettable] = weakref.WeakSet()
        self._written: set[str] = set()

    def add(self, captures: _Resettable) -> None:
        """Have captures forgotten where they may hold what is no constant."""
        self._captures.add(captures)

    def clear(self) -> None:
        """Know nothing: the model may be another one by now."""
        self.reason = ""
        self._written.clear()

    def refuse(self, names: Sequence[str]) -> None:
        """Note that calls set attributes, by path: nothing is captured from now on."""
        self.reason = self.reason or f"it keeps {', '.join(names)} from call to call"
        self.forget()

    def wrote(self, names: Sequence[str]) -> None:
        """Note that a call that PyTorch ran set attributes to other values; the first one may be what settles them."""
        if not names or self.reason:
            return
        if self._written.isdisjoint(names):
            self._written.update(names)
            self.forget()  # they may hold what was there before
        else:
            self.refuse(names)

    def forget(self) -> None:
        """Forget all captures."""
        for captures in list(self._captures):
            captures.reset()

    @contextmanager
    def watching(self, model: Callable[..., Any]) -> Iterator[None]:
        """Note what a call sets that is not compiled."""
        if not isinstance(model, nn.Module) or self.reason:
            yield
            return
        with watched(model) as names:
            yield
        self.wrote(names)


_KEPT: weakref.WeakKeyDictionary[nn.Module, Kept] = weakref.WeakKeyDictionary()
_OWN = threading.Lock()


def kept_of(model: Callable[..., Any]) -> Kept:
    """What is known of a model, by whatever it is compiled."""
    if not isinstance(model, nn.Module):
        return Kept()
    with _OWN:
        return _KEPT.setdefault(model, Kept())


def share_kept(part: nn.Module, whole: nn.Module) -> None:
    """Let a part of a model, or what holds it, share what is known of it and its lock, before that is compiled."""
    kept = kept_of(whole)
    with _OWN:
        _KEPT[part] = kept


def settles(model: Callable[..., Any], names: Sequence[str], call: Call, plain: Collection[str] = ()) -> bool:
    """Whether the first call sets attributes once and for all; then they are set afterwards.

    It is tried in PyTorch, on copies: a second call leaves them alone and gives what the first gave, which read none of
    them before it set it, and one of other values, the same ones in the opposite order, sets them alike. Numbers that
    cannot depend on values may be set again to what they are, as a Swin clips its windows to its image in each call: a
    call of other sizes, which is captured anew, may set them otherwise once.

    Args:
        names: what was set while the model was traced, by path.
        plain: those of them that were numbers then, of whatever values the call has.
    """
    if not isinstance(model, nn.Module):
        return False
    first = list(call.leaves)
    other = [leaf.flip(tuple(range(leaf.ndim))) if isinstance(leaf, Tensor) else leaf for leaf in first]
    try:
        with untouched(model):
            with _trial(model), assigned(model, equal=True) as at_first:
                found = _run(model, call, first)
            values = _values(model, names)
            with _trial(model), watched(model) as changed, assigned(model, equal=True) as again:
                repeated = _run(model, call, first)
            known = all(_may_be_kept(value_of(model, name), name in at_first) for name in names)
            if changed or not again.keys() <= set(plain) or not known or not _alike(values, _values(model, names)):
                return False
            if not _agree(found, repeated):
                return False
        with _trial(model), untouched(model):
            _run(model, call, other)
            if not _alike(values, _values(model, names)):
                return False
        with _trial(model), watched(model) as changed:
            _run(model, call, first)
        kept = kept_of(model)
        if again:
            kept.wrote(changed)
        elif changed:
            kept.forget()  # captures of other calls may hold what was there before
    except Exception:  # whatever the model raises: PyTorch runs it then, and says so
        return False
    return not kept.reason


@contextmanager
def _trial(model: nn.Module) -> Iterator[None]:
    with torch.no_grad(), torch.random.fork_rng(devices=[]), preserved(model):
        torch.manual_seed(0)
        yield


def _run(model: nn.Module, call: Call, leaves: Sequence[Any]) -> list[Any]:
    """What the model gives, tensors copied."""
    args, kwargs = pytree.tree_unflatten(_copies(leaves), call.spec)
    return _copies(pytree.tree_leaves(model(*args, **kwargs)))


def _copies(leaves: Sequence[Any]) -> list[Any]:
    return [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _agree(found: Sequence[Any], others: Sequence[Any]) -> bool:
    """Whether two calls gave the same, but for the last bits of sums; objects that hold it otherwise are not opened."""
    return len(found) == len(others) and all(map(_is_near, found, others))


def _is_near(found: Any, other: Any) -> bool:
    if not isinstance(found, Tensor) or not isinstance(other, Tensor):
        return type(found) is type(other) and (type(found) not in _VALUES or bool(found == other))
    if (found.shape, found.dtype) != (other.shape, other.dtype):
        return False
    return same(found, other) or torch.allclose(found, other, rtol=1e-4, atol=1e-6, equal_nan=True)


def _may_be_kept(value: Any, is_assigned: bool) -> bool:
    """Whether a second call that changes an attribute is seen: by the tensors in it, or because it is assigned."""
    if type(value) in _VALUES:
        return is_assigned
    return all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def _values(model: nn.Module, names: Sequence[str]) -> list[Any]:
    """What attributes hold, tensors copied."""
    return _copies(pytree.tree_leaves([value_of(model, name) for name in names]))


def _alike(found: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(found) == len(others) and all(map(_is_same, found, others))


def _is_same(found: Any, other: Any) -> bool:
    if isinstance(found, Tensor):
        like = isinstance(other, Tensor) and found.shape == other.shape and found.dtype == other.dtype
        return like and same(found, other)
    return type(found) is type(other) and bool(found == other)
