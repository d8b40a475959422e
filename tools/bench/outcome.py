"""What a benchmark found of one workload."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

from ..plot import Dot
from ..timing import Timings
from .peers import SMELT
from .quantised import QUANTIZE

HEAVY = 0.5  # cores that others keep busy, above which a ratio is marked
# the roof that a dtype's operations stand under; int4 weights are multiplied as int8, numbers of float8 as float32
ROOF = {
    "f32": "float32",
    "bf16": "bfloat16",
    "int8": "int8",
    "int4": "int8",
    "fp8": "float32",
    "fp8-dynamic": "float32",
}
MARK = "~"
Starts = dict[str, list[dict[str, float]]]  # tries by kind
HEAVY_REMARK = f"{MARK}: others kept more than {HEAVY} cores busy: this ratio may not hold on an idle machine."


@dataclass(frozen=True)
class Outcome:
    """What a benchmark found. Times are in seconds.

    Attributes:
        load, load_during: how many cores others kept busy before the run and while it was timed; None where unknown.
        ratios: how many times as long each takes as smelt, or as the first where smelt cannot run it: the median of the
            ratios within rounds.
        errors: of each result, relative to eager's, as a root of mean squares.
        starts: for each, ``cold`` ones with empty caches and ``warm`` ones in a second process: ``first``, seconds from
            a model in memory to its first result, and ``peak_bytes``, the most memory that the process held.
        work: floating-point operations of one call.
        moved: bytes that kernels read and write in one call.
        roofs: what the machine reached in each round, in ``flops`` and ``bytes`` a second; empty where it is not known.
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
    starts: Mapping[str, Starts]
    work: int | None
    moved: int | None
    checked: str
    failed: Mapping[str, str]
    load_during: float | None = None
    errors: Mapping[str, float] = field(default_factory=dict)
    kernels: tuple[Dot, ...] = ()
    roofs: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The outcome as data for JSON."""
        names = self.timings.seconds
        summary: dict[str, dict[str, float | None]]
        summary = {name: {"median": self.timings.median(name), "best": self.timings.best(name)} for name in names}
        for name, kind in product(self.starts, ("cold", "warm")):
            summary[name] |= {kind: self.start(name, kind)}
        return asdict(self) | {"summary": summary, "loaded": self.loaded, "worst_ratio": self.best_peer()}

    @property
    def loaded(self) -> bool:
        """Whether others were so busy that ratios say little."""
        return max(self.load or 0.0, self.load_during or 0.0) > HEAVY

    def share(self, name: str) -> float | None:
        """The share of its roof that a peer reaches: the median over rounds, each with what the machine reached in it.

        None where that is not known, and for the peers of quantised models.
        """
        if self.dtype in QUANTIZE and name != SMELT:
            return None
        floors = [max(computing, moving) for computing, moving in self._floors()]
        shares = [floor / seconds for floor, seconds in zip(floors, self.timings.seconds[name], strict=False)]
        return statistics.median(shares) if shares else None

    def start(self, name: str, kind: str, what: str = "first") -> float | None:
        """The median over tries of ``cold`` or ``warm`` starts; None where there was none."""
        tries = self.starts.get(name, {}).get(kind, [])
        return statistics.median(each[what] for each in tries) if tries else None

    @property
    def bound(self) -> str:
        """The nearer roof: ``flops``, as in prefill, or ``bytes``, as in decoding; empty where it is not known."""
        nearer = [computing >= moving for computing, moving in self._floors()]
        if not nearer:
            return ""
        return "flops" if statistics.median(nearer) >= 0.5 else "bytes"

    def _floors(self) -> Iterator[tuple[float, float]]:
        """The least seconds of a call by its operations and by its bytes, in each round; none where not known."""
        if not self.roofs or self.work is None or self.moved is None:
            return
        for flops, rate in zip(self.roofs["flops"], self.roofs["bytes"], strict=True):
            yield self.work / flops, self.moved / rate

    def best_peer(self) -> float | None:
        """The least ratio of a peer: below 1 one is faster than smelt. None where there is no peer or no smelt."""
        found = [ratio for name, ratio in self.ratios.items() if name != SMELT]
        return min(found) if found and SMELT in self.ratios else None
