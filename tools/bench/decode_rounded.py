"""``smelt bench --decode --kv-cache-dtype``: what tokens and numbers are held to where caches are rounded.

That is PyTorch with caches that round as much when they are written. Tokens are compared as a whole, and the numbers of
the prompt's call and of the last token's by ``smelt.verify``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...runtime.generation.storage import Storage, storage_for
from ...runtime.module import CompiledModule
from ...runtime.options import KV_CACHE_DTYPES
from ...runtime.verify import verify
from ..errors import ModelError
from .peers import PeerError


def check_kv_cache_dtype(name: str) -> None:
    """Raise ModelError for a dtype that caches cannot be rounded to; "" is the model's own."""
    if name and name not in KV_CACHE_DTYPES:
        raise ModelError(f"there is no --kv-cache-dtype {name!r}; there are: {', '.join(KV_CACHE_DTYPES)}")


def rounding_cache(model: Any, name: str) -> Any:
    """An empty cache of transformers that rounds what is written to it, and computes in the model's dtype."""
    from transformers.cache_utils import DynamicCache

    storage = storage_for(name, model.dtype)
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))

    def update(key_states: Tensor, value_states: Tensor, *rest: Any, **more: Any) -> Any:
        return DynamicCache.update(cache, _rounded(storage, key_states), _rounded(storage, value_states), *rest, **more)

    cache.update = update
    return cache


def _rounded(storage: Storage, x: Tensor) -> Tensor:
    return storage.decode(storage.encode(x), x.dtype)


def check_storage(fast: CompiledModule, name: str) -> None:
    """Raise PeerError where not every call so far ran compiled, on caches that are rounded to a dtype."""
    found = fast.report().caches
    if found is None or not found.calls:
        raise PeerError("smelt was given no cache that it could round")
    if found.dtype != name or found.passed:
        reasons = "; ".join(found.passed) or f"caches are in {found.dtype or 'the model dtype'}"
        raise PeerError(f"smelt did not round all caches to {name}: {reasons}")


def check_numbers(fast: CompiledModule, prompt: Tensor, found: Tensor) -> str:
    """Hold the prompt's call and the last token's to the numeric contract with rounded caches; the worst as text.

    Args:
        fast: compiled with ``kv_cache_dtype``.
        prompt: tokens [B, prompt].
        found: all tokens [B, prompt + new] that it chose.

    Raises:
        VerifyError: a number breaks the contract.
    """
    with torch.no_grad():
        first = verify(fast, prompt, use_cache=True)
        cache = fast(found[:, :-1], use_cache=True).past_key_values
        last = verify(fast, found[:, -1:], past_key_values=cache, use_cache=True)
    return f"prompt: {first.worst}; last token: {last.worst}"
