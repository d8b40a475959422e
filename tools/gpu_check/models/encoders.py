"""BERT, T5 and ViT in their base sizes, as transformers computes them (``tests/tools/test_gpu_check_models.py``)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class EncoderConfig:
    """The sizes of an encoder, BERT's and ViT's base ones by default; of T5 those of each of its two stacks."""

    width: int = 768
    hidden: int = 3072
    layers: int = 12
    heads: int = 12
    vocab: int = 30_522
    positions: int = 512
    image: int = 224
    patch: int = 16
    labels: int = 1000
    buckets: int = 32
    distance: int = 128
    eps: float = 1e-12

    def small(self) -> EncoderConfig:
        """The same with two narrow layers."""
        sizes = {"vocab": 101, "positions": 128, "image": 32, "patch": 8, "labels": 10}
        return replace(self, width=32, hidden=64, layers=2, heads=4, **sizes)


BERT_BASE = EncoderConfig()
VIT_BASE = EncoderConfig()
T5_BASE = EncoderConfig(vocab=32_128, eps=1e-6)


class SelfAttention(nn.Module):
    """Attention with biases in its projections."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.query, self.key, self.value, self.output = (nn.Linear(config.width, config.width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, S, width] for the same; ``mask`` is bool [B, 1, 1, S]."""
        q, k, v = (_heads(f(x), self.heads) for f in (self.query, self.key, self.value))
        found: Tensor = self.output(_joined(F.scaled_dot_product_attention(q, k, v, mask)))
        return found


class BertLayer(nn.Module):
    """Attention and feed-forward network, each followed by a norm of the sum."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.width, config.eps)
        self.intermediate = nn.Linear(config.width, config.hidden)
        self.output = nn.Linear(config.hidden, config.width)
        self.output_norm = nn.LayerNorm(config.width, config.eps)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[B, S, width] for the same."""
        x = self.attention_norm(x + self.attention(x, mask))
        found: Tensor = self.output_norm(x + self.output(F.gelu(self.intermediate(x))))
        return found


class Bert(nn.Module):
    """The last layer's result [B, S, width] and the pooled one [B, width] of tokens and their mask, both [B, S]."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.vocab, config.width)
        self.positions = nn.Embedding(config.positions, config.width)
        self.types = nn.Embedding(2, config.width)
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(config.layers))
        self.pooler = nn.Linear(config.width, config.width)

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Both results."""
        at = torch.arange(tokens.shape[1], device=tokens.device)[None]
        x = self.norm(self.words(tokens) + self.types(torch.zeros_like(tokens)) + self.positions(at))
        mask = attention_mask[:, None, None].bool()
        for layer in self.layers:
            x = layer(x, mask)
        return x, torch.tanh(self.pooler(x[:, 0]))


