"""Where the keys and values of one layer lie: tensors with room for what follows, of which the layer shows a part.

transformers' layers keep their meaning: ``layer.keys`` holds what it would hold after the same calls in PyTorch. Where
that grows or slides it is a view of a larger tensor, which kernels write in place: token by token, nothing is copied.
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

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class LayerShape:
    """What a layer's tensors are made as: heads, sizes of a key and a value, dtype, device."""

    heads: int
    key: int
    value: int
    dtype: torch.dtype
    device: torch.device = CPU

    def zeros(self, batch: int, slots: int) -> Pair:
        """Keys and values [B, H, slots, D] of zeros."""
        sizes = (self.key, self.value)
        keys, values = (self._zeros((batch, self.heads, slots, size)) for size in sizes)
        return keys, values

    def _zeros(self, shape: tuple[int, ...]) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)


class LayerMemory:
    """The keys and values of a ``DynamicLayer``.

    Attributes:
        tensors: keys and values [B, H, capacity, D]; None before the first call.
        start: the slot of the first position that the layer shows.
        copied: bytes that were copied, because the layer's tensors were replaced or there was no room.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.tensors: Pair | None = None
        self.start = 0
        self.copied = 0
        self._high = 0  # the slot after the last one that was ever written
        self._shown: tuple[weakref.ref[Tensor], weakref.ref[Tensor]] | None = None
        self._spare: Pair | None = None

    # --- what the layer says ------------------------------------------------------------------------------------------

    def seen(self) -> int:
        """How many positions came before."""
        return int(self.layer.get_seq_length())

    def live(self) -> int:
        """How many of them the layer shows."""
        keys = self.layer.keys
        return 0 if keys is None or not keys.numel() else int(keys.shape[2])

    def batch(self) -> int | None:
        """How many sequences the layer holds; None where it has no tensors yet."""
        keys = self.layer.keys
        return None if keys is None or not keys.numel() else int(keys.shape[0])

    def _shows(self) -> bool:
        """Whether the layer still has the very tensors that it was given."""
        shown = self._shown
        return shown is not None and self.layer.keys is shown[0]() and self.layer.values is shown[1]()

    # --- slots --------------------------------------------------------------------------------------------------------

    def end(self) -> int | None:
        """The slot after the last one; None where what the layer shows does not lie in this memory."""
        live = self.live()
        if self.tensors is None or not live:
            return None
        if self._shows():
            return self.start + live
        layer, (keys, values) = self.layer, self.tensors
        start = slot_within(layer.keys, keys)
        if start is None or start != slot_within(layer.values, values):
            return None
        # cropped: whoever holds an earlier view of what is written anew must not see it change
        if start + live < self._high and (holders(keys) > 2 or holders(values) > 2):
            return None
        self.start = start
        return start + live

    def move(self, batch: int, capacity: int, at: int, shape: LayerShape) -> None:
        """Take new memory, with what the layer shows right before slot ``at``."""
        made, live = shape.zeros(batch, capacity), self.live()
        if live:
            for new, old in zip(made, (self.layer.keys, self.layer.values), strict=True):
                new[:, :, at - live : at] = old[:, :, :live]
                self.copied += nbytes_of(old[:, :, :live])
        self.tensors, self.start, self._high = made, at - live, at
        self._shown = self._spare = None

    def advance(self, count: int) -> None:
        """Let the layer show what a call wrote, ``count`` positions."""
        end = self.start + self.live() + count
        self._begin()
        self._show(self._first(end, count), end)

    def reorder(self, rows: Tensor) -> None:
        """Let sequence i continue what was sequence ``rows[i]``, as beam search does between calls.

        The slots that the layer shows go to other tensors, which take turns with these.
        """
        if self.tensors is None or not self._shows():
            self.layer.reorder_cache(rows)
            return
        start, live, others = self.start, self.live(), self._spare
        # tensors that someone still looks at are not written again
        if others is None or holders(others[0]) > 1 or holders(others[1]) > 1:
            others = (torch.zeros_like(self.tensors[0]), torch.zeros_like(self.tensors[1]))
        for new, old in zip(others, self.tensors, strict=True):
            torch.index_select(old.narrow(2, start, live), 0, rows, out=new.narrow(2, start, live))
            self.copied += nbytes_of(old) * live // old.shape[2]
        self.tensors, self._spare = others, self.tensors
        self._show_again()

    def _show_again(self) -> None:
        """Let the layer show the same slots of tensors that were replaced."""
        self._show(self.start, self.start + int(self.layer.keys.shape[2]))

    def _begin(self) -> None:
        """Tell the layer that it has tensors."""
        layer = self.layer
        if not layer.is_initialized:
            assert self.tensors is not None
            layer.dtype, layer.device = self.tensors[0].dtype, self.tensors[0].device
            layer.is_initialized = True

    def _first(self, end: int, count: int) -> int:
        """The first slot that the layer shows after a call that wrote up to slot ``end``."""
        return self.start

    def _show(self, start: int, end: int) -> None:
        assert self.tensors is not None
        keys, values = self.tensors
        self.start, self._high = start, max(end, self._high)
        self._give(keys.narrow(2, start, end - start), values.narrow(2, start, end - start))

    def _give(self, keys: Tensor, values: Tensor) -> None:
        """Let the layer have these tensors. Nobody else holds them, so that it shows whether the caller does."""
        self.layer.keys, self.layer.values = keys, values
        self._shown = (weakref.ref(keys), weakref.ref(values))


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
        layer = self.layer
        if self.tensors is not None and self._shows():
            return self.seen()
        if not layer.is_initialized or not (is_dense(layer.keys) and is_dense(layer.values)):
            return None
        self.tensors = (layer.keys, layer.values)
        self._give(*self.tensors)
        return self.seen()

    def move(self, batch: int, capacity: int, at: int, shape: LayerShape) -> None:
        """Let the layer make its tensors, or make dense ones of those that it has."""
        layer = self.layer
        if layer.is_initialized:
            self.copied += nbytes_of(layer.keys) + nbytes_of(layer.values)
            self.tensors = (dense_copy(layer.keys), dense_copy(layer.values))
        else:
            layer.lazy_initialization(*shape.zeros(batch, 0))
            self.tensors = (layer.keys, layer.values)
        self._give(*self.tensors)

    def _show_again(self) -> None:
        assert self.tensors is not None
        self._give(*self.tensors)

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


def tell_sizes(layer: Any, tensors: Pair) -> None:
    """Set what transformers notes of a static layer when it makes its tensors."""
    keys, values = tensors
    layer.batch_size, layer.num_heads = keys.shape[:2]
    layer.k_head_dim, layer.v_head_dim = keys.shape[3], values.shape[3]


def slot_within(part: Tensor, whole: Tensor) -> int | None:
    """The slot of ``whole`` [B, H, capacity, D] at which ``part`` [B, H, any, D] begins; None where it is elsewhere."""
    if part.dtype != whole.dtype or part.stride() != whole.stride():
        return None
    if part.ndim != 4 or (*part.shape[:2], part.shape[3]) != (*whole.shape[:2], whole.shape[3]):
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
