"""A model's attributes put back after it was traced, which sets some of them to what only tracing knows.

A ``forward`` may keep a tensor on its module, as transformers' rotary embeddings do with the frequencies of long
contexts. While a model is traced that is a tensor without values, which must not be left in the model.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_ABSENT = object()
_CONTAINERS = (dict, list, set, OrderedDict, defaultdict)  # whose copies are what they hold


@contextmanager
def untouched(root: nn.Module) -> Iterator[None]:
    """Put the attributes of all modules back afterwards, and what lists, dicts and sets among them hold."""
    kept = [(module, dict(module.__dict__), _contents(module)) for module in root.modules()]
    try:
        yield
    finally:
        for module, attributes, contents in kept:
            _put_back(module.__dict__, attributes)
            for holder, held in contents:
                _refill(holder, held)


def _contents(module: nn.Module) -> list[tuple[Any, Any]]:
    """The containers among a module's attributes, parameters and hooks included, each with what it holds."""
    return [(value, value.copy()) for value in module.__dict__.values() if type(value) in _CONTAINERS]


def _put_back(attributes: dict[str, Any], before: dict[str, Any]) -> None:
    for name in [name for name in attributes if name not in before]:
        del attributes[name]
    for name, value in before.items():
        if attributes.get(name, _ABSENT) is not value:
            attributes[name] = value


def _refill(holder: Any, held: Any) -> None:
    """Let a container hold what it did, where that is something else by now."""
    if len(holder) == len(held) and _same(holder, held):
        return
    holder.clear()
    if isinstance(holder, list):
        holder.extend(held)
    else:
        holder.update(held)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        pairs = zip(left.items(), right.items(), strict=True)
        return all(a is b and x is y for (a, x), (b, y) in pairs)
    if isinstance(left, set):
        return bool(left == right)
    return all(a is b for a, b in zip(left, right, strict=True))
