"""Where the keys and values of one layer lie: tensors with room for what follows, of which the layer shows a part.

transformers' layers keep their meaning: ``layer.keys`` holds what it would hold after the same calls in PyTorch. Where
that grows or slides it is a view of a larger tensor, which kernels write in place: token by token, nothing is copied.
Where keys and values are stored in fewer bytes (:mod:`.storage`), what the layer holds is a copy, made for who looks
(:mod:`.narrow`).
"""

from __future__ import annotations

import bisect
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..tensors import CPU, is_dense
from .narrow import NarrowLayer, is_written, narrow, parts_as, parts_in, widen
from .storage import PLAIN, Parts, Storage, joined


@dataclass(frozen=True)
class LayerShape:
    """What a layer's tensors are made as: heads, sizes of a key and a value, the model's dtype, device."""

    heads: int
    key: int
    value: int
    dtype: torch.dtype
    device: torch.device = CPU

    def zeros(self, batch: int, slots: int, storage: Storage = PLAIN) -> Parts:
        """Keys and values [B, H, slots, D] of zeros, as they are stored."""
        shapes = [(batch, self.heads, slots, size) for size in (self.key, self.value)]
        keys, values = (storage.zeros(shape, self.dtype, self.device) for shape in shapes)
        return joined(keys, values)


class LayerMemory:
    """The keys and values of a ``DynamicLayer``.

    Attributes:
        tensors: keys and values [B, H, capacity, D], and their scales where they have any; None before the first call.
        storage: how these hold numbers.
        start: the slot of the first position that the layer shows.
        copied: bytes that were copied, because the layer's tensors were replaced or there was no room.
    """

    def __init__(self, layer: Any, storage: Storage = PLAIN) -> None:
        self.layer = layer
        self.storage = storage
        self.tensors: Parts | None = None
        self.start = 0
        self.copied = 0
        self._high = 0  # the slot after the last one that was ever written
        self._shown: tuple[weakref.ref[Tensor], ...] = ()
        self._spare: Parts | None = None
        self._wide: torch.dtype | None = None  # that of the model, once it is known

    # --- what the layer says ------------------------------------------------------------------------------------------

    def seen(self) -> int:
        """How many positions came before."""
        return int(self.layer.get_seq_length())

    def live(self) -> int:
        """How many of them the layer shows."""
        parts = parts_in(self.layer)
        return 0 if not parts or not parts[0].numel() else int(parts[0].shape[2])

    def batch(self) -> int | None:
        """How many sequences the layer holds; None where it has no tensors yet."""
        parts = parts_in(self.layer)
        return None if not parts or not parts[0].numel() else int(parts[0].shape[0])

    def settle(self) -> None:
        """Take what somebody wrote to a copy that the layer let them look at, and hold such copies no longer."""
        if is_written(self.layer):
            widen(self.layer)
        elif isinstance(self.layer, NarrowLayer):
            self.layer.forget()

    def _shows(self) -> bool:
        """Whether the layer still has the very tensors that it was given."""
        parts = parts_in(self.layer)
        if not self._shown or len(parts) != len(self._shown):
            return False
        return all(part is shown() for part, shown in zip(parts, self._shown, strict=True))

    # --- slots --------------------------------------------------------------------------------------------------------

    def end(self) -> int | None:
        """The slot after the last one; None where what the layer shows does not lie in this memory."""
        live = self.live()
        if self.tensors is None or not live:
            return None
        if self._shows():
            return self.start + live
        parts = parts_in(self.layer)
        if len(parts) != len(self.tensors):
            return None
        starts = {slot_within(part, whole) for part, whole in zip(parts, self.tensors, strict=True)}
        (start,) = starts if len(starts) == 1 else (None,)
        if start is None:
            return None
        # cropped: whoever holds an earlier view of what is written anew must not see it change
        if start + live < self._high and any(holders(tensor) > 2 for tensor in self.tensors):
            return None
        self.start = start
        return start + live

    def move(self, batch: int, capacity: int, at: int, shape: LayerShape) -> None:
        """Take new memory, with what the layer shows right before slot ``at``."""
        made, live = shape.zeros(batch, capacity, self.storage), self.live()
        if live:
            for new, old in zip(made, parts_as(self.layer, self.storage), strict=True):
                new[:, :, at - live : at] = old[:, :, :live]
                self.copied += nbytes_of(old[:, :, :live])
        self.tensors, self.start, self._high = made, at - live, at
        self._shown, self._spare, self._wide = (), None, shape.dtype

    def advance(self, count: int) -> None:
        """Let the layer show what a call wrote, ``count`` positions."""
        end = self.start + self.live() + count
        self._begin()
        self._show(self._first(end, count), end)

    def reorder(self, rows: Tensor) -> None:
        """Let sequence i continue what was sequence ``rows[i]``, as beam search does between calls.

        The slots that the layer shows go to other tensors, which take turns with these.
        """
        self.settle()
        if self.tensors is None or not self._shows():
            self.layer.reorder_cache(rows)
            return
        start, live, others = self.start, self.live(), self._spare
        # tensors that someone still looks at are not written again
        if others is None or any(holders(tensor) > 1 for tensor in others):
            others = tuple(map(torch.zeros_like, self.tensors))
        for new, old in zip(others, self.tensors, strict=True):
            torch.index_select(old.narrow(2, start, live), 0, rows, out=new.narrow(2, start, live))
            self.copied += nbytes_of(old) * live // old.shape[2]
        self.tensors, self._spare = others, self.tensors
        self._show_again()

    def _show_again(self) -> None:
        """Let the layer show the same slots of tensors that were replaced."""
        self._show(self.start, self.start + int(parts_in(self.layer)[0].shape[2]))

    def _begin(self) -> None:
        """Tell the layer that it has tensors."""
        layer = self.layer
        if not layer.is_initialized:
            assert self.tensors is not None
            layer.dtype, layer.device = self._wide or self.tensors[0].dtype, self.tensors[0].device
            layer.is_initialized = True

    def _first(self, end: int, count: int) -> int:
        """The first slot that the layer shows after a call that wrote up to slot ``end``."""
        return self.start

    def _show(self, start: int, end: int) -> None:
        assert self.tensors is not None
        self.start, self._high = start, max(end, self._high)
        self._give(tuple(tensor.narrow(2, start, end - start) for tensor in self.tensors))

    def _give(self, parts: Parts) -> None:
        """Let the layer have these tensors. Nobody else holds them, so that it shows whether the caller does."""
        if self.storage.narrow:
            narrow(self.layer, self.storage, parts)
        else:
            self.layer.keys, self.layer.values = parts
        self._shown = tuple(map(weakref.ref, parts))


