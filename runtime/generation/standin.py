"""``generate`` through compiled calls: it runs on an object that is the model but for how it is called.

``generate`` calls ``self``, looks up methods by ``type(self)`` and keeps state on ``self``. The object has the model's
own ``__dict__`` and a class derived from the model's: the model is not changed, and other threads may use it.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .model import Generation

_FOR_GENERATE = ("tokenizer", "assistant_tokenizer")  # passed on to each call of the model, where nothing reads them


def stand_in(model: Any, call: Callable[..., Any], generation: Generation) -> Any:
    """An object that is a model but for how it is called.

    Args:
        call: what runs in place of the model.
        generation: whose encoder runs in place of the model's, and whose caches are as long as will be needed.
    """
    base: Any = type(model)
    passed_on = [name for name in _FOR_GENERATE if name not in signature(base.forward).parameters]

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        for name in passed_on:
            kwargs.pop(name, None)
        return call(*args, **kwargs)

    def get_encoder(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = base.get_encoder(self, *args, **kwargs)
        return generation.encoder(found) if found is not self and model.config.is_encoder_decoder else found

    def _prepare_cache_for_generation(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature(base._prepare_cache_for_generation).bind(self, *args, **kwargs).arguments
        generation.calls.asked = int(given["max_cache_length"]) + 1
        return base._prepare_cache_for_generation(self, *args, **kwargs)

    members: dict[str, Any] = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__call__": __call__,
        "get_compiled_call": lambda self, compile_config: self.__call__,
        "get_encoder": get_encoder,
        "_prepare_cache_for_generation": _prepare_cache_for_generation,
    }
    if not hasattr(base, "create_masks_for_generate"):
        # the step makes the mask itself: from a mask of four axes nobody can tell that it is causal
        members["create_masks_for_generate"] = staticmethod(lambda **given: given["attention_mask"])
    if not hasattr(base, "_reorder_cache"):
        members["_reorder_cache"] = lambda self, cache, rows: generation.calls.reorder(cache, rows)
    made: Any = object.__new__(type(base.__name__, (base,), members))
    object.__setattr__(made, "__dict__", model.__dict__)
    return made
