"""How keys and values lie in memory: in the model's dtype, or rounded to fewer bytes when they are written.

A tensor of keys or values [B, H, n, D] is stored as parts: one of its own shape, and for int8 a scale for each head and
position [B, H, n], float32. Numbers are symmetric: the largest of a row is 127 times its scale.
"""

from __future__ import annotations

import torch
from torch import Tensor

Parts = tuple[Tensor, ...]  # of a layer: keys, values, and then the scales of keys and of values where there are any

MOST = 127  # the largest whole number of a row in int8


class Storage:
    """In the dtype of the model.

    Attributes:
        name: the dtype in memory, "" for the model's.
        narrow: whether numbers are rounded when they are written.
        scaled: whether each row has a scale.
    """

    name = ""
    narrow = False
    scaled = False

    def dtype(self, wide: torch.dtype) -> torch.dtype:
        """What tensors of the model's dtype ``wide`` are stored as."""
        return wide

    def zeros(self, shape: tuple[int, ...], wide: torch.dtype, device: torch.device) -> Parts:
        """The parts of a tensor of zeros."""
        return (torch.zeros(shape, dtype=self.dtype(wide), device=device),)

    def encode(self, x: Tensor) -> Parts:
        """The parts of a tensor [B, H, n, D]."""
        return (x,)

    def decode(self, parts: Parts, wide: torch.dtype) -> Tensor:
        """The tensor that parts stand for, in the dtype ``wide``."""
        return parts[0]


class Rounded(Storage):
    """In bfloat16, rounded to nearest even."""

    name = "bfloat16"
    narrow = True

    def dtype(self, wide: torch.dtype) -> torch.dtype:
        """Always bfloat16."""
        return torch.bfloat16

    def encode(self, x: Tensor) -> Parts:
        """The tensor rounded."""
        return (x.to(torch.bfloat16),)

    def decode(self, parts: Parts, wide: torch.dtype) -> Tensor:
        """The same numbers in the wider dtype."""
        return parts[0].to(wide)


class Quantised(Storage):
    """In int8, a scale for each head and position: round to nearest, symmetric."""

    name = "int8"
    narrow = True
    scaled = True

    def dtype(self, wide: torch.dtype) -> torch.dtype:
        """Always int8."""
        return torch.int8

    def zeros(self, shape: tuple[int, ...], wide: torch.dtype, device: torch.device) -> Parts:
        """Whole numbers and scales."""
        return (
            torch.zeros(shape, dtype=torch.int8, device=device),
            torch.zeros(shape[:-1], dtype=torch.float32, device=device),
        )

    def encode(self, x: Tensor) -> Parts:
        """Whole numbers and scales; a row with a NaN or an infinity has a scale that is none, and is NaN again."""
        x = x.float()
        scale = x.abs().amax(-1) / MOST
        divisor = torch.where(scale == 0, 1.0, scale).unsqueeze(-1)
        return torch.round(x / divisor).clamp(-MOST, MOST).to(torch.int8), scale

    def decode(self, parts: Parts, wide: torch.dtype) -> Tensor:
        """Whole numbers times their scales."""
        codes, scale = parts
        return (codes.to(torch.float32) * scale.unsqueeze(-1)).to(wide)


PLAIN = Storage()
STORAGES: dict[str, Storage] = {"bfloat16": Rounded(), "int8": Quantised()}


def storage_for(name: str | None, wide: torch.dtype) -> Storage:
    """The storage that was asked for by name, None for the model's own; ``wide`` is the model's dtype."""
    found = PLAIN if name is None else STORAGES[name]
    return PLAIN if found.dtype(wide) == wide else found


def joined(keys: Parts, values: Parts) -> Parts:
    """A layer's parts of those of its keys and of its values."""
    return tuple(part for pair in zip(keys, values, strict=True) for part in pair)
