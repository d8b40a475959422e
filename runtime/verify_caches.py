"""Caches of transformers models among arguments and results, which PyTorch's pytrees take for leaves."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor


def is_cache(leaf: Any) -> bool:
    """Whether a leaf is a cache of transformers, which is not imported for that."""
    found = sys.modules.get("transformers.cache_utils")
    return found is not None and isinstance(leaf, found.Cache)


def tensors_of(path: str, cache: Any) -> Iterator[tuple[str, Any]]:
    """What a cache holds, by path: the keys and values of each layer, those of both parts of an encoder-decoder's."""
    parts = [name for name in ("self_attention_cache", "cross_attention_cache") if hasattr(cache, name)]
    for name in parts:
        yield from tensors_of(f"{path}.{name}", getattr(cache, name))
    for number, layer in enumerate(() if parts else cache.layers):
        for name in ("keys", "values"):
            value = getattr(layer, name, None)
            yield f"{path}[{number}].{name}", value if isinstance(value, Tensor) else None


def path_of(path: Sequence[Any]) -> str:
    """``last_hidden_state`` for a key, ``[0]`` for a place; ``result`` for a result that is one tensor."""
    text = "".join(f".{key.key}" if isinstance(getattr(key, "key", None), str) else str(key) for key in path)
    return text.removeprefix(".") or "result"


def leaves_of(result: Any) -> dict[str, Any]:
    """Copies of everything in a result, by path."""
    found: dict[str, Any] = {}
    for path, leaf in pytree.tree_flatten_with_path(result)[0]:
        parts = tensors_of(path_of(path), leaf) if is_cache(leaf) else [(path_of(path), leaf)]
        found |= {name: copy_of(value) for name, value in parts}
    return found


def copy_of(leaf: Any) -> Any:
    """A copy of a tensor or a cache; anything else as it is."""
    if is_cache(leaf):
        return copied(leaf)
    return leaf.detach().clone() if isinstance(leaf, Tensor) else leaf


def copied(cache: Any, *, wide: bool = False) -> Any:
    """A copy of a cache that shares no memory with it; a wide one holds float64."""
    made = copy.deepcopy(cache)
    if wide:
        _widen(made)
    return made


def _widen(cache: Any) -> None:
    for name in ("self_attention_cache", "cross_attention_cache"):
        if hasattr(cache, name):
            _widen(getattr(cache, name))
    for layer in () if hasattr(cache, "self_attention_cache") else cache.layers:
        for name in ("keys", "values"):
            value = getattr(layer, name, None)
            if isinstance(value, Tensor) and value.is_floating_point():
                setattr(layer, name, value.double())
        if getattr(layer, "dtype", None) is not None and layer.is_initialized:
            layer.dtype = layer.keys.dtype
