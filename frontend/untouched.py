"""A model's attributes put back after it was traced, which sets some of them to what only tracing knows.

A ``forward`` may keep a tensor on its module, as transformers' rotary embeddings do with the frequencies of long
contexts. While a model is traced that is a tensor without values, which must not be left in the model.

What was set is told: a capture neither writes it, nor reads what another call wrote.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..ir.errors import CaptureError

_ABSENT = object()
_CONTAINERS = (dict, list, set, OrderedDict, defaultdict)  # whose copies are what they hold


_OF_MODULES = frozenset(vars(nn.Module()))  # parameters, buffers, hooks: not what a model calls its own
_VALUES = (bool, int, float, complex, str)
_OF_RECURRENT = frozenset({"_flat_weights", "_flat_weight_refs"})  # the weights again, which they set anew
_LIBRARIES = ("torch", "transformers", "builtins", "collections", "numpy", "types", "functools")
_LONGEST = 1000  # items of a container that are looked into, as those of a vocabulary are not


class WritesStateError(CaptureError):
    """A model keeps something on itself from call to call: the attributes ``names``, by path.

    Attributes:
        plain: attributes that tracing set to numbers, texts or None alone, if only to what they were: no call sets them
            to what depends on the values of tensors.
        by_size: whether an attribute becomes another size, as the length of the last call is.
    """

    def __init__(self, names: Sequence[str], plain: Collection[str] = (), by_size: bool = False) -> None:
        super().__init__(f"it keeps {', '.join(names)} from call to call")
        self.names, self.plain, self.by_size = tuple(names), frozenset(plain), by_size


_SIZES = {torch.SymInt, torch.SymFloat, torch.SymBool}


class _OtherSize:
    """Stands among the types of values for a size that is not what the attribute was."""


class Written:
    """What was set while a model was traced.

    Attributes:
        names: of the attributes that are another value then, by path.
        types: of the values that attributes were assigned, if only what they were.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.types: dict[str, set[type]] = {}

    def error(self, prefix: str) -> WritesStateError:
        """The error of a model that must not set any; its names are without a prefix."""
        plain = [name for name, types in self.types.items() if types <= {*_VALUES, type(None)}]
        names, plain = ([name.removeprefix(prefix) for name in found] for found in (self.names, plain))
        return WritesStateError(names, plain, any(_OtherSize in types for types in self.types.values()))

    @property
    def has_sizes(self) -> bool:
        """Whether an attribute was set to what is another one for each size."""
        return any(types & _SIZES for types in self.types.values())


def value_of(root: nn.Module, path: str) -> Any:
    """The attribute of a module that is at a path of names; None where there is none."""
    owner, _, name = path.rpartition(".")
    return vars(root.get_submodule(owner)).get(name)


@contextmanager
def untouched(root: nn.Module) -> Iterator[list[str]]:
    """Put the attributes of all modules back afterwards, and what lists, dicts, sets and plain objects in them hold.

    Yields the names of those that were set meanwhile to another value, which are known at the end.
    """
    kept = _keep(root)
    written: list[str] = []
    try:
        yield written
    finally:
        written += _changed(kept)
        for _, module, attributes, contents in kept:
            _put_back(module.__dict__, attributes)
            for _, holder, held in contents:
                _refill(holder, held)


@contextmanager
def watched(root: nn.Module) -> Iterator[list[str]]:
    """Yield the names of attributes of modules that are set meanwhile to another value, which are known at the end."""
    kept = _keep(root)
    written: list[str] = []
    yield written
    written += _changed(kept)


