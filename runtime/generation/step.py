"""A model as a function of tokens and cache tensors, which is what a call with a cache is captured as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from ...rewrites.quantization import Quantization
from .layers import step_cache, with_source
from .storage import PLAIN, Storage

PREFIX = "model."  # what names of the model's parts begin with in a step


class StepQuantization(Quantization):
    """What was asked for of a model, for its step: ``keep`` has the model's own names."""

    def kept(self, names: Sequence[str]) -> str | None:
        """The pattern by which a layer of one of these names is to stay as it is; None where it is not."""
        return super().kept([name.removeprefix(PREFIX) for name in names])


class CachedStep(nn.Module):
    """A transformers model whose cache is given as tensors. It has no state of its own.

    Args:
        storage: how the tensors of the decoder's cache hold numbers.
    """

    def __init__(self, model: nn.Module, storage: Storage = PLAIN) -> None:
        super().__init__()
        self.model = model
        self.storage = storage
        self.__name__ = f"{type(model).__name__} with a cache"
        self.training = False

    def forward(
        self,
        inputs: Mapping[str, Any],
        keys: list[Tensor],
        values: list[Tensor],
        slot: Tensor,
        kinds: str,
        source_keys: list[Tensor],
        source_values: list[Tensor],
        filled: bool,
        scales: Sequence[Tensor] = (),
    ) -> Any:
        """The model's output without its cache.

        Args:
            inputs: the model's arguments but for the cache; ``encoder_outputs`` is the tensor [B, S, width].
            keys, values: of each layer, [B, H, capacity, D]; written from ``slot`` [] int64 on.
            kinds: a letter for each layer, see :mod:`.layers`.
            source_keys, source_values: of each layer, [B, H, S, D]; empty for a model without a source. They are
                written where they are not ``filled``.
            scales: of the keys and of the values of each layer, [B, H, capacity], where whole numbers have any.
        """
        cache = step_cache(keys, values, slot, kinds, self.storage, scales)
        if source_keys:
            cache = with_source(cache, source_keys, source_values, slot, filled)
        inputs = dict(inputs)
        if "encoder_outputs" in inputs:
            inputs["encoder_outputs"] = BaseModelOutput(last_hidden_state=inputs["encoder_outputs"])
        found = self.model(**inputs, past_key_values=cache, use_cache=True, return_dict=True)
        return type(found)(**{name: value for name, value in found.items() if name != "past_key_values"})
