"""Single kernels as small models, with the operations and bytes of each."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .few_bits import dequantised
from .models.decoder import rotated
from .workload import Workload

HALF = torch.bfloat16
MOST_DRY = 33  # of each size in a dry run: no multiple of a block


class Linear(nn.Module):
    """``x @ w.T``, then GELU if asked for."""

    def __init__(self, weight: Tensor, gelu: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.linear.weight = nn.Parameter(weight, requires_grad=False)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        """[M, N] of [M, K]."""
        y = self.linear(x)
        return F.gelu(y) if self.gelu else y


class Attention(nn.Module):
    """Attention of [B, H, S, D] on as many or fewer heads of keys."""

    def __init__(self, causal: bool, grouped: bool) -> None:
        super().__init__()
        self.causal, self.grouped = causal, grouped

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """[B, H, S, D]."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=self.grouped)


class AddNorm(nn.Module):
    """The sum of two tensors, and its norm."""

    def __init__(self, columns: int, rms: bool, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(columns, device=device, dtype=HALF) + 0.5, requires_grad=False)
        self.rms, self.shape = rms, (columns,)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Both [M, N]."""
        total = x + y
        if self.rms:
            return total, F.rms_norm(total, self.shape, self.weight, 1e-5)
        return total, F.layer_norm(total, self.shape, self.weight, None, 1e-5)


class Rope(nn.Module):
    """Rotary positions of [B, H, S, D], with tables [S, D]."""

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The same shape."""
        return rotated(x, cos, sin)


class Softmax(nn.Module):
    """Softmax of rows."""

    def forward(self, x: Tensor) -> Tensor:
        """[M, N]."""
        return x.softmax(-1)


def kernel(device: torch.device, dry: bool, *, op: str, **sizes: Any) -> Workload:
    """The workload of a row of the kernel tables; ``sizes`` are those of its builder."""
    if dry:
        sizes = {n: min(x, MOST_DRY) if isinstance(x, int) and x > MOST_DRY else x for n, x in sizes.items()}
        if op in ("attention", "rope"):
            sizes |= {"heads": 4, "head": 16} | ({"kv_heads": 2} if "kv_heads" in sizes else {})
    found: Workload = BUILDERS[op](device, **sizes)
    return found


def _linear(device: torch.device, *, rows: int, terms: int, columns: int, quantize: str = "") -> Workload:
    return _product(device, rows, terms, columns, quantize, gelu=False)


def _linear_gelu(device: torch.device, *, rows: int, terms: int, columns: int) -> Workload:
    return _product(device, rows, terms, columns, "", gelu=True)


def _product(device: torch.device, rows: int, terms: int, columns: int, quantize: str, gelu: bool) -> Workload:
    model: nn.Module = Linear(_random(device, columns, terms) / terms**0.5, gelu)
    plain = wide = None
    nbytes = 2 * (rows * terms + terms * columns + rows * columns)
    if quantize:
        plain, wide, saved = dequantised(model, quantize)
        nbytes -= saved
    work = Workload(model, (_random(device, rows, terms),), flops=2 * rows * terms * columns, nbytes=nbytes, flush=True)
    work.quantize, work.plain, work.wide = quantize, plain, wide
    return work


def _attention(
    device: torch.device,
    *,
    batch: int,
    heads: int,
    length: int,
    head: int,
    kv_heads: int = 0,
    queries: int = 0,
    causal: bool = False,
) -> Workload:
    few, queries = kv_heads or heads, queries or length
    q = _random(device, batch, heads, queries, head)
    k, v = (_random(device, batch, few, length, head) for _ in range(2))
    pairs = length * (length + 1) // 2 if causal else queries * length
    nbytes = sum(x.nbytes for x in (q, k, v, q))
    model = Attention(causal, few != heads)
    return Workload(model, (q, k, v), flops=4 * batch * heads * head * pairs, nbytes=nbytes, flush=True)


def _add_rms_norm(device: torch.device, *, rows: int, columns: int) -> Workload:
    return _add_norm(device, rows, columns, rms=True)


def _add_layer_norm(device: torch.device, *, rows: int, columns: int) -> Workload:
    return _add_norm(device, rows, columns, rms=False)


def _add_norm(device: torch.device, rows: int, columns: int, rms: bool) -> Workload:
    args = (_random(device, rows, columns), _random(device, rows, columns))
    return Workload(AddNorm(columns, rms, device), args, nbytes=4 * args[0].nbytes, flush=True)


def _rope(device: torch.device, *, batch: int, heads: int, length: int, head: int) -> Workload:
    x, angles = _random(device, batch, heads, length, head), torch.randn(length, head, device=device)
    args = (x, angles.cos().to(HALF), angles.sin().to(HALF))
    return Workload(Rope(), args, nbytes=2 * x.nbytes + 2 * args[1].nbytes, flush=True)


def _softmax(device: torch.device, *, rows: int, columns: int) -> Workload:
    x = _random(device, rows, columns)
    return Workload(Softmax(), (x,), nbytes=2 * x.nbytes, flush=True)


def _random(device: torch.device, *shape: int) -> Tensor:
    return torch.randn(shape, device=device).to(HALF)


BUILDERS: dict[str, Any] = {
    "linear": _linear,
    "linear_gelu": _linear_gelu,
    "attention": _attention,
    "add_rms_norm": _add_rms_norm,
    "add_layer_norm": _add_layer_norm,
    "rope": _rope,
    "softmax": _softmax,
}
