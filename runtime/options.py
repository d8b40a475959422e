"""What ``compile`` was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .cache import KernelCache
from .expect import Expectations, check_expectations
from .target import Target

Dynamic = bool | Mapping[str, Mapping[int, str]]
FALLBACKS = ("allow", "error")


@dataclass(frozen=True)
class Options:
    """The arguments of ``compile`` besides the model; see there."""

    target: Target
    dynamic: Dynamic = True
    fallback: Literal["allow", "error"] = "allow"
    cache: bool | KernelCache = True
    expect: Expectations = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fallback not in FALLBACKS:
            raise ValueError(f'fallback is {self.fallback!r}: say "allow" or "error"')
        if not isinstance(self.dynamic, bool | Mapping):
            raise ValueError(f'dynamic is {self.dynamic!r}: say True, False, or sizes by name: {{"x": {{0: "batch"}}}}')
        check_expectations(self.expect)

    def open_cache(self) -> KernelCache | None:
        """The kernel cache to use; None for none."""
        if isinstance(self.cache, KernelCache):
            return self.cache
        return KernelCache() if self.cache else None
