"""Everything in a process that decides what a model computes, as text: its objects, their code, what that code names.

The walk begins at the model. Of an object it takes all attributes; of a function its instructions, constants, defaults,
closure, and each global that a name in it may mean; of a class or a Python module those attributes whose name occurs
anywhere in the code, or in a string constant there, since ``getattr`` takes strings. A tensor that is a parameter or a
buffer is a type; any other is its values. Packages in :mod:`.trust` are known by their versions: of their functions
only the code is taken, so that one which was replaced is seen.

What the walk does not know the meaning of raises :class:`Unsure`.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .code import digest_of, names_of, words_of
from .kinds import OTHERS, PLAIN, Unsure, class_name, plain_text
from .trust import PARTS, is_known

_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: classes that a class statement made, and some of C
_UNNAMED = frozenset({"forward"})  # what PyTorch calls
_ABOUT = frozenset(
    {"__doc__", "__module__", "__dict__", "__weakref__", "__annotations__", "__qualname__", "__abstractmethods__"}
    | {"_abc_impl", "__firstlineno__", "__static_attributes__", "__orig_bases__", "__parameters__", "__slots__"}
    | {"__dataclass_fields__", "__dataclass_params__", "__match_args__", "__type_params__", "__annotate__"}
    # never part of a call
    | {"__repr__", "__str__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__del__", "__dir__"}
    | {"__copy__", "__deepcopy__", "__sizeof__", "__format__", "__subclasshook__"}
)
# numbers that are others in each process: ids, and hashes of strings
_OF_A_PROCESS = frozenset({"_torchdynamo_wrapper_id", "_original_object_hash"})
MOST_BYTES = 64 << 20  # of tensors that are neither parameters nor buffers
_ENVIRONMENT = ("TORCH_", "PYTORCH_", "ATEN_", "MKL_", "ONEDNN_", "DNNL_")


@dataclass
class _Holder:
    """A class or a module, of which those attributes count that some code names."""

    number: int
    of: Mapping[str, Any]
    known: bool
    where: str
    wanted: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)


class State:
    """The state of a model.

    Attributes:
        lines: its text.
        loose: the tensors found that are neither parameters nor buffers.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        self.lines: list[str] = []
        self.loose: list[Tensor] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []
        self._waiting: deque[tuple[int, Any, str]] = deque()
        self._words: set[str] = set()
        self._holders: list[_Holder] = []
        self._classes: dict[type, _Holder] = {}
        self._bytes = 0
        self._weights: set[int] = set()
        self._memory: dict[Any, int] = {}
        if isinstance(model, nn.Module):
            self._weights = {id(t) for t in (*_all(model.named_parameters), *_all(model.named_buffers))}
        self.lines.append(self.token(model, "the model"))
        self._run()
        self.lines += self._environment()

    @property
    def digest(self) -> str:
        """The SHA-256 of the text."""
        return hashlib.sha256("\n".join(self.lines).encode("utf-8", "surrogatepass")).hexdigest()

    # --- the walk -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        # whoever patches PyTorch patches these; code does not name the methods of operators
        for cls in Tensor.__mro__[:-1]:
            self._hold_class(cls)
            self._classes[cls].wanted |= {name for name in cls.__dict__ if name.startswith("__")}
        while True:
            while self._waiting:
                number, obj, where = self._waiting.popleft()
                self.lines.append(f"{number} {self._describe(obj, where)}")
            if not sum(self._resolve(holder) for holder in list(self._holders)) and not self._waiting:
                return

    def _resolve(self, holder: _Holder) -> bool:
        """Take the attributes of a holder that have been named since the last time; whether there were any."""
        found = (holder.of.keys() & self._words) | (holder.of.keys() & holder.wanted)
        new = sorted(found - holder.done - _ABOUT)
        holder.done.update(new)
        for name in new:
            # a part of a package is an attribute once something has imported it, which differs from run to run
            if holder.known and isinstance(holder.of[name], ModuleType) and holder.of[name].__name__ not in PARTS:
                continue
            value, where = holder.of[name], f"{holder.where}.{name}"
            text = self._known_text(value, where) if holder.known else self.token(value, where)
            self.lines.append(f"{holder.number}.{name} {text}")
        return bool(new)

    def token(self, obj: Any, where: str) -> str:
        """What stands for an object in text: a plain one itself, any other by its number."""
        if type(obj) in PLAIN:
            return plain_text(obj)
        number = self._numbers.get(id(obj))
        if number is None:
            number = self._numbers[id(obj)] = len(self._alive)
            self._alive.append(obj)
            self._waiting.append((number, obj, where))
        return f"@{number}"

    def _describe(self, obj: Any, where: str) -> str:
        if isinstance(obj, Tensor):
            return self._tensor(obj, where)
        if isinstance(obj, type):
            return self._class(obj, where)
        if isinstance(obj, ModuleType):
            return self._module(obj, where)
        for kind, describe in OTHERS:
            if isinstance(obj, kind):
                text = describe(self, obj, where)
                if text is not None:
                    return text
        return self._object(obj, where)

    # --- objects ------------------------------------------------------------------------------------------------------

    def pairs(self, items: Iterator[tuple[Any, Any]] | Any, where: str) -> str:
        """The text of keys and values, in order."""
        parts = []
        for key, value in items:
            inside = f"{where}[{key!r}]" if type(key) in PLAIN else where
            parts.append(f"{self.token(key, inside)}={self.token(value, inside)}")
        return "{" + ",".join(parts) + "}"

    def sequence(self, items: Any, where: str) -> str:
        """The text of elements in order."""
        return "[" + ",".join(self.token(item, f"{where}[{i}]") for i, item in enumerate(items)) + "]"

    def kind(self, obj: Any, where: str) -> str:
        """The text of an object's class."""
        return self.token(type(obj), where)

    def attributes(self, obj: Any, where: str) -> str:
        """The text of an object's own attributes."""
        found = dict(getattr(obj, "__dict__", {}))
        for base in type(obj).__mro__:
            slots = base.__dict__.get("__slots__", ())
            for slot in (slots,) if isinstance(slots, str) else slots:
                if slot not in ("__dict__", "__weakref__") and hasattr(obj, slot):
                    found[slot] = getattr(obj, slot)
        kept = ((k, v) for k, v in found.items() if k not in _OF_A_PROCESS)
        return "{" + ",".join(f"{k}={self.token(v, f'{where}.{k}')}" for k, v in kept) + "}"

    def _object(self, obj: Any, where: str) -> str:
        cls = type(obj)
        if cls is object:
            return "a mark"
        if not _is_of_python(cls):
            raise Unsure(f"{where} is a {class_name(cls)}, of which it cannot be told what it holds")
        return f"object {self.kind(obj, where)} {self.attributes(obj, where)}"

    def _tensor(self, tensor: Tensor, where: str) -> str:
        if type(tensor) not in (Tensor, nn.Parameter, nn.Buffer) or tensor.layout is not torch.strided:
            raise Unsure(f"{where} is a {class_name(type(tensor))} of layout {tensor.layout}")
        kind = f"{type(tensor).__name__} {tuple(tensor.shape)} {tensor.stride()} {tensor.dtype} {tensor.device}"
        # which tensors share memory, and where in it
        base = self._memory.setdefault(tensor.untyped_storage()._cdata, len(self._memory))
        kind += f" {tensor.requires_grad} {tensor.is_neg()} {tensor.is_conj()} {base}+{tensor.storage_offset()}"
        kind += f" {self.attributes(tensor, where)}"
        if id(tensor) in self._weights:
            return f"weight {kind}"
        self.loose.append(tensor)
        self._bytes += tensor.nbytes
        if self._bytes > MOST_BYTES or tensor.device.type != "cpu" or tensor.is_quantized:
            raise Unsure(f"{where} is a tensor of {tensor.nbytes} bytes that is neither a parameter nor a buffer")
        flat = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
        return f"tensor {kind} {hashlib.sha256(flat.numpy().tobytes()).hexdigest()}"

    # --- classes and modules ------------------------------------------------------------------------------------------

    def _hold_class(self, cls: type) -> None:
        """Count what code names of a class, and the methods that are called without being named."""
        if cls in self._classes:
            return
        known = is_known(cls.__module__) or not cls.__flags__ & _HEAP_TYPE
        wanted = set() if known else {name for name in cls.__dict__ if name.startswith("__") or name in _UNNAMED}
        holder = _Holder(-len(self._holders) - 1, cls.__dict__, known, class_name(cls), wanted)
        self._classes[cls] = holder
        self._holders.append(holder)

    def _class(self, cls: type, where: str) -> str:
        if is_known(cls.__module__):
            if class_name(cls) == "torch.Tensor" or not cls.__flags__ & _HEAP_TYPE:
                return f"class {class_name(cls)}"
            self._hold_class(cls)
            return f"class {class_name(cls)} {self._classes[cls].number}"
        bases = []
        for base in cls.__mro__[:-1]:
            self._hold_class(base)
            bases.append(f"{class_name(base)} {self._classes[base].number}")
        meta = "" if type(cls) is type else self.token(type(cls), where)
        return f"class {' '.join(bases)} {meta}"

    def _module(self, module: ModuleType, where: str) -> str:
        name = module.__name__
        known = is_known(name)
        holder = _Holder(-len(self._holders) - 1, vars(module), known, name)
        self._holders.append(holder)
        return f"module {name} {holder.number} {vars(module).get('__version__', '')}"

    def _known_text(self, value: Any, where: str) -> str:
        """What is looked up in a package that is known by its version: its code, so that a replaced one is seen."""
        if isinstance(value, FunctionType):
            own = is_known(value.__globals__.get("__name__") or "?")
            # a wrapper of PyTorch's may be around a function of the user's
            plain = own and value.__closure__ is None and not value.__dict__
            return f"known {digest_of(value.__code__)}" if plain else self.token(value, where)
        if type(value) in PLAIN:
            return plain_text(value)
        if isinstance(value, type):
            return f"class {class_name(value)}" if is_known(value.__module__) else self.token(value, where)
        if isinstance(value, ModuleType):
            return self.token(value, where)
        if isinstance(value, staticmethod | classmethod | MethodType):
            return f"{type(value).__name__} {self._known_text(value.__func__, where)}"
        if isinstance(value, property):
            return f"property {self._known_text(value.fget, where)}"
        name = value.__qualname__ if isinstance(value, BuiltinFunctionType | MethodDescriptorType) else ""
        return f"{class_name(type(value))} {name}"

    # --- functions ----------------------------------------------------------------------------------------------------

    def function(self, function: Any, where: str) -> str:
        """The text of a function of Python."""
        code = function.__code__
        name = f"{function.__module__}.{function.__qualname__}"
        parts = [f"function {name} {digest_of(code)}"]
        # by its globals: a wrapper may say that it is of the module of what it wraps
        known = is_known(function.__globals__.get("__name__") or "?")
        if not known:
            parts.append(self.token(function.__defaults__, f"{name}'s defaults"))
            parts.append(self.token(function.__kwdefaults__, f"{name}'s defaults"))
        for variable, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                parts.append(f"{variable}={self.token(cell.cell_contents, f'{variable} of {name}')}")
            except ValueError:
                parts.append(f"{variable} is empty")
        if function.__dict__:
            parts.append(self.attributes(function, name))
        if not known:
            self._words |= words_of(code)
            parts += self._globals(function, names_of(code), name)
        return " ".join(parts)

    def _globals(self, function: Any, names: frozenset[str], where: str) -> Iterator[str]:
        scope = function.__globals__
        inner = scope.get("__builtins__", {})
        builtins = inner if isinstance(inner, dict) else vars(inner)
        for name in sorted(names):
            if name in scope:
                yield f"{name}={self.token(scope[name], f'{name} in {where}')}"
            elif name in builtins:
                yield f"{name}={self._known_text(builtins[name], name)}"
            elif name in sys.modules:
                yield f"import {name}={self.token(sys.modules[name], name)}"

    def _environment(self) -> Iterator[str]:
        # `os.environ[f"MY_{name}"]` too
        begins = (*_ENVIRONMENT, *(word for word in self._words if word.endswith("_") and len(word) > 2))
        for name in sorted(os.environ):
            if (name in self._words and name != "_") or name.startswith(begins):
                yield f"environment {name}={os.environ[name]}"


def _is_of_python(cls: type) -> bool:
    """Whether all that objects of a class hold are attributes: no class that it is made from is written in C."""
    has_attributes = False
    for base in reversed(cls.__mro__[:-1]):
        if not base.__flags__ & _HEAP_TYPE:
            return False
        if not has_attributes and "__dict__" not in base.__dict__ and "__slots__" not in base.__dict__:
            return False
        has_attributes = has_attributes or "__dict__" in base.__dict__
    return True


def _all(named: Callable[..., Iterator[tuple[str, Tensor]]]) -> Iterator[Tensor]:
    return (tensor for _, tensor in named(remove_duplicate=False))
