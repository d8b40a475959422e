"""What a module's ``forward`` looks at besides its arguments, and whether another module would show it the same."""

from __future__ import annotations

import dis
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)
_OWN = frozenset(nn.Module().__dict__)  # what every module has: looked at by PyTorch, compared apart
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_MODULE_FILE = nn.Module.__call__.__code__.co_filename


class Reads:
    """The attributes that a module and those inside of it were asked for, with their values then."""

    def __init__(self, module: nn.Module) -> None:
        self._parts = dict(module.named_modules(remove_duplicate=False))
        self._paths = {part: path for path, part in self._parts.items()}
        self._found: dict[tuple[nn.Module, str], Any] = {}
        self._weights = weight_types(module)
        self._names = {path: part.__dict__.keys() - {"forward"} for path, part in self._parts.items()}
        self._states: dict[tuple[nn.Module, str], Any] = {}
        self.all_seen = True  # whether nothing was read in a way that is not recorded
        self.wrote = False  # whether an attribute was set: what comes after may read it

    def note(self, part: nn.Module, name: str, value: Any, file: str) -> None:
        """Enter an attribute that was read, by code of a file."""
        if part not in self._paths:
            return
        if name == "__dict__" and file != _MODULE_FILE:
            self.all_seen = False
            return
        known = name in _OWN or name == "forward" or (part, name) in self._found
        if not known and name in object.__getattribute__(part, "__dict__"):
            self._found[part, name] = value
            self._states[part, name] = _state(value)

    def same(self, other: nn.Module) -> bool:
        """Whether another module is of the same parts, weights of the same types, and shows the same attributes."""
        parts = dict(other.named_modules(remove_duplicate=False))
        return (
            self.all_seen
            and parts.keys() == self._parts.keys()
            and all(type(parts[path]) is type(mine) for path, mine in self._parts.items())
            and _grouped(parts) == _grouped(self._parts)
            and all(part.__dict__.keys() - {"forward"} == self._names[path] for path, part in parts.items())
            and weight_types(other) == self._weights
            and all(self._alike(part, name, parts) for part, name in self._found)
        )

    def _alike(self, part: nn.Module, name: str, parts: dict[str, nn.Module]) -> bool:
        """Whether an attribute of another module means what it meant in the one that was watched."""
        value, other = self._found[part, name], parts[self._paths[part]].__dict__[name]
        if isinstance(value, nn.Module) and value in self._paths:
            return other is parts[self._paths[value]]
        if other is value:  # one object, which may have changed since
            return bool(_state(other) == self._states[part, name])
        return _same_constant(value, other)


def _state(value: Any) -> Any:
    """What an object holds now, a level deep: to see whether it changed. None for what cannot change."""
    if isinstance(value, (*PLAIN, nn.Module, type)) or callable(value):
        return None
    if isinstance(value, Tensor):
        return value._version
    if isinstance(value, dict):
        return [(_brief(k), _brief(v)) for k, v in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [_brief(v) for v in value]
    return [(k, _brief(v)) for k, v in getattr(value, "__dict__", {}).items()]


def _brief(value: Any) -> Any:
    return repr(value) if isinstance(value, PLAIN) else id(value)


def _same_constant(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_same_constant, a, b))
    return isinstance(a, PLAIN) and repr(a) == repr(b)  # 0.0 is not -0.0


def _grouped(parts: dict[str, nn.Module]) -> list[str]:
    """For each path the first path of the same module."""
    first: dict[nn.Module, str] = {}
    return [first.setdefault(part, path) for path, part in parts.items()]


def weight_types(module: nn.Module) -> list[tuple[Any, ...]]:
    """The weights of a module by path: type, shape, strides, and which of them are one tensor."""
    first: dict[int, str] = {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return [
        (path, first.setdefault(id(t), path), type(t), tuple(t.shape), t.stride(), t.dtype, t.device)
        for path, t in named
    ]


def is_plain(module: nn.Module) -> bool:
    """Whether calling a module runs its classes' ``forward`` and nothing else: no hooks, no replaced methods inside."""
    for part in module.modules():
        # those of the module itself are run for each call, around its `forward`
        inside = part is not module
        hooked = inside and any(part.__dict__.get(name) for name in _HOOKS)
        if (
            hooked
            or (inside and "forward" in part.__dict__)
            or part.training
            or isinstance(part, torch.jit.ScriptModule)
        ):
            return False
        if (
            type(part).__getattribute__ is not object.__getattribute__
            or type(part).__setattr__ is not nn.Module.__setattr__
        ):
            return False
        if any(i.opname in ("STORE_GLOBAL", "DELETE_GLOBAL") for i in dis.get_instructions(type(part).forward)):
            return False
    return True


@contextmanager
def recorded_reads(module: nn.Module) -> Iterator[Reads]:
    """Record what code running in this thread reads of a module (that :func:`is_plain`) and of those inside of it."""
    reads, thread, plain = Reads(module), threading.get_ident(), nn.Module.__setattr__

    def __getattribute__(self: Any, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if threading.get_ident() == thread:
            reads.note(self, name, value, sys._getframe(1).f_code.co_filename)
        return value

    def __setattr__(self: Any, name: str, value: Any) -> None:
        reads.wrote = True
        plain(self, name, value)

    classes = {type(part) for part in module.modules()}
    for one in classes:
        one.__getattribute__ = __getattribute__  # type: ignore[method-assign]
        one.__setattr__ = __setattr__  # type: ignore[method-assign]
    try:
        yield reads
    finally:
        for one in classes:
            del one.__getattribute__, one.__setattr__


def versions(module: nn.Module, tensors: list[Tensor]) -> list[int]:
    """How often the weights of a module, and tensors, were written to."""
    return [t._version for t in (*module.parameters(), *module.buffers(), *tensors)]