class SlidingMemory(LayerMemory):
    """That of a ``DynamicSlidingWindowLayer``: it shows the last positions, and those recorded to be cropped."""

    def _first(self, end: int, count: int) -> int:
        """The window begins here: what the next token sees besides itself."""
        self.layer.cumulative_length += count
        return self.start if self.layer.record_past else max(self.start, end - (self.layer.sliding_window - 1))


class StaticSlidingMemory(LayerMemory):
    """That of a ``StaticSlidingWindowLayer``, which shows as many slots as its window has, filled or not."""

    def seen(self) -> int:
        """How many positions came before."""
        return int(self.layer.cumulative_length_int)

    def live(self) -> int:
        """How many of them the layer shows."""
        return min(self.seen(), int(self.layer.max_cache_len))

    def end(self) -> int | None:
        """The slot after the last one; None where what the layer shows does not lie in this memory."""
        if self.tensors is None or not self._shows():
            return None
        if self.start and self.seen() < self.layer.max_cache_len:  # it was reset
            return None
        return self.start + self.live()

    def advance(self, count: int) -> None:
        """Let the layer show what a call wrote, ``count`` positions."""
        layer, window = self.layer, int(self.layer.max_cache_len)
        end = self.start + self.live() + count
        if layer.cumulative_length_int + count <= window:  # the tensor counts no further in transformers either
            layer.cumulative_length.add_(count)
        layer.cumulative_length_int += count
        self._begin()
        start = max(self.start, end - window)
        if start != self.start or not self._shows():
            self._show(start, start + window)

    def _begin(self) -> None:
        super()._begin()
        assert self.tensors is not None
        tell_sizes(self.layer, self.tensors)


