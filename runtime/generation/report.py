"""What the report says of calls with a cache."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass
class CacheCounts:
    """What became of the calls with a cache.

    Attributes:
        calls: how many ran compiled.
        passed: how many ran in PyTorch, by reason.
        nbytes: the bytes of the caches of the last call, all layers and slots.
        dtype: what they are rounded to when they are written; "" where they are not.
        rewritten: bytes of caches that calls copied after the kernels, because a kernel could not write in place.
        moved: bytes that were copied between calls: of a cache that grew, or that something else replaced.
    """

    calls: int = 0
    passed: dict[str, int] = field(default_factory=dict)
    nbytes: int = 0
    rewritten: int = 0
    moved: int = 0
    dtype: str = ""

    def report(self) -> CacheReport:
        """The counts as they are now."""
        return CacheReport(self.calls, dict(self.passed), self.nbytes, self.rewritten, self.moved, self.dtype)


@dataclass(frozen=True)
class CacheReport:
    """The same, in a report."""

    calls: int
    passed: Mapping[str, int]
    nbytes: int
    rewritten: int
    moved: int
    dtype: str = ""

    @property
    def copied(self) -> int:
        """Bytes of keys and values that were copied at all; those that kernels write once, in place, are none."""
        return self.rewritten + self.moved

    def lines(self) -> Iterator[tuple[str, str]]:
        """Labels and texts."""
        if self.calls:
            how = f"{self.copied:,} bytes copied" + (f" ({self.moved:,} between calls)" if self.moved else "")
            what = f"{self.nbytes:,} bytes of keys and values" + (f", rounded to {self.dtype}," if self.dtype else "")
            yield "caches", f"{self.calls:,} calls wrote {what} in place, {how}"
        for reason, count in self.passed.items():
            yield "passed", f"{count:,} calls with a cache ran in PyTorch: {reason}"
