"""Equal layers are traced once or twice, and not as often as the model has them.

PyTorch traces a layer in some tens of milliseconds, so that nearly all of a deep model's compile time is its tracing.
The first two of equal layers are traced as they are, between two operators that mark where they begin and end. Each
further one becomes a single operator, which the lowering replaces by the first layer's nodes on other weights (see
:mod:`.instances`). The second is there to hold the first to it: both must give the same nodes.

Layers are equal where nothing differs that the first one looked at: their classes, the types of their weights and which
of those are one, the attributes that were read, the types of their tensor arguments and the values of all others. A
layer that takes anything else than tensors and constants, or that has hooks inside, is traced as it is. Where one
writes to its arguments or weights, or returns what shares memory with them, the whole model is traced without all this.
"""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .attributes import PLAIN, Reads, is_plain, recorded_reads, versions

NAMESPACE = "smelt"  # of the operators that mark a layer
FEWEST = 4  # layers of one class side by side: with fewer, nothing is gained

RESULTS = (tuple, list, dict)  # containers that a layer may return


@dataclass
class LayerCall:
    """A call of a layer in a trace.

    Attributes:
        path: of the layer in the traced module.
        like: the number of the call that this one repeats; None for the first of its kind.
    """

    path: str
    like: int | None = None


@dataclass(frozen=True)
class _Slot:
    """A tensor in the result of a layer: a new one, or one of its arguments."""

    given: bool
    position: int


class _TypeOf(NamedTuple):
    """The type of a tensor: dims and strides are numbers or PyTorch's symbolic ones."""

    shape: tuple[Any, ...]
    strides: tuple[Any, ...]
    dtype: torch.dtype
    device: torch.device

    def key(self) -> tuple[Any, ...]:
        return (tuple(map(_size_key, self.shape)), tuple(map(_size_key, self.strides)), self.dtype, self.device)

    def make(self) -> Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class _Given:
    """What a layer is called with: the structure of its arguments, the types of its tensors, PyTorch's settings."""

    structure: Any
    types: tuple[_TypeOf, ...]
    modes: tuple[Any, ...]

    def key(self) -> Any:
        """What equal calls have in common now: sizes that the trace found to be one since are one."""
        return (self.structure, tuple(type_.key() for type_ in self.types), self.modes)


@dataclass
class _Template:
    """The first call of its kind: what it got, what it read, what it gave.

    ``key`` is that of what it got, as it was then.
    """

    number: int
    given: _Given
    key: Any
    reads: Reads
    result: Any = None
    types: list[_TypeOf] = field(default_factory=list)
    confirmed: bool = False


class Repeats:
    """The equal layers of a module while it is traced.

    Attributes:
        calls: the calls of layers that are marked, by number.
        broken: a layer did what markers hide: the model must be traced without them.
    """

    def __init__(self, module: nn.Module) -> None:
        self._layers = dict(_candidates(module))
        self._unify = True
        self._start()

    def _start(self) -> None:
        self.calls: dict[int, LayerCall] = {}
        self.broken = False
        self._templates: dict[Any, list[_Template]] = defaultdict(list)
        self._again: dict[int, _Template] = {}
        self._busy = False
        self._unified = False

    def __bool__(self) -> bool:
        """Whether the module has layers that may be equal."""
        return bool(self._layers)

    def give_up(self) -> None:
        """Take fewer layers for equal: only those whose sizes were the same when they were called, or else none."""
        if self._unified and self._unify:
            self._unify = False
        else:
            self._layers = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the calls of layers that this thread makes meanwhile: one trace."""
        self._start()
        thread = threading.get_ident()
        wrappers = {layer: self._wrapper(layer, thread) for layer in self._layers}
        for layer, wrapper in wrappers.items():
            layer.__dict__["forward"] = wrapper
        _ACTIVE.append(self)
        try:
            yield
        finally:
            _ACTIVE.remove(self)
            for layer, wrapper in wrappers.items():
                if layer.__dict__.get("forward") is wrapper:
                    del layer.__dict__["forward"]

    def types_of(self, number: int) -> list[_TypeOf]:
        """The types of what a repeated call gives."""
        return self._again[number].types

    def _wrapper(self, layer: nn.Module, thread: int) -> Callable[..., Any]:
        original = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._busy or threading.get_ident() != thread:
                return original(*args, **kwargs)
            return self._call(layer, original, args, kwargs)

        return forward

    # --- one call ----------------------------------------------------------------------------------------------------

    def _call(self, layer: nn.Module, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        tensors: list[Tensor] = []
        key = _key((args, tuple(kwargs.items())), tensors)
        if key is None or not tensors or not is_plain(layer):
            return original(*args, **kwargs)
        given = _Given(key, tuple(map(type_of, tensors)), _modes())
        group, path = self._layers[layer]
        template = self._template(group, given, layer)
        number = next(_NUMBERS)
        self.calls[number] = LayerCall(path, None if template is None else template.number)
        if template is not None and template.confirmed:
            self._again[number] = template
            made = torch.ops.smelt.layer_again(tensors, number)
            return _mapped(template.result, lambda slot: tensors[slot.position] if slot.given else made[slot.position])
        begun = torch.ops.smelt.layer_begin(tensors, number)
        called_with = given.key()
        found, reads = self._run(layer, original, args, kwargs, tensors, begun)
        result, new, types = self._result(layer, found, begun)
        if template is None:
            self._templates[group].append(_Template(number, given, called_with, reads, result, types))
        else:
            template.confirmed = True
            alike = (_key(template.result, [], RESULTS), [t.key() for t in template.types])
            self.broken = self.broken or alike != (_key(result, [], RESULTS), [t.key() for t in types])
        made = torch.ops.smelt.layer_end(new, number) if new else []
        return _mapped(result, lambda slot: tensors[slot.position] if slot.given else made[slot.position])

    def _template(self, group: Any, given: _Given, layer: nn.Module) -> _Template | None:
        """The template of a call, if there is one.

        The first layer of many has a mask whose sizes the trace takes for others than those of its tokens, until
        attention adds them: they are one from then on.
        """
        key = given.key()
        for template in self._templates[group]:
            same = key == template.key or (self._unify and key == template.given.key())
            if same and template.reads.same(layer):
                self._unified = self._unified or key != template.key
                return template
        return None

    def _run(
        self, layer: nn.Module, original: Any, args: Any, kwargs: Any, tensors: Sequence[Tensor], begun: list[Tensor]
    ) -> tuple[Any, Reads]:
        """The layer's own result on other tensors, and what it read."""
        instead = {id(old): new for old, new in zip(tensors, begun, strict=True)}
        before = versions(layer, begun)
        self._busy = True
        try:
            with recorded_reads(layer) as reads:
                found = original(*_mapped(args, lambda t: instead[id(t)]), **_mapped(kwargs, lambda t: instead[id(t)]))
        finally:
            self._busy = False
        self.broken = self.broken or reads.wrote or versions(layer, begun) != before
        return found, reads

    def _result(self, layer: nn.Module, found: Any, begun: list[Tensor]) -> tuple[Any, list[Tensor], list[_TypeOf]]:
        """A result with slots for its tensors, those that are new, and their types."""
        tensors: list[Tensor] = []
        if _key(found, tensors, RESULTS) is None:
            self.broken = True
            return found, [], []
        given = {id(t): i for i, t in enumerate(begun)}
        new = [t for t in tensors if id(t) not in given]
        held = [_memory(t) for t in (*begun, *layer.parameters(), *layer.buffers(), *new)]
        if len(set(held[-len(new) :])) < len(new) or set(held[: len(held) - len(new)]) & set(map(_memory, new)):
            self.broken = True
        at = {id(t): i for i, t in enumerate(new)}
        slots = _mapped(found, lambda t: _Slot(True, given[id(t)]) if id(t) in given else _Slot(False, at[id(t)]))
        return slots, new, [type_of(t) for t in new]


