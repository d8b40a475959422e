"""The workloads of rows: models with random weights and the calls that they are checked and timed on."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .few_bits import dequantised
from .models.decoder import (
    DECODERS,
    Decoder,
    Prefill,
    Step,
    caches,
    prompt_flops,
    random_decoder,
    step_bytes,
)
from .models.encoders import BERT_BASE, T5, T5_BASE, VIT_BASE, Bert, EncoderConfig, ViT
from .models.layers import matrix_bytes, with_random_weights
from .workload import Args, Workload

TOKENS = 16
INTERPRETED_TOKENS = 2  # and one call before: the third replays a graph
SMALL_CONTEXT = 6
SMALL_LENGTH = 9


def dtype_of(name: str) -> torch.dtype:
    """``torch.bfloat16`` for ``"bfloat16"``."""
    found: torch.dtype = getattr(torch, name)
    return found


def decode(
    device: torch.device,
    small: bool,
    *,
    model: str,
    context: int,
    dtype: str,
    quantize: str = "",
    tokens: int = TOKENS,
) -> Workload:
    """One step after ``context`` positions; that many greedy tokens are compared."""
    config = DECODERS[model]
    if small:
        config, context = config.small(), SMALL_CONTEXT
    if device.type == "cpu":
        tokens = INTERPRETED_TOKENS
    decoder = random_decoder(config, context + tokens, dtype_of(dtype), device)
    step = Step(decoder)
    nbytes = step_bytes(decoder, context + 1)
    plain = wide = None
    if quantize:
        plain, wide, saved = dequantised(step, quantize)
        nbytes -= saved
    calls = _greedy(plain or step, context, tokens, device)
    facts = {"layers": config.layers, "weight_bytes": matrix_bytes(decoder), "context": context}
    work = Workload(step, calls[0], calls, tokens=True, nbytes=nbytes, facts=facts)
    work.quantize, work.plain, work.wide = quantize, plain, wide
    work.state = partial(caches, first=context)
    return work


def _greedy(step: nn.Module, context: int, count: int, device: torch.device) -> list[Args]:
    """The calls of a greedy generation by PyTorch, from the position ``context`` on."""
    token = torch.full((1, 1), 7, device=device)
    calls: list[Args] = []
    for position in range(context, context + count):
        calls.append((token, torch.tensor([position], device=device)))
        with torch.no_grad():
            token = step(*calls[-1])[:, -1].argmax(-1, keepdim=True)
    return calls


def prefill(device: torch.device, small: bool, *, model: str, length: int, dtype: str) -> Workload:
    """A prompt of ``length`` tokens, which fills the cache."""
    config = DECODERS[model]
    if small:
        config, length = config.small(), SMALL_LENGTH
    decoder: Decoder = random_decoder(config, length, dtype_of(dtype), device)
    tokens = _tokens((1, length), config.vocab, device)
    facts = {"layers": config.layers, "length": length}
    flops = prompt_flops(config, length)
    nbytes = matrix_bytes(decoder)
    return Workload(Prefill(decoder), (tokens,), tokens=True, flops=flops, nbytes=nbytes, state=caches, facts=facts)


def encoder(device: torch.device, small: bool, *, model: str, batch: int, length: int, dtype: str) -> Workload:
    """BERT, T5 or ViT on a batch."""
    if small:
        batch, length = min(batch, 2), SMALL_LENGTH
    config = {"bert": BERT_BASE, "t5": T5_BASE, "vit": VIT_BASE}[model]
    config = config.small() if small else config
    kind = {"bert": Bert, "t5": T5, "vit": ViT}[model]
    with torch.device("meta"):
        made: nn.Module = kind(config)
    with_random_weights(made, dtype_of(dtype), device)
    args = _encoder_args(model, config, batch, length, dtype_of(dtype), device)
    facts = {"layers": config.layers, "batch": batch}
    flops = _encoder_flops(model, config, batch, length)
    return Workload(made, args, flops=flops, nbytes=matrix_bytes(made), facts=facts)


def _encoder_args(
    model: str, config: EncoderConfig, batch: int, length: int, dtype: torch.dtype, device: torch.device
) -> Args:
    if model == "vit":
        return (_random((batch, 3, config.image, config.image), device).to(dtype),)
    tokens = _tokens((batch, length), config.vocab, device)
    if model == "t5":
        return (tokens, _tokens((batch, length // 2), config.vocab, device))
    return (tokens, torch.ones_like(tokens))


def _encoder_flops(model: str, config: EncoderConfig, batch: int, length: int) -> int:
    """Multiplications and additions of the matrix products."""
    per_token = 4 * config.width**2 + 2 * config.width * config.hidden
    if model == "vit":
        length = (config.image // config.patch) ** 2 + 1
    one = config.layers * length * (per_token + 2 * length * config.width)
    if model == "vit":
        one += (length - 1) * 3 * config.patch**2 * config.width + config.width * config.labels
    if model == "bert":
        one += config.width**2
    if model == "t5":
        target = length // 2
        cross = 2 * config.width**2 * (target + length) + 2 * target * length * config.width
        one += config.layers * (target * (per_token + 2 * target * config.width) + cross)
        one += target * config.width * config.vocab
    return 2 * batch * one


def _tokens(shape: tuple[int, ...], vocab: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(sum(shape))
    return torch.randint(3, vocab, shape, device=device, generator=generator)


def _random(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.randn(shape, device=device, generator=torch.Generator(device).manual_seed(sum(shape)))


BUILDERS: dict[str, Any] = {"decode": decode, "prefill": prefill, "encoder": encoder}
