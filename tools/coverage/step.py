"""One step of decoding as transformers does it with its own static cache, after a prompt that eager has read.

The cache's tensors are buffers of the module, so that a capture sees them change in place. What the cache counts in
Python, a sliding window's fill for one, is put back before every call: a call is always the one after the prompt.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, EncoderDecoderCache, StaticCache

from .architectures import Inputs

TENSORS = ("keys", "values", "cumulative_length")


class CachedStep(nn.Module):
    """A model with a static cache, called for one token of each sequence.

    Attributes:
        keys_0, values_0, cumulative_length_0, ...: the cache of each layer, that of the source after those of the
            target where there is one.
    """

    def __init__(self, model: nn.Module, prompt: Inputs, context: int, masked: bool = False) -> None:
        super().__init__()
        self.model, self.context, self.masked = model, context, masked
        self.cache = make_cache(model, context, source_length(prompt))
        self.extra = extra_arguments(model, prompt)
        with torch.no_grad():
            read_prompt(model, prompt, self.cache)
        self.layers = list(cache_layers(self.cache))
        self.counts = [getattr(layer, "cumulative_length_int", None) for layer in self.layers]
        for i, layer in enumerate(self.layers):
            for name in TENSORS:
                self.register_buffer(f"{name}_{i}", getattr(layer, name).clone())

    def forward(self, tokens: Tensor, position: Tensor) -> Tensor:
        """Logits [B, 1, vocab] for tokens [B, 1] at a position [1], both int64."""
        for i, (layer, count) in enumerate(zip(self.layers, self.counts, strict=True)):
            for name in TENSORS:
                setattr(layer, name, getattr(self, f"{name}_{i}"))
            if count is not None:
                layer.cumulative_length_int = count
        named = {"decoder_input_ids" if self.is_encoder_decoder else "input_ids": tokens}
        if takes(self.model, "position_ids"):
            named["position_ids"] = position[None].expand(tokens.shape[0], 1)
        if self.masked:
            named["attention_mask"] = (torch.arange(self.context) <= position).long()[None].expand(tokens.shape[0], -1)
        found = self.model(**named, **self.extra, past_key_values=self.cache, use_cache=True)
        logits: Tensor = found.logits
        return logits

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the cache is one of a decoder that reads an encoder's result."""
        return isinstance(self.cache, EncoderDecoderCache)


def cache_layers(cache: Any) -> list[Any]:
    """The layers of a cache, or of both that it consists of."""
    if isinstance(cache, EncoderDecoderCache):
        return [*cache.self_attention_cache.layers, *cache.cross_attention_cache.layers]
    return list(cache.layers)


def make_cache(model: nn.Module, context: int, source: int | None) -> Cache:
    """An empty static cache of ``context`` positions, and one of the source's length where the model has an encoder."""
    config: Any = model.config
    own = StaticCache(config=config, max_cache_len=context)
    if not config.is_encoder_decoder:
        return own
    return EncoderDecoderCache(own, StaticCache(config=config, max_cache_len=source or context))


def source_length(prompt: Inputs) -> int | None:
    """How many positions an encoder's result has: half the frames of speech, which the second convolution skips."""
    if "input_features" in prompt:
        return prompt["input_features"].shape[-1] // 2
    return prompt["input_ids"].shape[1]


def read_prompt(model: Any, prompt: Inputs, cache: Any) -> None:
    """Run the model in eager PyTorch, so that the cache holds the prompt."""
    model(**prompt, past_key_values=cache, use_cache=True)


def extra_arguments(model: Any, prompt: Inputs) -> dict[str, Any]:
    """What a step gets besides its token: of an encoder's result only the shape is read, for its keys are cached."""
    if not model.config.is_encoder_decoder:
        return {}
    source = source_length(prompt)
    batch = prompt["decoder_input_ids"].shape[0]
    return {"encoder_outputs": (torch.zeros(batch, source or 0, model.config.d_model),)}


def takes(model: Any, name: str) -> bool:
    """Whether the model's forward has such an argument."""
    return name in inspect.signature(model.forward).parameters
