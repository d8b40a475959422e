"""Llama and Qwen3 decoders: one token with a static cache, or a whole prompt that fills it.

They compute what transformers' models compute, in the same precisions (``tests/tools/test_gpu_check_models.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import RMSNorm, matrix_bytes, with_random_weights


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's scaling of rotary frequencies for longer contexts."""

    factor: float = 32.0
    low: float = 1.0
    high: float = 4.0
    original: int = 8192


@dataclass(frozen=True)
class DecoderConfig:
    """The sizes of a decoder. ``normed`` is Qwen3's norm of the queries and keys of each head."""

    vocab: int
    width: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    theta: float = 500_000.0
    eps: float = 1e-5
    normed: bool = False
    tied: bool = True
    scaling: RopeScaling | None = None

    def small(self) -> DecoderConfig:
        """The same with two narrow layers."""
        return replace(self, vocab=101, width=32, hidden=64, layers=2, heads=4, kv_heads=2, head=8)


DECODERS = {
    "qwen3-0.6b": DecoderConfig(151_936, 1024, 3072, 28, 16, 8, 128, 1e6, 1e-6, normed=True),
    "llama-3.2-1b": DecoderConfig(128_256, 2048, 8192, 16, 32, 8, 64, scaling=RopeScaling()),
    "llama-3-8b": DecoderConfig(128_256, 4096, 14_336, 32, 32, 8, 128, tied=False),
}


def frequencies(config: DecoderConfig) -> Tensor:
    """The angle that a position adds to each pair of a head, float32 [head / 2]."""
    exponents = torch.arange(0, config.head, 2, dtype=torch.int64).float() / config.head
    plain = 1.0 / config.theta**exponents
    if config.scaling is None:
        return plain
    s = config.scaling
    wavelength = 2 * math.pi / plain
    smooth = (s.original / wavelength - s.low) / (s.high - s.low)
    between = (1 - smooth) * plain / s.factor + smooth * plain
    scaled = torch.where(wavelength > s.original / s.low, plain / s.factor, plain)
    medium = (wavelength >= s.original / s.high) & (wavelength <= s.original / s.low)
    return torch.where(medium, between, scaled)


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions applied to [B, H, S, D]."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat((-right, left), -1) * sin


