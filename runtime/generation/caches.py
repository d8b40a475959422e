"""A cache of transformers as the tensors of a call: which slots it fills, and what the cache says afterwards."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    EncoderDecoderCache,
    StaticCache,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from ..tensors import CPU, is_dense
from .layers import FULL, SLIDING
from .memory import (
    LayerMemory,
    LayerShape,
    Ranges,
    SlidingMemory,
    StaticMemory,
    StaticSlidingMemory,
    nbytes_of,
    tell_sizes,
)
from .narrow import class_of, parts_in
from .storage import PLAIN, Storage

LEAST_ROOM = 64  # slots of a cache that grows
MOST_ASKED = 4096  # slots made at once for what a call of generate may need

_MEMORY: dict[type, tuple[type[LayerMemory], str]] = {
    DynamicLayer: (LayerMemory, FULL),
    DynamicSlidingWindowLayer: (SlidingMemory, SLIDING),
    StaticLayer: (StaticMemory, FULL),
    StaticSlidingWindowLayer: (StaticSlidingMemory, SLIDING),
}


class Unfit(Exception):
    """A call with this cache runs in PyTorch; the message says why."""


class DecoderMemory:
    """The memory of a decoder's own cache. All layers write the same slots.

    A slot is a position, but where all layers slide: then positions that no layer shows may be dropped, and ``base`` is
    the position of slot 0.

    Attributes:
        kinds: a letter for each layer, see :mod:`.layers`.
        capacity: how many slots there are.
        slot: the first one that the next call writes.
        keys, values: of each layer, [B, H, capacity, D], as they are stored.
        scales: of keys and of values of each layer, [B, H, capacity]; none where ``storage`` has none.
        ranges, shapes, nbytes: the addresses of these tensors, what they are, and their bytes together.
    """

    def __init__(self, cache: Cache, device: torch.device = CPU, storage: Storage = PLAIN) -> None:
        check_cache(cache, device)
        self.layers = [_MEMORY[class_of(layer)][0](layer, storage) for layer in cache.layers]
        self.kinds = "".join(_MEMORY[class_of(layer)][1] for layer in cache.layers)
        fixed = {int(layer.max_cache_len) for layer in cache.layers if class_of(layer) is StaticLayer}
        if len(fixed) > 1:
            raise Unfit("its layers have different lengths")
        self.fixed = fixed.pop() if fixed else None
        self.window = max((_window(layer) for layer in cache.layers), default=0)
        self.slides = FULL not in self.kinds
        self.capacity = self.slot = self.base = 0
        self._take_tensors()

    @property
    def copied(self) -> int:
        """Bytes of keys and values that were copied."""
        return sum(layer.copied for layer in self.layers)

    def take_copied(self) -> int:
        """The bytes that were copied since this was last asked."""
        found = self.copied
        for layer in self.layers:
            layer.copied = 0
        return found

    def matches(self, cache: Cache) -> bool:
        """Whether a cache still has the layers that this is for."""
        return len(cache.layers) == len(self.layers) and all(
            memory.layer is layer for memory, layer in zip(self.layers, cache.layers, strict=True)
        )

    def prepare(self, batch: int, count: int, asked: int, shapes: Callable[[], Sequence[LayerShape]]) -> None:
        """Make room for ``count`` positions of ``batch`` sequences; ``asked`` is how many there may be in all.

        Raises:
            Unfit: the layers are not at one position, or hold another number of sequences.
        """
        for layer in self.layers:
            layer.settle()
        seen = {layer.seen() for layer in self.layers}
        if len(seen) != 1:
            raise Unfit("its layers are at different positions")
        (position,) = seen
        ends = {layer.end() for layer in self.layers}
        (end,) = ends if len(ends) == 1 else (None,)
        room = end is not None and (self.fixed is not None or end + count <= self.capacity)
        if end is None or not room or self._replaced():
            end = self._move(batch, count, position, asked, shapes)
        self.slot, self.base = end, position - end

    def _replaced(self) -> bool:
        """Whether a static layer has other tensors than in the last call."""
        return len(self.keys) != len(self.layers) or any(
            layer.tensors is None or layer.tensors[0] is not keys
            for layer, keys in zip(self.layers, self.keys, strict=True)
        )

    def _move(
        self, batch: int, count: int, position: int, asked: int, shapes: Callable[[], Sequence[LayerShape]]
    ) -> int:
        at = position
        if self.slides and position > 2 * self.window:
            at = max(layer.live() for layer in self.layers)
        capacity = self.fixed
        if capacity is None:
            capacity = max(_room(at + count, asked - position + at), self.window)
        moved = [layer for layer in self.layers if not isinstance(layer, StaticMemory) or layer.end() is None]
        held = {layer.batch() for layer in moved} - {None, batch}
        if held:  # what moves would be repeated, where PyTorch refuses the call
            raise Unfit(f"the cache is of {held.pop()} sequences, and the call of {batch}")
        for layer, shape in zip(self.layers, shapes(), strict=True):
            if layer in moved:
                layer.move(batch, capacity, at, shape)
        self.capacity = capacity
        self._take_tensors()
        return at

    def _take_tensors(self) -> None:
        parts = [layer.tensors for layer in self.layers if layer.tensors is not None]
        self.keys, self.values = [found[0] for found in parts], [found[1] for found in parts]
        self.scales = [part for found in parts for part in found[2:]]
        every = (*self.keys, *self.values, *self.scales)
        self.ranges, self.shapes, self.nbytes = Ranges(every), shapes_of(every), sum(map(nbytes_of, every))

    def reorder(self, rows: Tensor) -> None:
        """Let sequence i continue what was sequence ``rows[i]``."""
        for layer in self.layers:
            layer.reorder(rows)
        self._take_tensors()

    def advance(self, count: int) -> None:
        """Let the cache say that ``count`` positions were written."""
        for layer in self.layers:
            layer.advance(count)


class SourceMemory:
    """The keys and values of the source of an encoder-decoder model.

    Attributes:
        filled: whether an earlier call wrote them.
    """

    def __init__(self, cache: Cache) -> None:
        for layer in cache.layers:
            if type(layer) not in (DynamicLayer, StaticLayer):
                raise Unfit(f"{type(layer).__name__} for the source")
        self.filled = False
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.ranges, self.shapes = Ranges(()), shapes_of(())

    def prepare(
        self, cache: EncoderDecoderCache, batch: int, length: int, shapes: Callable[[], Sequence[LayerShape]]
    ) -> None:
        """Have the tensors of the source, of ``length`` positions where they are not filled."""
        layers = cache.cross_attention_cache.layers
        filled = {bool(cache.is_updated.get(i)) for i in range(len(layers))} or {False}
        if len(filled) != 1:
            raise Unfit("some layers have seen the source and others have not")
        (self.filled,) = filled
        if not self.filled:
            if any(layer.max_cache_len != length for layer in layers if type(layer) is StaticLayer):
                raise Unfit("its cache for the source is not as long as the source")
            pairs = [shape.zeros(batch, length) for shape in shapes()]
            self._take([keys for keys, _ in pairs], [values for _, values in pairs])
            return
        for layer in layers:
            if not (is_dense(layer.keys) and is_dense(layer.values)):
                layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
        self._take([layer.keys for layer in layers], [layer.values for layer in layers])

    def _take(self, keys: list[Tensor], values: list[Tensor]) -> None:
        same = len(keys) == len(self.keys) and all(map(operator.is_, keys, self.keys))
        if not same or not all(map(operator.is_, values, self.values)):
            self.keys, self.values = keys, values
            self.ranges, self.shapes = Ranges((*keys, *values)), shapes_of((*keys, *values))

    def advance(self, cache: EncoderDecoderCache) -> None:
        """Let the cache say that the source was seen."""
        if self.filled:
            return
        layers = cache.cross_attention_cache.layers
        for i, (layer, keys, values) in enumerate(zip(layers, self.keys, self.values, strict=True)):
            layer.dtype, layer.device = keys.dtype, keys.device
            layer.keys, layer.values, layer.is_initialized = keys, values, True
            if type(layer) is StaticLayer:
                tell_sizes(layer, (keys, values))
                layer.cumulative_length.add_(keys.shape[2])
            cache.is_updated[i] = True


def shapes_of(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """What decides which capture tensors are for."""
    return tuple((tensor.shape, tensor.dtype) for tensor in tensors)


def check_cache(cache: Any, device: torch.device = CPU) -> None:
    """Raise Unfit for a cache that calls run in PyTorch with."""
    if type(cache) not in (Cache, DynamicCache, StaticCache):
        raise Unfit(f"{type(cache).__name__} is a kind of cache that kernels do not write")
    if cache.offloading:
        raise Unfit("an offloaded cache moves between devices")
    for layer in cache.layers:
        if class_of(layer) not in _MEMORY:
            raise Unfit(f"{type(layer).__name__} is a kind of cache that kernels do not write")
        parts = parts_in(layer) if layer.is_initialized else ()
        if parts and parts[0].device != device:
            raise Unfit(f"its tensors are on {parts[0].device}")


def _window(layer: Any) -> int:
    return int(getattr(layer, "sliding_window", 0) or (layer.max_cache_len if layer.is_sliding else 0))


def _room(needed: int, asked: int) -> int:
    """How many slots to make where ``needed`` are used at once, and ``asked`` may be in the end."""
    grown = max(LEAST_ROOM, needed + needed // 2)
    return min(asked, max(grown, MOST_ASKED)) if asked >= needed else grown
