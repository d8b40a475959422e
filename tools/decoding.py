"""Models that decode one token at a time with a static cache: each call takes a token and its position.

The cache is made of buffers of the module, so that a capture sees them change in place. It holds ``context`` positions
for ``batch`` sequences; a call writes the keys and values of its own position and reads those up to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, EncoderDecoderCache, StaticLayer


class StepLayer(StaticLayer):  # type: ignore[misc]
    """The cache of one layer during one call: tensors [B, H, context, D] of the module, written at ``position`` [1]."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.position = keys, values, position
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write keys and values [B, H, 1, D] of this position; the whole cache is returned."""
        self.keys.index_copy_(2, self.position, key_states)
        self.values.index_copy_(2, self.position, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> Tensor:
        """How many positions come before this one."""
        return self.position[0]


class SourceLayer(StepLayer):
    """The keys and values of the source, which a call reads and does not change."""

    def get_seq_length(self) -> Any:
        """How many positions the source has: a number."""
        return self.keys.shape[2]


class DecoderStep(nn.Module):
    """A transformers model with a static cache, called for one token of each sequence.

    Attributes:
        keys_0, values_0, ...: the cache of each layer, [batch, heads, context, head size].
        context: how many positions there are.
    """

    def __init__(self, model: nn.Module, batch: int, context: int) -> None:
        super().__init__()
        self.model, self.batch, self.context = model, batch, context
        config: Any = model.config
        self.layers = int(getattr(config, "num_decoder_layers", None) or config.num_hidden_layers)
        for layer in range(self.layers):
            self._add_cache(layer, "keys", "values", size=context)

    def _add_cache(self, layer: int, *names: str, size: int) -> None:
        config: Any = self.model.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or getattr(config, "d_kv", None)
        shape = (self.batch, heads, size, width or config.hidden_size // config.num_attention_heads)
        for name in names:
            self.register_buffer(f"{name}_{layer}", torch.zeros(shape, dtype=next(self.model.parameters()).dtype))

    def cache(self, position: Tensor) -> Any:
        """The cache as the model takes it."""
        return Cache(layers=[StepLayer(*self.tensors(i), position) for i in range(self.layers)])

    def tensors(self, layer: int) -> tuple[Tensor, Tensor]:
        """The keys and values of a layer."""
        return getattr(self, f"keys_{layer}"), getattr(self, f"values_{layer}")

    def unread_bytes(self, input_ids: Tensor, cache_position: Tensor) -> int:
        """The bytes of the cache past the position of a call, which it does not need."""
        nbytes = sum(buffer.nbytes for buffer in self.buffers(recurse=False))
        return nbytes // self.context * (self.context - 1 - int(cache_position))

    def _check_sizes(self, input_ids: Tensor, position: Tensor) -> None:
        """The cache is made for so many sequences, and a call is for one token of each."""
        if (*input_ids.shape, *position.shape) != (self.batch, 1, 1):
            raise ValueError(
                f"tokens {list(input_ids.shape)} at positions {list(position.shape)}: "
                f"this step is for tokens [{self.batch}, 1] at a position [1]"
            )

    def forward(self, input_ids: Tensor, cache_position: Tensor) -> Tensor:
        """Logits [B, 1, vocab] for the tokens ``input_ids`` [B, 1] at ``cache_position`` [1], both int64."""
        self._check_sizes(input_ids, cache_position)
        found = self.model(
            input_ids=input_ids,
            position_ids=cache_position[None],
            past_key_values=self.cache(cache_position),
            use_cache=True,
        )
        logits: Tensor = found.logits
        return logits


class EncoderDecoderStep(DecoderStep):
    """The decoder of an encoder-decoder model; the keys and values of the source are buffers that no call changes.

    Attributes:
        source_keys_0, source_values_0, ...: [batch, heads, source, head size].
    """

    def __init__(self, model: nn.Module, batch: int, context: int, source: int) -> None:
        super().__init__(model, batch, context)
        for layer in range(self.layers):
            self._add_cache(layer, "source_keys", "source_values", size=source)

    def cache(self, position: Tensor) -> Any:
        """Both caches, the one of the source marked as filled."""
        source = [
            SourceLayer(getattr(self, f"source_keys_{i}"), getattr(self, f"source_values_{i}"), position)
            for i in range(self.layers)
        ]
        both = EncoderDecoderCache(super().cache(position), Cache(layers=source))
        both.is_updated = dict.fromkeys(range(self.layers), True)
        return both

    def unread_bytes(self, input_ids: Tensor, cache_position: Tensor) -> int:
        """None: T5's mask weighs every position."""
        return 0

    def forward(self, input_ids: Tensor, cache_position: Tensor) -> Tensor:
        """Logits [B, 1, vocab] for the tokens ``input_ids`` [B, 1] at ``cache_position`` [1], both int64."""
        config: Any = self.model.config
        self._check_sizes(input_ids, cache_position)
        source: Tensor = self.source_keys_0  # type: ignore[assignment]
        # never read but for its shape: keys and values of the source are in the cache
        encoded = input_ids.new_zeros((self.batch, source.shape[2], config.d_model), dtype=source.dtype)
        model: Any = self.model
        found = model(
            encoder_outputs=(encoded,),
            decoder_input_ids=input_ids,
            past_key_values=self.cache(cache_position),
            use_cache=True,
        )
        logits: Tensor = found.logits
        return logits


def decoder_step(model: nn.Module, batch: int = 1, context: int = 1024, source: int | None = None) -> DecoderStep:
    """A model as one step of decoding, its cache full of random numbers, as after a prompt.

    ``source`` is the length of the source of an encoder-decoder model, None for a model that has no encoder.
    """
    step = DecoderStep(model, batch, context) if source is None else EncoderDecoderStep(model, batch, context, source)
    with torch.no_grad():
        for buffer in step.buffers(recurse=False):
            buffer.normal_()
    return step.eval()
