"""What a benchmark found of one workload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ...ir.cost import Roofs
from ..plot import Dot
from ..timing import Timings
from .peers import SMELT

HEAVY = 0.5  # cores that others keep busy, above which a ratio is marked
# the roof that a dtype's operations stand under; int4 weights are multiplied as int8
ROOF = {"f32": "float32", "bf16": "bfloat16", "int8": "int8", "int4": "int8"}
MARK = "~"


@dataclass(frozen=True)
class Outcome:
    """What a benchmark found. Times are in seconds.

    Attributes:
        load, load_during: how many cores others kept busy before the run and while it was timed; None where unknown.
        ratios: how many times as long each takes as smelt, or as the first where smelt cannot run it: the median of the
            ratios within rounds.
        errors: of each result, relative to eager's, as a root of mean squares.
        starts: for each, ``cold`` with empty caches and ``warm`` in a second process: ``first``, from a model in memory
            to its first result, and ``peak_bytes``, the most memory that the process held.
        work: floating-point operations of one call.
        moved: bytes that kernels read and write in one call.
        failed: the peers that cannot run the model, and why.
        kernels: smelt's, where a picture was asked for.
    """

    model: str
    dtype: str
    inputs: tuple[str, ...]
    threads: int
    load: float | None
    timings: Timings
    ratios: Mapping[str, float]
    starts: Mapping[str, Mapping[str, Mapping[str, float]]]
    work: int | None
    moved: int | None
    checked: str
    failed: Mapping[str, str]
    load_during: float | None = None
    errors: Mapping[str, float] = field(default_factory=dict)
    kernels: tuple[Dot, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The outcome as data for JSON."""
        names = self.timings.seconds
        summary = {name: {"median": self.timings.median(name), "best": self.timings.best(name)} for name in names}
        return asdict(self) | {"summary": summary, "loaded": self.loaded, "worst_ratio": self.best_peer()}

    @property
    def loaded(self) -> bool:
        """Whether others were so busy that ratios say little."""
        return max(self.load or 0.0, self.load_during or 0.0) > HEAVY

    def share(self, name: str, roofs: Roofs | None) -> float | None:
        """The share of its roof that a peer reaches at best; of quantised models, smelt's own only."""
        if roofs is None or self.work is None or self.moved is None:
            return None
        if self.dtype in ("int8", "int4") and name != SMELT:
            return None
        return roofs.share(ROOF[self.dtype], self.work, self.moved, self.timings.best(name))

    def bound(self, roofs: Roofs | None) -> str:
        """The nearer roof: ``flops``, as in prefill, or ``bytes``, as in decoding; empty where it is not known."""
        peak = None if roofs is None else roofs.peaks.get(ROOF[self.dtype])
        if roofs is None or peak is None or self.work is None or self.moved is None:
            return ""
        return "flops" if self.work / peak >= self.moved / roofs.bytes_per_second else "bytes"

    def best_peer(self) -> float | None:
        """The least ratio of a peer: below 1 one is faster than smelt. None where there is no peer or no smelt."""
        found = [ratio for name, ratio in self.ratios.items() if name != SMELT]
        return min(found) if found and SMELT in self.ratios else None
