"""What the tensors of a model's caches are made as: by its config first, then as PyTorch was seen to make them."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache

from .caches import Unfit
from .memory import LayerShape
from .narrow import NarrowLayer, parts_in

DECODER, SOURCE = "decoder", "source"


class Shapes:
    """The layers' shapes of one model's caches."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._known: dict[str, list[LayerShape]] = {}

    def of(self, which: str, cache: Any) -> list[LayerShape]:
        """Those of a decoder's cache, or of one for the source."""
        known = shapes_in(cache) or self._known.get(which) or self._guess(len(cache.layers))
        if len(known) != len(cache.layers):
            raise Unfit("the cache has another number of layers than the model")
        return known

    def _guess(self, layers: int) -> list[LayerShape]:
        """By the config. Where it is wrong the step cannot be captured, PyTorch runs the call, and we learn."""
        try:
            heads, width = _heads_and_width(self.model.config.get_text_config(decoder=True))
        except Exception as error:  # as of a config whose layers differ
            raise Unfit("its config does not say what the tensors of a cache are") from error
        return [LayerShape(heads, width, width, self.model.dtype, self.model.device)] * layers

    def learn(self, cache: Any) -> bool:
        """Remember how PyTorch made a cache; whether that is new."""
        parts = {DECODER: cache}
        if type(cache) is EncoderDecoderCache:
            parts = {DECODER: cache.self_attention_cache, SOURCE: cache.cross_attention_cache}
        seen = {which: shapes_in(part) for which, part in parts.items() if isinstance(part, Cache)}
        new = {which: shapes for which, shapes in seen.items() if shapes and shapes != self._known.get(which)}
        self._known.update(new)
        return bool(new)

    def fill(self, cache: Any) -> None:
        """Give a cache that makes its layers when they are first written the layers of the model."""
        if type(cache) is DynamicCache and not cache.layers and cache.layer_class_to_replicate is not None:
            made = DynamicCache(config=self.model.config.get_text_config(decoder=True))
            cache.layers.extend(cache.layer_class_to_replicate() for _ in made.layers)


def _heads_and_width(config: Any) -> tuple[int, int]:
    """The heads of keys and values, and the size of each."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
    return heads, width or config.hidden_size // config.num_attention_heads


def shapes_in(cache: Any) -> list[LayerShape]:
    """What a cache's tensors are made as; none where there are none yet."""
    found = []
    for layer in cache.layers:
        parts = parts_in(layer)
        if not parts or parts[0].ndim != 4:
            return []
        keys, values = parts[:2]
        dtype = layer.dtype if isinstance(layer, NarrowLayer) else keys.dtype
        found.append(LayerShape(keys.shape[1], keys.shape[3], values.shape[3], dtype, keys.device))
    return found
