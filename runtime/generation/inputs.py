"""A call's arguments as a step takes them: masks by slot, the encoder's output as a tensor, only what matters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...frontend.arguments import CONSTANTS
from ...frontend.capture import signature_of
from .caches import DecoderMemory, SourceMemory, Unfit

CACHE = "past_key_values"
ATTENTION = ("sdpa", "eager")  # whose masks hide slots that are not filled
OUTPUTS = ("output_hidden_states", "output_router_logits")  # what a call returns as the config says, unless it is told


class UnfitMask(Unfit):
    """The attention mask is one that no capture takes, be it with a cache or without."""


class Arguments:
    """How the calls of one model are read.

    Attributes:
        has_source: whether it is an encoder with a decoder.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.signature = signature_of(model)
        parameters = self.signature.parameters if self.signature else {}
        self._optional = {name for name, p in parameters.items() if p.default is None}
        self._keeps_logits = "logits_to_keep" in parameters
        self._rest = next((name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD), "")
        self._from_config = [name for name in OUTPUTS if name in parameters or self._rest]
        self.has_source = bool(model.config.is_encoder_decoder)
        prefix = "decoder_" if self.has_source else ""
        self._mask, self._ids, self._embeds = (f"{prefix}{n}" for n in ("attention_mask", "input_ids", "inputs_embeds"))

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments by name."""
        if not args or self.signature is None:
            return dict(kwargs)
        bound = dict(self.signature.bind_partial(*args, **kwargs).arguments)
        rest = bound.pop(self._rest, {})
        return {**bound, **rest}

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise Unfit for calls whose results slots that are not filled would change."""
        model, config = self.model, self.model.config
        if not getattr(model, "_can_compile_fullgraph", False):
            raise Unfit(f"transformers has no static cache for {type(model).__name__}")
        if config._attn_implementation not in ATTENTION:
            raise Unfit(f"attention is {config._attn_implementation}")
        asked = given.get("output_attentions")
        if config.output_attentions if asked is None else asked:
            raise Unfit("attention weights were asked for")
        if given.get("use_cache") is False:
            raise Unfit("use_cache is False")
        if given.get("labels") is not None:
            raise Unfit("labels were given")

    def tokens(self, given: Mapping[str, Any]) -> tuple[int, int]:
        """How many sequences a call has, and how many tokens of each."""
        for name in (self._ids, self._embeds):
            tokens = given.get(name)
            if isinstance(tokens, Tensor) and tokens.ndim >= 2:
                return tokens.shape[0], tokens.shape[1]
        raise Unfit("there are no tokens")

    def source_length(self, given: Mapping[str, Any]) -> int:
        """How many positions the source has."""
        encoded = given.get("encoder_outputs")
        seen = encoded[0] if encoded is not None else given.get("input_ids")
        if not isinstance(seen, Tensor):
            raise Unfit("the source is not given as tokens or as what its encoder returned")
        return int(seen.shape[1])

    def inputs(self, given: Mapping[str, Any], memory: DecoderMemory, batch: int, count: int) -> dict[str, Any]:
        """The arguments of a step."""
        found = {
            name: value
            for name, value in given.items()
            if name not in (CACHE, "use_cache", "return_dict") and not (value is None and name in self._optional)
        }
        if self.has_source and "encoder_outputs" in found:
            found["encoder_outputs"] = found["encoder_outputs"][0]
        mask = found.get(self._mask)
        if mask is not None:
            found[self._mask] = _mask_of_slots(mask, memory, batch)
        elif self.has_source:  # BART makes one of as many positions as were seen, which no capture knows
            found[self._mask] = torch.ones(batch, memory.capacity, dtype=torch.bool, device=self.model.device)
        if memory.base and found.get("position_ids") is None:
            positions = torch.arange(count, device=self.model.device) + memory.slot + memory.base
            found["position_ids"] = positions.expand(batch, count).clone()
        if self._keeps_logits and kept_logits(given) != 1:  # a number that differs from call to call
            found["logits_to_keep"] = 0
        for name in self._from_config:  # which may change between calls
            if found.get(name) is None and getattr(self.model.config, name, False):
                found[name] = getattr(self.model.config, name)
        for name, value in found.items():
            if value is not None and not isinstance(value, (Tensor, *CONSTANTS)):
                raise Unfit(f"argument {name} is a {type(value).__name__}")
        return found

    def sizes(
        self, inputs: Mapping[str, Any], memory: DecoderMemory, source: SourceMemory | None, count: int
    ) -> dict[str, dict[int, str]]:
        """The names of the sizes that differ from call to call, by argument of the step and axis.

        One token is a case of its own: transformers makes other masks for it, and kernels are made for one row.
        """
        found: dict[str, dict[int, str]] = {}
        for name, value in inputs.items():
            second = self._second_axis(name)
            if second and isinstance(value, Tensor) and value.ndim >= 2:
                axes = {0: "batch", 1: second} if value.ndim != 4 else {0: "batch", 2: "query", 3: second}
                named = {axis: size for axis, size in axes.items() if size != "query" or count > 1}
                found[f'inputs["{name}"]'] = named
        for i in range(len(memory.keys)):
            found[f"keys[{i}]"] = found[f"values[{i}]"] = {0: "batch", 2: "capacity"}
        for i in range(len(memory.scales)):
            found[f"scales[{i}]"] = {0: "batch", 2: "capacity"}
        for i in range(len(source.keys) if source else 0):
            found[f"source_keys[{i}]"] = found[f"source_values[{i}]"] = {0: "batch", 2: "source"}
        return found

    def _second_axis(self, name: str) -> str:
        """What the second axis of an argument is; "" where nobody knows."""
        if name == self._mask:
            return "capacity"
        if self.has_source and name in ("attention_mask", "input_ids", "inputs_embeds", "encoder_outputs"):
            return "source"
        return "query" if name.endswith(("_ids", "_embeds")) else ""


def kept_logits(given: Mapping[str, Any]) -> int:
    """Of how many tokens logits are asked for; 0 for all."""
    keep = given.get("logits_to_keep")
    if keep is None:
        return 0
    if not isinstance(keep, int):
        raise Unfit("logits_to_keep is a tensor")
    return keep


def _mask_of_slots(mask: Any, memory: DecoderMemory, batch: int) -> Tensor:
    """A mask of positions [B or 1, any] as one of slots [B, capacity], bool; one of four axes as it is, if it fits."""
    if not isinstance(mask, Tensor):
        raise Unfit(f"the attention mask is a {type(mask).__name__}")
    if mask.ndim == 4 and memory.fixed is not None and not memory.base and mask.shape[3] == memory.capacity:
        return mask
    if mask.ndim != 2:
        reason = f"the attention mask has {mask.ndim} axes"
        raise Unfit(reason) if mask.ndim == 4 else UnfitMask(reason)
    part = mask[:, memory.base : memory.base + memory.capacity]
    if mask.shape[0] not in (1, batch):
        raise Unfit(f"the attention mask is of {mask.shape[0]} sequences, and the call of {batch}")
    made = torch.zeros(batch, memory.capacity, dtype=torch.bool, device=mask.device)
    made[:, : part.shape[1]] = part
    return made
