"""Caches of transformers that round what is written to them, in PyTorch: the reference for ``kv_cache_dtype``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch import Tensor
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

from .generative import tokens_of
from .test_generate import call

KINDS = (DynamicLayer, DynamicSlidingWindowLayer, StaticLayer, StaticSlidingWindowLayer)
Round = Callable[[Tensor], Tensor]

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "static": {"cache_implementation": "static"},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 1.5},
    "beams": {"num_beams": 3},
    "static beams": {"num_beams": 3, "cache_implementation": "static"},
}


def to_bfloat16(x: Tensor) -> Tensor:
    """Rounded to nearest."""
    return x.bfloat16().to(x.dtype)


def to_int8(x: Tensor) -> Tensor:
    """Rows as whole numbers from -127 to 127, times the largest of a row over 127."""
    step = x.abs().max(-1, keepdim=True).values / 127
    return (x / step.masked_fill(step == 0, 1)).round() * step


def _rounding(update: Any, rounded: Round, sources: bool) -> Any:
    def found(self: Any, keys: Tensor, values: Tensor, *rest: Any, **more: Any) -> Any:
        if sources or keys.shape[2] == 1:
            keys, values = rounded(keys), rounded(values)
        return update(self, keys, values, *rest, **more)

    return found


@contextmanager
def rounding(rounded: Round, *, sources: bool = True) -> Iterator[None]:
    """Within this caches round; without ``sources`` those that are written all at once do not, as of a source."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in KINDS:
            patch.setattr(kind, "update", _rounding(kind.update, rounded, sources))
        yield


def expected_of(model: Any, inputs: Any, rounded: Round, *, sources: bool = True, **how: Any) -> Any:
    """What a model generates with such caches."""
    with rounding(rounded, sources=sources):
        return tokens_of(model, inputs, **how)[0]


def reference(model: Any, ids: Tensor, cache: Any, rounded: Round) -> Tensor:
    """The logits of one call with such a cache."""
    with rounding(rounded):
        logits: Tensor = call(model, ids, cache).logits
        return logits
