"""Models of the tests of artifacts, in a module of their own that a process which loads an artifact does not need."""

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

Pair = namedtuple("Pair", ["low", "high"])


@dataclass
class Answer:
    """A result as an object, of which one field is empty."""

    logits: Tensor
    hidden: Tensor | None = None


def _fields(answer: Answer) -> tuple[list[Any], list[str]]:
    names = [name for name in ("logits", "hidden") if getattr(answer, name) is not None]
    return [getattr(answer, name) for name in names], names


pytree.register_pytree_node(
    Answer,
    _fields,
    lambda values, names: Answer(**dict(zip(names, values, strict=True))),
    serialized_type_name="artifact_models.Answer",
)


class Block(nn.Module):
    """A residual block with merged projections, something for PyTorch to run, and results of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Any]:
        h = nn.functional.scaled_dot_product_attention(*(p(self.norm(x))[:, None] for p in (self.q, self.k, self.v)))
        y = x + h[:, 0] * scale
        return {
            "answer": Answer(y, None),
            "pair": Pair(y.amin(-1), y.amax(-1)),
            "list": [y.transpose(1, 2), (torch.cummax(y, dim=-1)[0],)],
            "rows": x.shape[0],
            "same": x,
        }


class Cache(nn.Module):
    """A table that one entry point writes, and others read: packed by a product, and as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(16, 32))
        self.register_buffer("calls", torch.zeros(1))
        self.scale = nn.Linear(32, 32, bias=False)

    def write(self, row: Tensor, at: Tensor) -> Tensor:
        self.table.index_copy_(0, at, self.scale(row))
        self.calls.add_(1.0)
        return self.calls.clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(x @ self.table)

    def total(self, x: Tensor) -> Tensor:
        return x + (self.table * 2.0).sum(0) + self.calls


class Part(nn.Module):
    """A method of a model as a model."""

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        self.model, self.method = model, method

    def forward(self, *args: Tensor) -> Any:
        return getattr(self.model, self.method)(*args)


def make_block() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A block of fixed weights with its input."""
    torch.manual_seed(3)
    return Block().eval(), (torch.randn(2, 5, 16),)