def _candidates(module: nn.Module) -> Iterator[tuple[nn.Module, tuple[Any, str]]]:
    """Layers that stand beside others of their class, with what those have in common and their path."""
    for path, container in module.named_modules():
        if isinstance(container, nn.ModuleList | nn.Sequential):
            by_class = defaultdict(list)
            for name, child in container.named_children():
                if "forward" not in child.__dict__:
                    by_class[type(child)].append((f"{path}.{name}" if path else name, child))
            for one, found in by_class.items():
                if len(found) >= FEWEST:
                    yield from ((child, ((container, one), name)) for name, child in found)


# --- arguments and results --------------------------------------------------------------------------------------------


def _key(value: Any, tensors: list[Tensor], kinds: tuple[type, ...] = (tuple,)) -> Any:
    """What tells a structure of tensors and constants from another; None where it holds anything else.

    Its tensors are added to ``tensors``, each once, and stand in the key by their position. Of containers it may hold
    those of ``kinds``: a layer could write to an argument that is a list or a dict.
    """
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            return None
        found = next((i for i, t in enumerate(tensors) if t is value), len(tensors))
        if found == len(tensors):
            tensors.append(value)
        return ("tensor", found)
    if type(value) in kinds:
        parts = value.items() if isinstance(value, dict) else value
        keys = tuple(_key(part, tensors, (tuple, *kinds)) for part in parts)
        return None if None in keys else (type(value).__name__, keys)
    if isinstance(value, torch.SymInt):
        return ("size", value.node.expr)
    if isinstance(value, _Slot):
        return value
    return (type(value).__name__, repr(value)) if isinstance(value, PLAIN) else None


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A structure with its tensors or slots replaced."""
    if isinstance(value, Tensor | _Slot):
        return change(value)
    if type(value) in (tuple, list):
        return type(value)(_mapped(v, change) for v in value)
    return {k: _mapped(v, change) for k, v in value.items()} if type(value) is dict else value


def type_of(tensor: Tensor) -> _TypeOf:
    """A tensor's type."""
    return _TypeOf(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.device)


def _size_key(size: Any) -> Any:
    return size.node.expr if isinstance(size, torch.SymInt) else int(size)


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _modes() -> tuple[Any, ...]:
    """The settings of PyTorch's that decide what operators do."""
    return (
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_default_dtype(),
    )


# --- the operators that mark a layer ----------------------------------------------------------------------------------

_ACTIVE: list[Repeats] = []
_NUMBERS = itertools.count()  # of all traces: PyTorch may remember what an operator gave for equal arguments
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]


def _same_types(tensors: Sequence[Tensor], number: int) -> list[Tensor]:
    return [type_of(t).make() for t in tensors]


def _types_again(tensors: Sequence[Tensor], number: int) -> list[Tensor]:
    return [type_.make() for type_ in _ACTIVE[-1].types_of(number)]


for _name, _rule in (("layer_begin", _same_types), ("layer_end", _same_types), ("layer_again", _types_again)):
    _LIBRARY.define(f"{_name}(Tensor[] tensors, int number) -> Tensor[]")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _rule, lib=_LIBRARY)