class StaticMemory(LayerMemory):
    """That of a ``StaticLayer``: its own tensors, which are as long as they will ever be."""

    _counted: tuple[Tensor, int, int] | None = None  # the layer's counter, its version, and what it said then

    def seen(self) -> int:
        """How many positions came before. A GPU is waited for only where somebody else wrote the layer's counter."""
        counter = self.layer.get_seq_length()
        if not isinstance(counter, Tensor) or counter.is_cpu or counter.is_inference():
            return int(counter)
        known = self._counted
        if known is None or known[0] is not counter or known[1] != counter._version:
            known = self._counted = (counter, counter._version, int(counter))
        return known[2]

    def live(self) -> int:
        """How many positions the layer shows."""
        return self.seen()

    def end(self) -> int | None:
        """The slot after the last one; None where the tensors are not there yet, or kernels cannot write them."""
        parts = parts_in(self.layer)
        if self.tensors is not None and self._shows():
            return self.seen()
        if self.storage.narrow or isinstance(self.layer, NarrowLayer):
            return None
        if not self.layer.is_initialized or not all(map(is_dense, parts)):
            return None
        self.tensors = parts
        self._give(parts)
        return self.seen()

    def move(self, batch: int, capacity: int, at: int, shape: LayerShape) -> None:
        """Let the layer make its tensors, or make dense ones of those that it has."""
        layer = self.layer
        if layer.is_initialized:
            parts = parts_as(layer, self.storage)
            self.copied += sum(map(nbytes_of, parts))
            self.tensors = tuple(map(dense_copy, parts))
        elif self.storage.narrow:
            self.tensors = shape.zeros(batch, capacity, self.storage)
            layer.dtype, layer.device, layer.is_initialized = shape.dtype, shape.device, True
            layer.cumulative_length = layer.cumulative_length.to(shape.device)
            tell_sizes(layer, self.tensors)
        else:
            layer.lazy_initialization(*shape.zeros(batch, 0))
            self.tensors = (layer.keys, layer.values)
        self._give(self.tensors)

    def _show_again(self) -> None:
        assert self.tensors is not None
        self._give(self.tensors)

    def advance(self, count: int) -> None:
        """Count what a call wrote."""
        counter, known = self.layer.cumulative_length, self._counted
        current = known is not None and known[0] is counter and known[1] == counter._version
        counter.add_(count)
        if known is not None and current:
            self._counted = (counter, counter._version, known[2] + count)


class Ranges:
    """The addresses that dense tensors lie at.

    Attributes:
        apart: whether no two of them share memory.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        found = sorted((t.data_ptr(), t.data_ptr() + nbytes_of(t)) for t in tensors if t.numel())
        self._starts, self._ends = [start for start, _ in found], [end for _, end in found]
        self.apart = all(end <= start for end, start in zip(self._ends, self._starts[1:], strict=False))

    def holds(self, start: int, end: int) -> bool:
        """Whether a range shares memory with one of the tensors, which are apart."""
        at = bisect.bisect_left(self._starts, end) - 1
        return start < end and at >= 0 and start < self._ends[at]

    def meets(self, other: Ranges) -> bool:
        """Whether one of the tensors shares memory with one of others."""
        return any(map(self.holds, other._starts, other._ends))


def tell_sizes(layer: Any, tensors: Parts) -> None:
    """Set what transformers notes of a static layer when it makes its tensors."""
    keys, values = tensors[:2]
    layer.batch_size, layer.num_heads = keys.shape[:2]
    layer.k_head_dim, layer.v_head_dim = keys.shape[3], values.shape[3]


def slot_within(part: Tensor, whole: Tensor) -> int | None:
    """The slot of ``whole`` [B, H, capacity, …] at which ``part`` [B, H, any, …] begins; None where it is elsewhere."""
    if part.dtype != whole.dtype or part.stride() != whole.stride():
        return None
    if (*part.shape[:2], *part.shape[3:]) != (*whole.shape[:2], *whole.shape[3:]):
        return None
    if part.untyped_storage().data_ptr() != whole.untyped_storage().data_ptr():
        return None
    first = int(part.storage_offset() - whole.storage_offset())
    slot, rest = divmod(first, int(whole.stride(2)))
    return slot if not rest and slot >= 0 and slot + part.shape[2] <= whole.shape[2] else None


def dense_copy(tensor: Tensor) -> Tensor:
    """A row-major copy."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def holders(tensor: Tensor) -> int:
    """How many tensors lie in a tensor's memory, itself included."""
    storage = tensor.untyped_storage()  # which holds it as well
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1


def nbytes_of(tensor: Tensor) -> int:
    """The bytes of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
