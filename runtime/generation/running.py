"""Captured steps run: which capture a call is for, and its run without the checks that a cache passed before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ..calls import Call
from ..captures import Captures
from ..entry import Entry, Sizes
from .caches import DecoderMemory, SourceMemory, Unfit
from .memory import nbytes_of

_MOST_KNOWN = 1024


class Found:
    """A capture for calls of the same types and sizes.

    Attributes:
        rewritten: bytes of caches that each call copies after the kernels, because no kernel writes them in place.
    """

    def __init__(self, entry: Entry, sizes: Sizes, leaves: list[Any], inputs: int) -> None:
        self.entry, self.sizes = entry, sizes
        tensors = [place for place, spec in enumerate(entry.capture.inputs) if spec.kind == "tensor"]
        plan = entry.executable.plan
        places = dict(zip(plan.graph.inputs, tensors, strict=True))
        written = {places[m.target]: plan.is_in_place(m) for m in plan.graph.mutations if m.target in places}
        self.rewritten = sum(nbytes_of(leaves[place]) for place, in_place in written.items() if not in_place)
        self._only_caches = all(place >= inputs for place in written)
        self._given = [place for place in tensors if place < inputs]
        self._caches = [place for place in tensors if place >= inputs]

    def run(self, leaves: list[Any]) -> Any:
        """The step's output; the cache's tensors are dense, and share no memory."""
        entry = self.entry
        if not self._only_caches:
            return entry.run(leaves, self.sizes)
        tensors = [entry.executable.readable(leaves[place]) for place in self._given]
        tensors += [leaves[place] for place in self._caches]
        results = entry.executable.run(tensors, self.sizes)
        entry.sizes = self.sizes
        return entry.capture.unflatten(results, leaves, self.sizes)


class Form:
    """Calls with the same arguments by name, and the same kinds of layers.

    Attributes:
        spec: the tree of the step's arguments.
        refused: why calls of some constants cannot be captured.
    """

    def __init__(self, spec: pytree.TreeSpec, captures: Captures) -> None:
        self.spec = spec
        self.captures = captures
        self.refused: dict[Any, str] = {}
        self._known: dict[Any, Found] = {}

    def find(self, inputs: Mapping[str, Any], leaves: list[Any], shapes: Any) -> Found:
        """The capture for a call that is not :meth:`known`, made where there is none.

        ``shapes`` says what its cache tensors are.

        Raises:
            SmeltError, Uncapturable: as ``Captures.find``.
        """
        entry, sizes = self.captures.find(Call(self.spec, leaves))
        found = Found(entry, sizes, leaves, len(inputs))
        form = self._form(inputs, shapes)
        if form is not None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[form] = found
        return found

    def known(self, inputs: Mapping[str, Any], shapes: Any) -> Found | None:
        """The capture for a call like one before; None where there was none."""
        form = self._form(inputs, shapes)
        found = None if form is None else self._known.get(form)
        return found if found is not None and found.entry in self.captures.entries else None

    def _form(self, inputs: Mapping[str, Any], shapes: Any) -> tuple[Any, ...] | None:
        """What calls of one kind have in common; None for those that are to be looked at."""
        grad, device = torch.is_grad_enabled(), self.captures.options.target.device
        key: list[Any] = [shapes]
        for value in inputs.values():
            if not isinstance(value, Tensor):
                key += (type(value), value)
            elif (grad and value.requires_grad) or value.device != device or value.layout is not torch.strided:
                return None
            else:
                key += (value.shape, value.dtype)
        return tuple(key)

    def withdraw(self, found: Found, leaves: list[Any], error: Exception) -> None:
        """Forget a capture whose first call failed, where the model refuses that call as well."""
        self.captures.withdraw(found.entry, Call(self.spec, leaves), error)


def check_apart(inputs: Mapping[str, Any], memory: DecoderMemory, source: SourceMemory | None) -> None:
    """Raise Unfit where a tensor that a call writes shares memory with another one of the call."""
    caches = [memory.ranges] if source is None else [memory.ranges, source.ranges]
    if not all(ranges.apart for ranges in caches) or (source is not None and memory.ranges.meets(source.ranges)):
        raise Unfit("tensors of the cache share memory")
    for value in inputs.values():
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            start = storage.data_ptr()
            if any(ranges.holds(start, start + storage.nbytes()) for ranges in caches):
                raise Unfit("an argument shares memory with the cache")