@contextmanager
def assigned(root: nn.Module, *, equal: bool = False) -> Iterator[dict[str, set[type]]]:
    """Yield the names of attributes that this thread sets to another value, also if they are set back afterwards.

    With each come the types of the values.

    While PyTorch exports a model it puts back what the model sets. With ``equal`` values count that are equal to those
    before, but for a tensor that is the one before.
    """
    paths = {id(module): path for path, module in root.named_modules()}
    found: dict[str, set[type]] = {}
    thread, plain = threading.get_ident(), nn.Module.__setattr__

    def note(module: nn.Module, name: str, value: Any) -> None:
        path = paths.get(id(module))
        mine = path is not None and threading.get_ident() == thread and _is_own(module, name)
        before = module.__dict__.get(name, _ABSENT)
        is_same = before is value and isinstance(value, Tensor) if equal else _alike(before, value)
        if mine and not is_same:
            types = found.setdefault(f"{path}.{name}".lstrip("."), set())
            types.add(type(value))
            if type(value) in _SIZES and value.node.hint != before:
                types.add(_OtherSize)
        plain(module, name, value)

    nn.Module.__setattr__ = note  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        nn.Module.__setattr__ = plain  # type: ignore[method-assign]


def _is_own(module: nn.Module, name: str) -> bool:
    """Whether an attribute is the model's own: no parameter, buffer or part, nor what recurrent layers set anew."""
    parts = (module._parameters, module._buffers, module._modules)
    return name not in _not_own(module) and not any(name in part for part in parts)


def _not_own(module: nn.Module) -> frozenset[str]:
    """The attributes of a module that PyTorch keeps for itself."""
    return _OF_MODULES | _OF_RECURRENT if isinstance(module, nn.RNNBase) else _OF_MODULES


_Content = tuple[str, Any, Any]  # the attribute that something is found by, what it is, and what it holds
_Kept = list[tuple[str, nn.Module, dict[str, Any], list[_Content]]]


def _keep(root: nn.Module) -> _Kept:
    return [(path, module, dict(module.__dict__), _contents(module)) for path, module in root.named_modules()]


def _changed(kept: _Kept) -> list[str]:
    """The attributes that are not what they were, by path."""
    found = []
    for path, module, before, contents in kept:
        now = module.__dict__
        held = {id(holder): was for _, holder, was in contents}
        inside = {name for name, holder, was in contents if not _alike(was, holder)}
        for name in {**before, **now}.keys() - _not_own(module):
            was, value = before.get(name, _ABSENT), now.get(name, _ABSENT)
            content = held.get(id(was), was)
            # PyTorch puts copies of containers in their place, whatever was appended to them
            if name in inside or not _alike(content, value) or not _alike(content, was):
                found.append(f"{path}.{name}".lstrip("."))
    return sorted(found)


def _alike(was: Any, value: Any) -> bool:
    """Whether a value is the one before: the same object, an equal number, or a container of such."""
    if was is value:
        return True
    if type(was) is not type(value):
        return False
    if isinstance(was, _VALUES):
        return bool(was == value)
    if isinstance(was, dict):
        return list(was) == list(value) and all(_alike(was[key], value[key]) for key in was)
    if isinstance(was, (list, tuple)):
        return len(was) == len(value) and all(map(_alike, was, value))
    return isinstance(was, (set, frozenset)) and was == value


def _contents(module: nn.Module) -> list[_Content]:
    """The containers among a module's attributes, parameters and hooks included, and what is in them, each a copy.

    Of objects of the model's own classes it is their attributes.
    """
    found: list[_Content] = []
    for name, value in module.__dict__.items():
        if name in _OF_MODULES:
            if type(value) in _CONTAINERS:
                found.append((name, value, value.copy()))
        elif value is not None and type(value) not in _VALUES and not isinstance(value, Tensor):
            _add_contents(found, name, value)
    return found


def _add_contents(found: list[_Content], name: str, root: Any) -> None:
    """Add what is found by one attribute, each holder once."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        holder = vars(value) if _is_plain_object(value) else value
        if type(holder) in _CONTAINERS:
            found.append((name, holder, holder.copy()))
        if type(holder) in (*_CONTAINERS, tuple) and len(holder) <= _LONGEST:
            waiting += holder.values() if isinstance(holder, dict) else holder


def _is_plain_object(value: Any) -> bool:
    """Whether something is an object of a class of the model's own, no part of it and nothing to call."""
    of_a_library = (type(value).__module__ or "").partition(".")[0] in _LIBRARIES
    return not of_a_library and hasattr(value, "__dict__") and not callable(value) and not isinstance(value, type)


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
