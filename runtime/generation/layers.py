"""The caches that a model sees while a call with a cache is traced: tensors that are written in place, at a slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, EncoderDecoderCache, StaticLayer

from .storage import PLAIN, Parts, Storage, joined

FULL, SLIDING = "f", "s"


class StepLayer(StaticLayer):  # type: ignore[misc]
    """The cache of one layer during one call: keys and values [B, H, capacity, D], written from ``slot`` [] int64 on.

    The model sees all slots as they are stored: what it writes is rounded before it is read.

    A slot is a place in these tensors. Causal masks compare slots, which are as far from each other as positions are.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, slot: Tensor, storage: Storage = PLAIN, scales: Parts = ()
    ) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.slot = keys, values, slot
        self.storage, self.scales = storage, scales
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, H, Q, D]; all slots are returned."""
        slots = torch.arange(key_states.shape[2], device=self.device) + self.slot
        parts, storage = (self.keys, self.values, *self.scales), self.storage
        written = joined(storage.encode(key_states), storage.encode(value_states))
        for part, new in zip(parts, written, strict=True):
            part.index_copy_(2, slots, new)
        return storage.decode(parts[::2], key_states.dtype), storage.decode(parts[1::2], value_states.dtype)

    def get_seq_length(self) -> Any:
        """How many slots come before this call's."""
        return self.slot


class SlidingStepLayer(StepLayer):
    """The same for a layer that sees the last positions only: its mask says which."""

    is_sliding = True


class SourceLayer(StepLayer):
    """Keys and values of the source, as many as there are slots: written by the first call, then read."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, H, S, D], all slots."""
        slots = torch.arange(key_states.shape[2], device=self.device)
        self.keys.index_copy_(2, slots, key_states)
        self.values.index_copy_(2, slots, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> Any:
        """How many positions the source has."""
        return self.keys.shape[2]


_KINDS = {FULL: StepLayer, SLIDING: SlidingStepLayer}


def step_cache(
    keys: list[Tensor],
    values: list[Tensor],
    slot: Tensor,
    kinds: str,
    storage: Storage = PLAIN,
    scales: Sequence[Tensor] = (),
) -> Cache:
    """The cache of a decoder; ``kinds`` is a letter for each layer, ``scales`` are two for each where there are any."""
    layers = []
    for i, (kind, k, v) in enumerate(zip(kinds, keys, values, strict=True)):
        layers.append(_KINDS[kind](k, v, slot, storage, tuple(scales[2 * i : 2 * i + 2])))
    return Cache(layers=layers)


def with_source(cache: Cache, keys: list[Tensor], values: list[Tensor], slot: Tensor, filled: bool) -> Cache:
    """The same with the source's keys and values; ``filled`` where an earlier call wrote them."""
    source = Cache(layers=[SourceLayer(k, v, slot) for k, v in zip(keys, values, strict=True)])
    both = EncoderDecoderCache(cache, source)
    both.is_updated = dict.fromkeys(range(len(keys)), filled)
    return both