class Attention(nn.Module):
    """Grouped-query attention whose keys and values go into a cache [B, kv heads, context, D]."""

    keys: Tensor
    values: Tensor

    def __init__(self, config: DecoderConfig, batch: int, context: int) -> None:
        super().__init__()
        self.config = config
        wide, narrow = config.heads * config.head, config.kv_heads * config.head
        self.q_proj = nn.Linear(config.width, wide, bias=False)
        self.k_proj = nn.Linear(config.width, narrow, bias=False)
        self.v_proj = nn.Linear(config.width, narrow, bias=False)
        self.o_proj = nn.Linear(wide, config.width, bias=False)
        self.q_norm = RMSNorm(config.head, config.eps) if config.normed else nn.Identity()
        self.k_norm = RMSNorm(config.head, config.eps) if config.normed else nn.Identity()
        for name in ("keys", "values"):
            self.register_buffer(name, torch.empty(batch, config.kv_heads, context, config.head), persistent=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, at: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of ``x`` [B, S, width] at the positions ``at`` [S]; causal within ``x`` where there is no mask."""
        batch, length, _ = x.shape
        shape = (batch, length, -1, self.config.head)
        q = self.q_norm(self.q_proj(x).view(shape)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        self.keys.index_copy_(2, at, k)
        self.values.index_copy_(2, at, v)
        if mask is not None:
            k, v = self.keys, self.values
        out = F.scaled_dot_product_attention(q, self._repeated(k), self._repeated(v), mask, is_causal=mask is None)
        found: Tensor = self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))
        return found

    def _repeated(self, x: Tensor) -> Tensor:
        """Keys or values for each head of the queries, as transformers repeats them."""
        batch, heads, length, head = x.shape
        groups = self.config.heads // heads
        return x[:, :, None].expand(batch, heads, groups, length, head).reshape(batch, heads * groups, length, head)


class Layer(nn.Module):
    """Attention and a gated feed-forward network, each after a norm and added to what came in."""

    def __init__(self, config: DecoderConfig, batch: int, context: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.eps)
        self.self_attn = Attention(config, batch, context)
        self.post_attention_layernorm = RMSNorm(config.width, config.eps)
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, at: Tensor, mask: Tensor | None) -> Tensor:
        """[B, S, width] for the same."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, at, mask)
        y = self.post_attention_layernorm(x)
        found: Tensor = x + self.down_proj(F.silu(self.gate_proj(y)) * self.up_proj(y))
        return found


class Decoder(nn.Module):
    """The whole model, with the caches of its layers as buffers."""

    frequencies: Tensor

    def __init__(self, config: DecoderConfig, batch: int = 1, context: int = 128) -> None:
        super().__init__()
        self.config, self.context = config, context
        self.embed_tokens = nn.Embedding(config.vocab, config.width)
        self.layers = nn.ModuleList(Layer(config, batch, context) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.eps)
        self.lm_head = nn.Linear(config.width, config.vocab, bias=False)
        self.register_buffer("frequencies", torch.empty(config.head // 2), persistent=False)
        if config.tied:
            self.lm_head.weight = self.embed_tokens.weight

    def hidden(self, tokens: Tensor, at: Tensor, mask: Tensor | None) -> Tensor:
        """The last layer's result [B, S, width] for ``tokens`` [B, S] at the positions ``at`` [S], both int64."""
        x = self.embed_tokens(tokens)
        angles = at.float()[:, None] * self.frequencies
        angles = torch.cat((angles, angles), -1)
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, at, mask)
        found: Tensor = self.norm(x)
        return found


class Step(nn.Module):
    """One token of each sequence: logits [B, 1, vocab] for tokens [B, 1] at a position [1], both int64."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor, at: Tensor) -> Tensor:
        """The logits; keys and values of this position are written to the cache."""
        seen = torch.arange(self.decoder.context, device=at.device)[None, None, None] <= at[:, None]
        logits: Tensor = self.decoder.lm_head(self.decoder.hidden(tokens, at, seen))
        return logits


class Prefill(nn.Module):
    """A prompt [B, S] from position 0 on, which fills the cache: the last token's logits [B, 1, vocab]."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor) -> Tensor:
        """The logits."""
        at = torch.arange(tokens.shape[1], device=tokens.device)
        logits: Tensor = self.decoder.lm_head(self.decoder.hidden(tokens, at, None)[:, -1:])
        return logits


def random_decoder(
    config: DecoderConfig, context: int, dtype: torch.dtype, device: torch.device, batch: int = 1
) -> Decoder:
    """A decoder with random weights and a cache of random numbers, as after a prompt."""
    with torch.device("meta"):
        made = Decoder(config, batch, context)
    with_random_weights(made, dtype, device)
    if config.tied:
        made.lm_head.weight = made.embed_tokens.weight
    with torch.no_grad():
        made.frequencies = frequencies(config).to(device)  # float32, whatever the weights are
        if config.tied:  # logits of the size of one as well
            made.embed_tokens.weight.mul_(config.width**-0.5)
    return made


def caches(model: nn.Module, first: int = 0) -> list[Tensor]:
    """Views of the keys and values of all layers, from a position on."""
    return [b[:, :, first:] for n, b in model.named_buffers() if n.endswith(("keys", "values"))]


def step_bytes(decoder: Decoder, context: int) -> int:
    """The least bytes that one step moves: weights, and keys and values of ``context`` positions."""
    weights = matrix_bytes(decoder)
    cache = sum(b.nbytes for b in caches(decoder))
    return weights + cache // decoder.context * context


def prompt_flops(config: DecoderConfig, length: int) -> int:
    """Multiplications and additions of a prompt, attention counted as causal; the last token's logits alone."""
    attention = 2 * config.width * config.head * (config.heads + config.kv_heads)
    matrices = attention + 3 * config.width * config.hidden
    scores = 2 * config.heads * config.head * length * (length + 1) // 2
    return 2 * (config.layers * (matrices * length + scores) + config.width * config.vocab)
