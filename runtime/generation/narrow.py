"""Layers of transformers' caches whose keys and values lie in memory in fewer bytes than the model's.

A layer keeps its identity and takes another class for as long as it is stored so. Whoever looks at ``keys`` or
``values`` gets a copy in the model's dtype. Whoever sets them, or has PyTorch update them, gets a layer of
transformers' own class again, which the next compiled call rounds anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from .storage import Parts, Storage

_PLACES = ("keys", "values")


class NarrowLayer(CacheLayerMixin):  # type: ignore[misc]
    """What such layers share.

    Attributes:
        parts: what the layer shows, as it is stored.
        storage: how.
        wide: transformers' class of the layer.
    """

    _layer_type = None  # by which transformers would make layers of this class
    wide: type
    parts: Parts
    storage: Storage
    dtype: torch.dtype
    _seen: dict[str, tuple[Tensor, int]]  # what was looked at since the last call, and its version then

    @property
    def keys(self) -> Tensor:
        """A copy of the keys [B, H, n, D] in the model's dtype; what is written to it counts until the next call."""
        return self._look(0)

    @keys.setter
    def keys(self, value: Tensor | None) -> None:
        widen(self)
        self.keys = value  # the class is another one now

    @property
    def values(self) -> Tensor:
        """The same of the values."""
        return self._look(1)

    @values.setter
    def values(self, value: Tensor | None) -> None:
        widen(self)
        self.values = value

    def _look(self, which: int) -> Tensor:
        name = _PLACES[which]
        if name not in self._seen:
            with torch.inference_mode(False):  # which tensors have no versions in
                found = self.storage.decode(self.parts[which::2], self.dtype)
            self._seen[name] = (found, found._version)
        return self._seen[name][0]

    def is_written(self) -> bool:
        """Whether somebody wrote to what the layer let them look at."""
        return any(tensor._version != version for tensor, version in self._seen.values())

    def forget(self) -> None:
        """Hold what was looked at no longer."""
        if self._seen:
            self._seen = {}

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """PyTorch's own, on a layer of the model's dtype."""
        widen(self)
        return self.update(*args, **kwargs)

    def reset(self) -> None:
        """Zeros in place, as transformers' static layers do; their counters too."""
        for part in self.parts:
            part.zero_()
        self._seen = {}
        self.is_initialized = False  # or transformers would write zeros to a copy
        super().reset()
        self.is_initialized = True

    def _take(self, parts: Parts) -> None:
        """Show other parts."""
        self.parts, self._seen = parts, {}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let sequence i continue what was sequence ``beam_idx[i]``."""
        if is_written(self):
            widen(self)
            self.reorder_cache(beam_idx)
        else:
            self._take(tuple(part.index_select(0, beam_idx.to(part.device)) for part in self.parts))


class _Growing(NarrowLayer):
    def reset(self) -> None:
        """Without keys and values, as transformers does."""
        self._take(tuple(part[:, :, :0] for part in self.parts))
        widen(self)
        self.reset()


class NarrowDynamicLayer(_Growing, DynamicLayer):  # type: ignore[misc]
    """A ``DynamicLayer`` in fewer bytes."""

    wide = DynamicLayer

    def get_seq_length(self) -> int:
        """How many positions the layer holds."""
        return int(self.parts[0].shape[2])

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` positions."""
        if tokens_to_remove >= 0 or is_written(self):
            widen(self)
            self.crop(tokens_to_remove)
        else:
            self._take(tuple(part[:, :, :tokens_to_remove] for part in self.parts))


class NarrowDynamicSlidingWindowLayer(_Growing, DynamicSlidingWindowLayer):  # type: ignore[misc]
    """A ``DynamicSlidingWindowLayer`` in fewer bytes."""

    wide = DynamicSlidingWindowLayer


class NarrowStaticLayer(NarrowLayer, StaticLayer):  # type: ignore[misc]
    """A ``StaticLayer`` in fewer bytes."""

    wide = StaticLayer


class NarrowStaticSlidingWindowLayer(NarrowLayer, StaticSlidingWindowLayer):  # type: ignore[misc]
    """A ``StaticSlidingWindowLayer`` in fewer bytes."""

    wide = StaticSlidingWindowLayer


_NARROW = {
    found.wide: found
    for found in (
        NarrowDynamicLayer,
        NarrowDynamicSlidingWindowLayer,
        NarrowStaticLayer,
        NarrowStaticSlidingWindowLayer,
    )
}


def class_of(layer: Any) -> type:
    """The class of a layer; transformers' own of one in fewer bytes."""
    return layer.wide if isinstance(layer, NarrowLayer) else type(layer)


def is_written(layer: Any) -> bool:
    """Whether somebody wrote to a copy that a layer in fewer bytes let them look at."""
    return isinstance(layer, NarrowLayer) and layer.is_written()


def narrow(layer: Any, storage: Storage, parts: Parts) -> None:
    """Let an initialized layer show parts."""
    if not isinstance(layer, NarrowLayer):
        for name in _PLACES:
            layer.__dict__.pop(name, None)
        layer.__class__ = _NARROW[type(layer)]
    layer.storage = storage  # another model may have stored it in its own way
    layer._take(parts)


def widen(layer: Any) -> None:
    """Make a layer in fewer bytes one of transformers' own, in the model's dtype."""
    if not isinstance(layer, NarrowLayer):
        return
    found = {name: getattr(layer, name) for name in _PLACES}
    for name in ("parts", "storage", "_seen"):
        layer.__dict__.pop(name, None)
    layer.__class__ = layer.wide
    layer.__dict__.update(found)


def parts_in(layer: Any) -> Parts:
    """What a layer shows, as it is stored; nothing where it has no tensors yet."""
    if isinstance(layer, NarrowLayer):
        return layer.parts
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    return (keys, values) if isinstance(keys, Tensor) and isinstance(values, Tensor) else ()


def parts_as(layer: Any, storage: Storage) -> Parts:
    """What a layer shows, as another storage has it."""
    if isinstance(layer, NarrowLayer) and layer.storage.name == storage.name:  # a copied layer has a copy of it
        return layer.parts
    keys, values = (storage.encode(x) for x in (layer.keys, layer.values))
    return tuple(part for pair in zip(keys, values, strict=True) for part in pair)
