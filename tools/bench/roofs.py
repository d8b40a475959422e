"""What the machine reaches: multiply-adds of each dtype between registers, and reads of memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ...codegen.tvm import peak
from ...runtime.roofs import read_rate
from ...runtime.target import Target


@dataclass(frozen=True)
class Roofs:
    """Rates with all threads: operations a second by dtype, and bytes a second."""

    operations: Mapping[str, float]
    bytes_per_second: float

    def share(self, dtype: str, work: int, moved: int, seconds: float) -> float | None:
        """The share of the roof that is nearer: the least time that the work or the bytes take, over the time taken."""
        if dtype not in self.operations or seconds <= 0:
            return None
        return max(work / self.operations[dtype], moved / self.bytes_per_second) / seconds


def measure_roofs(threads: int) -> Roofs:
    """Measure both; about two seconds."""
    target = Target.detect(threads=threads)
    rates = {
        kind.name: peak.peak_rate(kind, threads, target.cpu) for kind in peak.kinds(target.machine, target.features)
    }
    torch.set_num_threads(threads)
    return Roofs(rates, read_rate())
