"""A plan bound to one set of sizes, as native code takes it: the table of addresses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from .placement import Placed


@dataclass(kw_only=True)
class Binding(Placed):
    """A plan for one set of sizes: shapes, strides and offsets as numbers, and the address table.

    A ``stale`` one names weights that were packed again since.
    """

    sizes: Tensor
    addresses: np.ndarray[Any, np.dtype[np.int64]]
    table: Tensor
    arena_base: int = 0
    empty: dict[int, Tensor] = field(default_factory=dict)
    stale: bool = False

    def __post_init__(self) -> None:
        self.cells = self.addresses.data  # the same memory: numpy takes longer to write one number
