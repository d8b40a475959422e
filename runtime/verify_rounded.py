"""``smelt.verify`` of a model whose caches are rounded: held to the model with caches that round in the same way.

What is written to a cache is rounded in PyTorch too, for what stands for eager and for the float64 reference. A number
in the middle between two that can be stored may be rounded another way for a difference in its last bit: a result also
passes within ``TIES`` of how far rounding moved it. So does one that keeps the contract with the model itself, as where
a call ran in PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .contract import OutputResult, compare
from .verify_quantized import TIES, Moved, Values, moved_by

if TYPE_CHECKING:
    from .generation.calls import CachedCalls

REFERENCE = "the model with rounded caches, in float64"


def rounding(calls: CachedCalls, model: Callable[..., Any]) -> Callable[..., Any]:
    """A model, or a copy of it in another dtype, as a function whose caches round what is written to them."""
    storage = calls.storage

    def rounded(x: Tensor) -> Tensor:
        return storage.decode(storage.encode(x), x.dtype)

    def run(*args: Any, **kwargs: Any) -> Any:
        given = calls.with_cache(calls.named(args, kwargs))
        cache = given.get("past_key_values")
        own = getattr(cache, "self_attention_cache", cache)
        if own is None:
            return model(*args, **kwargs)

        for layer in own.layers:  # what it holds already is rounded when it is taken over
            if isinstance(getattr(layer, "keys", None), Tensor):
                layer.keys, layer.values = rounded(layer.keys), rounded(layer.values)

        def update(key_states: Tensor, value_states: Tensor, *rest: Any, **more: Any) -> Any:
            return type(own).update(own, rounded(key_states), rounded(value_states), *rest, **more)

        own.update = update
        try:
            return model(**given)
        finally:
            del own.update

    return run


def moved_all(shown: Sequence[str], exact: Values, plain: Values) -> dict[str, Moved]:
    """How far rounding moved the model: what it gives in float64 with rounded caches, and without, by path."""
    found = {path: moved_by(path, exact.get(path), plain.get(path), "rounding the caches") for path in shown}
    return {path: how_far for path, how_far in found.items() if how_far is not None}


def judged_rounded(
    ours: Values,
    eager: tuple[Values, Values],
    exact: tuple[Mapping[str, Any], Mapping[str, Any]],
    shown: Sequence[str],
) -> tuple[tuple[OutputResult, ...], tuple[Moved, ...]]:
    """How our values compare, and how far rounding moved them.

    Args:
        ours: what the compiled model gives, by path.
        eager: what the model gives with rounded caches, and without.
        exact: the same in float64.
        shown: the paths to compare.
    """
    results, moved = [], []
    for path in shown:
        result = compare(path, ours[path], eager[0][path], exact[0].get(path))
        how_far = moved_by(path, exact[0].get(path), exact[1].get(path), "rounding the caches")
        if not result.passed:
            near = how_far is not None and result.rmse is not None and result.rmse <= TIES * how_far.rmse
            plain = compare(path, ours[path], eager[1][path], exact[1].get(path))
            result = replace(result, fault=None) if near else plain if plain.passed else result
        results.append(result)
        moved += [] if how_far is None else [how_far]
    return tuple(results), tuple(moved)