class ViTLayer(nn.Module):
    """Attention and feed-forward network, each after a norm and added to what came in."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.before = nn.LayerNorm(config.width, config.eps)
        self.attention = SelfAttention(config)
        self.after = nn.LayerNorm(config.width, config.eps)
        self.intermediate = nn.Linear(config.width, config.hidden)
        self.output = nn.Linear(config.hidden, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """[B, S, width] for the same."""
        x = x + self.attention(self.before(x))
        found: Tensor = x + self.output(F.gelu(self.intermediate(self.after(x))))
        return found


class ViT(nn.Module):
    """Scores [B, labels] of pixels [B, 3, image, image]."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, config.width, config.patch, config.patch)
        self.token = nn.Parameter(torch.empty(1, 1, config.width))
        self.places = nn.Parameter(torch.empty(1, (config.image // config.patch) ** 2 + 1, config.width))
        self.layers = nn.ModuleList(ViTLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width, config.eps)
        self.classifier = nn.Linear(config.width, config.labels)

    def forward(self, pixels: Tensor) -> Tensor:
        """The scores."""
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.places
        for layer in self.layers:
            x = layer(x)
        scores: Tensor = self.classifier(self.norm(x)[:, 0])
        return scores


# --- T5 ---------------------------------------------------------------------------------------------------------------


class T5Norm(nn.Module):
    """``x / rms(x) * weight``."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(config.width)), config.eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalised values."""
        variance = x.float().pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.eps)).to(x.dtype)


class T5Attention(nn.Module):
    """Attention without a scale, with a bias for each distance or none."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.q, self.k, self.v, self.o = (nn.Linear(config.width, config.width, bias=False) for _ in range(4))

    def forward(self, x: Tensor, source: Tensor, bias: Tensor | None) -> Tensor:
        """[B, S, width]: the queries of ``x`` on the keys and values of ``source`` [B, K, width]."""
        q, k, v = (_heads(f(y), self.heads) for f, y in ((self.q, x), (self.k, source), (self.v, source)))
        found: Tensor = self.o(_joined(F.scaled_dot_product_attention(q, k, v, bias, scale=1.0)))
        return found


class T5Layer(nn.Module):
    """Self-attention, in the decoder attention on the encoder's result, and a feed-forward network with ReLU."""

    def __init__(self, config: EncoderConfig, decoder: bool) -> None:
        super().__init__()
        self.norms = nn.ModuleList(T5Norm(config) for _ in range(3 if decoder else 2))
        self.attention = T5Attention(config)
        self.cross = T5Attention(config) if decoder else None
        self.wi = nn.Linear(config.width, config.hidden, bias=False)
        self.wo = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x: Tensor, bias: Tensor, source: Tensor | None) -> Tensor:
        """[B, S, width] for the same."""
        y = self.norms[0](x)
        x = x + self.attention(y, y, bias)
        if self.cross is not None and source is not None:
            x = x + self.cross(self.norms[1](x), source, None)
        found: Tensor = x + self.wo(F.relu(self.wi(self.norms[-1](x))))
        return found


class T5Stack(nn.Module):
    """The encoder or the decoder."""

    def __init__(self, config: EncoderConfig, decoder: bool) -> None:
        super().__init__()
        self.config, self.decoder = config, decoder
        self.bias = nn.Embedding(config.buckets, config.heads)
        self.layers = nn.ModuleList(T5Layer(config, decoder) for _ in range(config.layers))
        self.norm = T5Norm(config)

    def forward(self, x: Tensor, source: Tensor | None = None) -> Tensor:
        """[B, S, width] for the same."""
        at = torch.arange(x.shape[1], device=x.device)
        places = self._bucket(at[None] - at[:, None])
        bias = self.bias(places).permute(2, 0, 1)[None]
        if self.decoder:
            bias = bias.masked_fill((at[None] > at[:, None])[None, None], torch.finfo(bias.dtype).min)
        for layer in self.layers:
            x = layer(x, bias, source)
        found: Tensor = self.norm(x)
        return found

    def _bucket(self, distance: Tensor) -> Tensor:
        """T5's bucket of each distance from a query to a key, int64."""
        count, first = self.config.buckets, torch.zeros_like(distance)
        if self.decoder:
            distance = -distance.clamp(max=0)
        else:
            count //= 2
            first, distance = (distance > 0).long() * count, distance.abs()
        exact = count // 2
        log = torch.log(distance.clamp(min=1).float() / exact) / math.log(self.config.distance / exact)
        far = (exact + (log * (count - exact)).long()).clamp(max=count - 1)
        return first + torch.where(distance < exact, distance, far)


class T5(nn.Module):
    """Logits [B, T, vocab] of source tokens [B, S] and target tokens [B, T]; embeddings are tied."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.shared = nn.Embedding(config.vocab, config.width)
        self.encoder, self.decoder = T5Stack(config, decoder=False), T5Stack(config, decoder=True)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """The logits."""
        found = self.decoder(self.shared(targets), self.encoder(self.shared(tokens)))
        return F.linear(found * found.shape[-1] ** -0.5, self.shared.weight)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[B, S, width] as [B, H, S, D]."""
    batch, length, width = x.shape
    return x.view(batch, length, heads, width // heads).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """[B, H, S, D] as [B, S, width]."""
    batch, heads, length, head = x.shape
    return x.transpose(1, 2).reshape(batch, length, heads * head)
