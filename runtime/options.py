"""What ``compile`` was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..ir.errors import UnsupportedError
from ..rewrites.quantization import Quantization
from ..rewrites.search.settings import require_egglog
from .cache import KernelCache
from .check import CHECKS, Check
from .cuda.history import MOST_GRAPHS
from .expect import Expectations, check_expectations
from .target import Target

Dynamic = bool | Mapping[str, Mapping[int, str]]
FALLBACKS = ("allow", "error")
OPTIMIZE = ("rules", "search")
TUNE = ("off", "cached", "full")
KV_CACHE_DTYPES = ("bfloat16", "int8")


@dataclass(frozen=True)
class Options:
    """The arguments of ``compile`` besides the model; see there."""

    target: Target
    dynamic: Dynamic = True
    fallback: Literal["allow", "error"] = "allow"
    cache: bool | Literal["kernels"] | KernelCache = True
    optimize: Literal["rules", "search"] = "rules"
    check: Check = None
    expect: Expectations = field(default_factory=dict)
    quantize: Quantization | None = None
    tune: Literal["off", "cached", "full"] = "cached"
    graphs: int = MOST_GRAPHS
    streams: int = 1
    kv_cache_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.fallback not in FALLBACKS:
            raise ValueError(f'fallback is {self.fallback!r}: say "allow" or "error"')
        if not isinstance(self.cache, bool | KernelCache) and self.cache != "kernels":
            raise ValueError(f'cache is {self.cache!r}: say True, False, "kernels", or give a KernelCache')
        if self.optimize not in OPTIMIZE:
            raise ValueError(f'optimize is {self.optimize!r}: say "rules" or "search"')
        if isinstance(self.graphs, bool) or not isinstance(self.graphs, int) or self.graphs < 0:
            raise ValueError(f"graphs is {self.graphs!r}: give a whole number from 0")
        if isinstance(self.streams, bool) or not isinstance(self.streams, int) or self.streams < 1:
            raise ValueError(f"streams is {self.streams!r}: give a whole number from 1")
        if self.tune not in TUNE:
            raise ValueError(f'tune is {self.tune!r}: say "off", "cached" or "full"')
        if self.tune == "full" and self.target.kind != "cpu":
            raise UnsupportedError('tune="full" is for CPUs: kernels for GPUs are not tuned yet; say tune="cached"')
        if self.kv_cache_dtype is not None and self.kv_cache_dtype not in KV_CACHE_DTYPES:
            names = ", ".join(f'"{name}"' for name in KV_CACHE_DTYPES)
            raise ValueError(f"kv_cache_dtype is {self.kv_cache_dtype!r}: say {names} or None")
        if self.kv_cache_dtype is not None and self.target.kind != "cpu":
            raise UnsupportedError("kv_cache_dtype is for CPUs: on GPUs caches are in the model's dtype; leave it out")
        if self.optimize == "search":
            require_egglog()
        if self.check is not None and self.check not in CHECKS:
            raise ValueError(f'check is {self.check!r}: say "rules", "passes" or None')
        if not _is_dynamic(self.dynamic):
            raise ValueError(f'dynamic is {self.dynamic!r}: say True, False, or sizes by name: {{"x": {{0: "batch"}}}}')
        check_expectations(self.expect)

    def open_cache(self) -> KernelCache | None:
        """The kernel cache to use; None for none."""
        if isinstance(self.cache, KernelCache):
            return self.cache
        return KernelCache() if self.cache else None


def _is_dynamic(value: object) -> bool:
    """Whether it is a bool, or names of sizes by axis, by argument."""
    if not isinstance(value, Mapping):
        return isinstance(value, bool)
    if not all(isinstance(name, str) and isinstance(axes, Mapping) for name, axes in value.items()):
        return False
    sizes = [(axis, size) for axes in value.values() for axis, size in axes.items()]
    return all(type(axis) is int and isinstance(size, str) and size != "" for axis, size in sizes)
