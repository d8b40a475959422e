"""The kinds of objects in a model's state, and how each is described. What is not here is not understood."""

from __future__ import annotations

import collections
import contextlib
import contextvars
import enum
import functools
import inspect
import logging
import pathlib
import re
import threading
import types
import typing
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy
import torch

if TYPE_CHECKING:
    from .state import State


class Unsure(Exception):
    """The state holds something of which it cannot be told what it means; the message says what and where."""


PLAIN = frozenset(
    {type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented), slice, range}
    | {torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size}
)


def plain_text(value: Any) -> str:
    """The text of a plain value: its class, and what tells it from every other."""
    if isinstance(value, float):
        return f"float:{value.hex()}"
    if isinstance(value, complex):
        return f"complex:{value.real.hex()},{value.imag.hex()}"
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        if any(type(part) not in PLAIN for part in parts):
            raise Unsure(f"a slice of {parts}")
        return f"slice:{','.join(map(plain_text, parts))}"
    return f"{type(value).__name__}:{value!r}"


def class_name(cls: type) -> str:
    """A class's module and name."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _set(state: State, value: Any, where: str) -> str:
    if any(type(item) not in PLAIN for item in value):
        described = sorted(_unordered(item, where) for item in value)
        return f"{state.kind(value, where)} {{{','.join(described)}}}"
    return f"{state.kind(value, where)} {{{','.join(sorted(map(plain_text, value)))}}}"


def _unordered(item: Any, where: str) -> str:
    """An element of a set, whose order is not told: what names itself."""
    if type(item) in PLAIN:
        return plain_text(item)
    if isinstance(item, type | types.FunctionType | types.BuiltinFunctionType | enum.Enum):
        return f"{type(item).__name__} {getattr(item, '__module__', '')}.{getattr(item, '__qualname__', item)}"
    if isinstance(item, tuple):
        return f"({','.join(_unordered(part, where) for part in item)})"
    raise Unsure(f"{where} is a set that holds a {class_name(type(item))}")


def _mapping(state: State, value: Any, where: str) -> str:
    extra = state.attributes(value, where) if hasattr(value, "__dict__") else ""
    made = state.token(value.default_factory, where) if isinstance(value, collections.defaultdict) else ""
    return f"{state.kind(value, where)} {dict.__len__(value)} {state.pairs(dict.items(value), where)} {extra} {made}"


def _sequence(state: State, value: Any, where: str) -> str:
    items = [*value]
    extra = state.attributes(value, where) if hasattr(value, "__dict__") else ""
    return f"{state.kind(value, where)} {state.sequence(items, where)} {extra}"


def _scalar(state: State, value: Any, where: str) -> str:
    """A number or a string of a class of its own."""
    base = next(cls for cls in (bool, int, float, complex, str, bytes) if isinstance(value, cls))
    extra = state.attributes(value, where) if hasattr(value, "__dict__") else ""
    return f"{state.kind(value, where)} {plain_text(base(value))} {extra}"


def _enum(state: State, value: Any, where: str) -> str:
    return f"{state.kind(value, where)} {value.name} {state.token(value.value, where)}"


def _method(state: State, value: Any, where: str) -> str:
    return f"method {state.token(value.__func__, where)} of {state.token(value.__self__, where)}"


def _builtin(state: State, value: Any, where: str) -> str:
    owner = getattr(value, "__self__", None)
    bound = "" if owner is None or isinstance(owner, types.ModuleType) else state.token(owner, where)
    of = getattr(value, "__objclass__", None)
    return f"native {getattr(value, '__module__', '')}.{value.__qualname__} {bound} {class_name(of) if of else ''}"


def _partial(state: State, value: Any, where: str) -> str:
    parts = (value.func, value.args, value.keywords)
    return f"{state.kind(value, where)} {' '.join(state.token(part, where) for part in parts)}"


def _wrapped(name: str) -> Callable[[State, Any, str], str]:
    return lambda state, value, where: f"{type(value).__name__} {state.token(getattr(value, name), where)}"


def _property(state: State, value: Any, where: str) -> str:
    return f"property {' '.join(state.token(f, where) for f in (value.fget, value.fset, value.fdel))}"


def _array(state: State, value: Any, where: str) -> str:
    if value.dtype.hasobject or value.nbytes > 1 << 24:
        raise Unsure(f"{where} is an array of {value.dtype}, {value.nbytes} bytes")
    return f"array {value.dtype.str} {value.shape} {np.ascontiguousarray(value).tobytes().hex()}"


def _variable(state: State, value: Any, where: str) -> str:
    return f"variable {value.name} {state.token(value.get(None), where)}"


def _logger(state: State, value: Any, where: str) -> str:
    return f"logger {value.name} {value.getEffectiveLevel()}"


def _context(state: State, value: Any, where: str) -> str:
    """What ``contextlib.contextmanager`` gives: a generator that has not begun."""
    parts = (value.func, value.args, value.kwds)
    return f"{state.kind(value, where)} {' '.join(state.token(part, where) for part in parts)}"


def _operator(state: State, value: Any, where: str) -> str:
    if isinstance(value, torch._ops.HigherOrderOperator):
        return f"operator {value._name}"
    name = str(getattr(value, "_qualified_op_name", value))
    if not name.startswith(("aten", "prims", "quantized")):
        raise Unsure(f"{where} is the operator {name}, whose code cannot be told")
    return f"operator {name}"


def _reference(state: State, value: Any, where: str) -> str:
    return f"reference {state.token(value(), where)}"


def _text(state: State, value: Any, where: str) -> str:
    return f"{class_name(type(value))} {value}"


def _name(state: State, value: Any, where: str) -> str:
    return class_name(type(value))


def _typing(state: State, value: Any, where: str) -> str:
    return f"type {value!r}"


_GENERIC = (types.GenericAlias, types.UnionType, typing.TypeVar, typing.ParamSpec, type(list[int]))
_TYPING = tuple({type(typing.Any), type(typing.Optional[int]), type(typing.List[int]), type(typing.Union)})  # noqa: UP006, UP045
_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket, torch._ops.HigherOrderOperator)
_NAMESPACES = (type(torch.ops), type(torch.ops.aten))
_FIELD: Any = type(vars(collections.namedtuple("_One", "x"))["x"])  # a field of a named tuple
_LOCKS = (type(threading.Lock()), type(threading.RLock()))

# In this order: the first that an object is one of describes it.
OTHERS: tuple[tuple[Any, Callable[[Any, Any, str], str | None]], ...] = (
    (types.FunctionType, lambda state, value, where: state.function(value, where)),
    (types.MethodType, _method),
    (
        (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, types.MethodWrapperType),
        _builtin,
    ),
    ((types.ClassMethodDescriptorType, types.GetSetDescriptorType, types.MemberDescriptorType), _builtin),
    (functools.partial, _partial),
    (functools.partialmethod, _partial),
    (functools._lru_cache_wrapper, _wrapped("__wrapped__")),
    ((classmethod, staticmethod), _wrapped("__func__")),
    (property, _property),
    (functools.cached_property, _wrapped("func")),
    (types.CodeType, lambda state, value, where: state.token(types.FunctionType(value, {}), where)),
    (enum.Enum, _enum),
    (_OPERATORS, _operator),
    (_NAMESPACES, _name),
    ((types.MappingProxyType,), lambda state, value, where: f"mapping {state.pairs(value.items(), where)}"),
    (types.SimpleNamespace, lambda state, value, where: f"{state.kind(value, where)} {state.attributes(value, where)}"),
    (dict, _mapping),
    ((set, frozenset), _set),
    ((list, tuple, collections.deque), _sequence),
    ((bool, int, float, complex, str, bytes), _scalar),
    (np.ndarray, _array),
    ((np.generic, np.dtype), _typing),
    (re.Pattern, lambda state, value, where: f"pattern {value.pattern!r} {value.flags}"),
    (contextvars.ContextVar, _variable),
    (logging.Logger, _logger),
    (logging.Handler, _name),
    (contextlib._GeneratorContextManager, _context),
    (_FIELD, _name),
    (weakref.ref, _reference),
    (pathlib.PurePath, _text),
    ((inspect.Signature, inspect.Parameter), _text),
    (sympy.Basic, lambda state, value, where: f"expression {sympy.srepr(value)}"),
    (torch.finfo | torch.iinfo, _typing),
    (_LOCKS, _name),
    ((*_GENERIC, *_TYPING), _typing),
)
