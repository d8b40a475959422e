"""What schedules need to know of a processor."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Machine:
    """What schedules need to know of a processor.

    Attributes:
        threads: how many threads a kernel may use.
        vector_bits: the width of a vector register.
        registers: how many vector registers there are.
        l1_bytes, l2_bytes: data caches of one core.
        has_bf16_dot: whether pairs of bfloat16 can be multiplied and added in one instruction.
        has_vnni: whether quads of int8 can.
    """

    threads: int = 2
    vector_bits: int = 512
    registers: int = 32
    l1_bytes: int = 32 << 10
    l2_bytes: int = 1 << 20
    has_bf16_dot: bool = False
    has_vnni: bool = False

    def lanes(self, dtype: torch.dtype) -> int:
        """How many values of a dtype, in its compute type, fit one vector register."""
        return max(self.vector_bits // (8 * max(dtype.itemsize, 4)), 1)
