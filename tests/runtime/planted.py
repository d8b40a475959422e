"""A small Transformer of some 200 nodes that uses much of the compiler, written out as models write it."""

import math

import torch
from torch import Tensor, nn

WIDTH, HEADS, LAYERS, VOCABULARY = 16, 2, 5, 50


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.gate, self.up = nn.Linear(WIDTH, 2 * WIDTH, bias=False), nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.down = nn.Linear(2 * WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, s, _ = x.shape
        h = self.norm(x)
        q, k, v = (p(h).view(b, s, HEADS, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS) + mask
        attended = torch.softmax(scores, dim=-1) @ v
        x = x + self.out(attended.transpose(1, 2).reshape(b, s, WIDTH))
        h = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        x = x - self.down(torch.nn.functional.silu(self.gate(h)) * self.up(h))
        return x + torch.nn.functional.gelu(self.mix(x))


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.register_buffer("places", torch.randn(64, WIDTH) * 0.1)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        s = ids.shape[1]
        mask = torch.full((s, s), float("-inf")).triu(1)
        x = self.tokens(ids) + torch.sin(self.places)[:s]
        for layer in self.layers:
            x = layer(x, mask)
        return torch.tanh(self.head(x))


class Two(nn.Module):
    """Two kernels, for faults that only native code has."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.last(torch.relu(self.first(x))))
