"""What `optimize="search"` finds in four models, and what it is worth: `python examples/search.py`."""

import argparse
import time

import torch
from torch import Tensor, nn

import smelt


class Adapter(nn.Module):
    """A linear layer with a low-rank adapter that was never merged."""

    shape = (4, 128, 1024)

    def __init__(self, width: int = 1024, rank: int = 8) -> None:
        super().__init__()
        self.base = nn.Linear(width, width)
        self.down, self.up = nn.Linear(width, rank, bias=False), nn.Linear(rank, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * self.up(self.down(x))


class LinearAttention(nn.Module):
    """Attention with a feature map in place of the softmax, as most papers write it: (Q K^T) V."""

    shape = (1, 1024, 512)

    def __init__(self, width: int = 512, heads: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, s, d = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # [B, H, S, D] each
        y = (q.sigmoid() @ k.sigmoid().transpose(-1, -2)) @ v / s
        return self.out(y.transpose(1, 2).reshape(b, s, d))


class LowRank(nn.Module):
    """A weight stored as two thin factors, multiplied out before it is used."""

    shape = (64, 2048)

    def __init__(self, width: int = 2048, rank: int = 16) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(width, rank) / width**0.5)
        self.b = nn.Parameter(torch.randn(rank, width) / rank**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ (self.a @ self.b))


class Pooled(nn.Module):
    """The mean over tokens of a projection."""

    shape = (4, 128, 512)

    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(x)).mean(1)


def least_ms(model: nn.Module, x: Tensor, runs: int = 15) -> float:
    """The least time of several calls, in milliseconds."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        model(x)
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    torch.manual_seed(0)
    for model in (Adapter(), LinearAttention(), LowRank(), Pooled()):
        model.eval()
        x = torch.randn(model.shape)
        for optimize in ("rules", "search"):
            fast = smelt.compile(model, optimize=optimize, cache=False, threads=1)
            with torch.no_grad():
                fast(x)
                ms = least_ms(fast, x)
            smelt.verify(fast, x)
            report = fast.report()
            print(f"{type(model).__name__:16} {optimize:7} {ms:7.2f} ms {report.flops / 1e6:8.0f} MFLOP", end=" ")
            print(f"{report.captures[0].calls} kernels, rewritten in {report.captures[0].seconds['rewrite']:.2f} s")


if __name__ == "__main__":
    main()
