"""Calls that are like one before: from the arguments as they were written straight to native code.

A call is read, matched with a capture, checked and bound in some ten functions, which take longer than the kernels of
a small model. All of that but addresses and the memory of results follows from the types, shapes and values that a path
is found by, and is done once for each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any, Final

import torch
from torch import Tensor

from .calls import CallReader
from .entry import Entry, Sizes
from .executable import Executable
from .tensors import ALIGNMENT

_PLAIN = frozenset({NoneType, bool, int})  # types of which equal values mean the same
_MOST_PATHS = 1024
_STRIDED = torch.strided
MISS: Final = object()


class Path:
    """How calls of one form are run: which of their values are the graph's inputs, and the binding of their sizes."""

    def __init__(self, entry: Entry, executable: Executable, sizes: Sizes, leaves: Sequence[int | None]) -> None:
        self._entry, self._sizes, self._leaves = entry, sizes, leaves
        self._executable = executable
        self._binding = executable.binding(sizes)
        self._inputs = tuple(place for leaf in entry.tensors if (place := leaves[leaf]) is not None)
        assert len(self._inputs) == len(entry.tensors)
        self._single = entry.single

    def is_current(self) -> bool:
        """Whether the model was not changed since."""
        return self._entry.executable is self._executable and not self._binding.stale

    def run(self, values: Sequence[Any]) -> Any:
        """The result for a call's values; MISS where one is to be copied or refused, or the model was changed since.

        Raises:
            IndexError: an index from data was out of range.
        """
        entry, executable, addresses = self._entry, self._executable, []
        if entry.executable is not executable:
            return MISS
        for place in self._inputs:
            tensor = values[place]
            if tensor.layout is not _STRIDED or not tensor.is_cpu or not tensor.is_contiguous() or tensor.is_neg():
                return MISS
            if tensor.requires_grad and torch.is_grad_enabled():
                return MISS
            address = tensor.data_ptr()
            if address % ALIGNMENT:
                return MISS
            addresses.append(address)
        results = executable.run_direct(self._binding, addresses)
        if results is None:
            return MISS
        entry.sizes = self._sizes
        if self._single is not None:
            return results[self._single]
        leaves = [None if place is None else values[place] for place in self._leaves]
        return entry.capture.unflatten(results, leaves, self._sizes)


class Paths:
    """The paths of one model's calls."""

    def __init__(self, reader: CallReader) -> None:
        self._reader = reader
        self._paths: dict[Any, Path | None] = {}

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The result of a call; MISS where it has no path, or cannot take it this time.

        Raises:
            IndexError: an index from data was out of range.
        """
        values = (*args, *kwargs.values()) if kwargs else args
        path = self._paths.get(_form(len(args), kwargs, values))
        return MISS if path is None else path.run(values)

    def keep(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], entry: Entry, sizes: Sizes) -> None:
        """Keep the path of a call that an entry was run for, if calls like it may be run so."""
        form = _form(len(args), kwargs, (*args, *kwargs.values()))
        if form is None:
            return
        known: Any = self._paths.get(form, MISS)
        if known is None or (known is not MISS and known.is_current()):
            return
        if len(self._paths) >= _MOST_PATHS:
            self._paths.clear()
        leaves = self._reader.places(args, kwargs)
        executable = entry.executable
        native = executable if type(executable) is Executable and executable.is_direct else None
        # of complex numbers each call would have to ask whether they are conjugated
        complex_ones = any(node.dtype.is_complex for node in entry.capture.graph.inputs)
        if leaves is None or native is None or not entry.only_reads or complex_ones:
            self._paths[form] = None
        else:
            self._paths[form] = Path(entry, native, sizes, leaves)

    def clear(self) -> None:
        """Forget all paths."""
        self._paths.clear()


def _form(count: int, kwargs: Mapping[str, Any], values: Sequence[Any]) -> tuple[Any, ...] | None:
    """What calls of one path have in common; None for calls that have none."""
    if len(values) == 1 and not kwargs and type(values[0]) is Tensor:  # as below, in two thirds of the time
        return (values[0].shape, values[0].dtype, torch.get_default_dtype())
    parts: list[Any] = [count, torch.get_default_dtype(), *kwargs]
    for value in values:
        kind = type(value)
        if kind is Tensor:
            parts += (value.shape, value.dtype)
        elif kind in _PLAIN:
            parts += (kind, value)
        else:
            return None
    return tuple(parts)
