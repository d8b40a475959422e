"""A plan bound to one set of sizes, as native code takes it: the table of addresses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from .placement import Placed


@dataclass(kw_only=True)
class Binding(Placed):
    """A plan for one set of sizes: shapes, strides and offsets as numbers, and the address table.

    Attributes:
        addresses: the table.
        arguments: the table and the sizes, as host functions take them.
        results: what makes the results of a direct run, with their table positions; None where runs are not direct.
        stale: whether it names weights that were packed again since.
    """

    addresses: np.ndarray[Any, np.dtype[np.int64]]
    arguments: tuple[Any, Any]
    results: tuple[tuple[int, Callable[[], Tensor]], ...] | None = None
    arena_base: int = 0
    empty: dict[int, Tensor] = field(default_factory=dict)
    stale: bool = False

    def __post_init__(self) -> None:
        self.cells = self.addresses.data  # the same memory: numpy takes longer to write one number
