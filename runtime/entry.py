"""One capture of a model with its executable, the guards that say which calls it is for, and how it is run."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ..frontend.capture import Capture, Guard, InputSpec, describe
from ..ir import ops
from ..ir.binding import bind_symbols
from ..ir.errors import InputError
from ..ir.types import concrete
from .compiled import Compiled
from .tensors import dense, overlapping

Sizes = Mapping[sympy.Symbol, int]


class Mismatch(Exception):
    """A call is not one that a capture is for; the message names the guard that failed.

    ``near`` grows with how much of the call did fit: of several captures the nearest one tells most.
    """

    def __init__(self, message: str, near: int) -> None:
        super().__init__(message)
        self.near = near


class Aliased(Exception):
    """Arguments share memory that the model writes to, which no capture can know; the message names them."""


class Entry:
    """A capture and its executable.

    Attributes:
        timings: seconds that each stage took, the capture included.
        cached: whether the kernels came from the cache; None without a cache.
        refusal: the guard that failed before this capture was made; "" for the first.
        unkept: why it is not kept for other processes; "" where it is, or where nothing is.
        sizes: those of the last call that was run; None before one was.
        writes_weights: whether a run changes weights of the model.
        tensors: which leaves of a call are the graph's inputs, in their order.
        single: which of the graph's outputs a call's result is; None where it is a structure, or no tensor.
    """

    def __init__(
        self,
        capture: Capture,
        executable: Compiled,
        timings: Mapping[str, float] | None = None,
        cached: bool | None = None,
    ) -> None:
        self.capture = capture
        self.executable = executable
        self.timings = dict(executable.timings if timings is None else timings)
        self.cached = cached
        self.refusal = ""
        self.unkept = ""
        self.sizes: Sizes | None = None
        self._apart: tuple[Sizes, list[int]] | None = None  # addresses of arguments that share no memory
        self._arrange()

    def complete(self) -> None:
        """See to it that the entry can show how it was compiled: nothing to do, unless it was kept."""

    def _arrange(self) -> None:
        """What a run looks at, from the capture."""
        capture = self.capture
        self.tensors = [i for i, spec in enumerate(capture.inputs) if spec.kind == "tensor"]
        targets = {mutation.target for mutation in capture.graph.mutations}
        self.writes_weights = any(target.is_a(ops.weight) for target in targets)
        inputs = zip(self.tensors, capture.graph.inputs, strict=True)
        self._written = [leaf for leaf, node in inputs if node in targets]
        first = capture.outputs[0] if capture.out_spec.is_leaf() else None
        self.single = first.index if first is not None and first.kind == "tensor" else None

    @property
    def only_reads(self) -> bool:
        """Whether arguments are not written to."""
        return not self._written

    # --- guards -------------------------------------------------------------------------------------------------------

    def match(self, spec: pytree.TreeSpec, leaves: Sequence[Any]) -> Sizes:
        """The sizes of a call that this capture is for.

        Raises:
            Mismatch: it is for others.
        """
        capture = self.capture
        if spec != capture.in_spec:
            raise Mismatch(f"the arguments are {describe(spec)}, captured as {describe(capture.in_spec)}", 0)
        for expected, leaf in zip(capture.inputs, leaves, strict=True):
            _match_leaf(expected, leaf)
        for i, node in zip(self.tensors, capture.graph.inputs, strict=True):
            _match_type(capture.inputs[i].name, leaves[i], node.dtype, len(node.shape))
        sizes = self._bind(leaves)
        for guard in capture.guards:
            if not guard.holds(sizes):
                raise Mismatch(f"the guard {guard} does not hold for {self._assignment(guard, sizes)}", 4)
        return sizes

    def _assignment(self, guard: Guard, sizes: Sizes) -> str:
        """The sizes that a guard is about, each with a dim of an argument that shows it."""
        places: dict[Any, str] = {}
        for node in self.capture.graph.inputs:
            for axis, dim in enumerate(node.shape):
                places.setdefault(dim, f" ({node.attrs['name']}: dim {axis})")
        symbols = sorted(getattr(guard.condition, "free_symbols", ()), key=str)
        return ", ".join(f"{symbol} = {sizes.get(symbol)}{places.get(symbol, '')}" for symbol in symbols)

    def _bind(self, leaves: Sequence[Any]) -> Sizes:
        try:
            sizes = sizes_of(self.capture, leaves)
        except InputError as error:
            reason = "" if error.place is None else self.capture.reason_of(*error.place)
            raise Mismatch(f"{error} ({reason})" if reason else str(error), 3) from None
        for spec, leaf in zip(self.capture.inputs, leaves, strict=True):
            if spec.kind == "symbol" and spec.dim is not None and concrete(spec.dim, sizes) != leaf:
                raise Mismatch(f"argument {spec.name} is {leaf}, captured as {spec.dim}", 3)
        return sizes

    # --- running ------------------------------------------------------------------------------------------------------

    def run(self, leaves: list[Any], sizes: Sizes) -> Any:
        """The model's result for a call that matched.

        Raises:
            Aliased: the model writes to an argument that shares memory with another one.
            IndexError: an index from data was out of range.
        """
        given, readable = [leaves[i] for i in self.tensors], self.executable.readable
        if self._written:
            pairs = zip(self.tensors, given, strict=True)
            device, written = self.executable.device, self._written
            tensors = [dense(x, device) if leaf in written else readable(x) for leaf, x in pairs]
            self._check_aliases(leaves, given, tensors, sizes)
        else:
            tensors = [readable(tensor) for tensor in given]
        results = self.executable.run(tensors, sizes)
        self.sizes = sizes
        if self._written:
            self._write_back(given, tensors)
            for leaf in self._written:  # kernels write by address, which PyTorch does not count
                if not leaves[leaf].is_inference():
                    torch.autograd.graph.increment_version(leaves[leaf])
        if self.single is not None:
            return results[self.single]
        return self.capture.unflatten(results, leaves, sizes)

    def _write_back(self, given: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        """Pass on to the caller's tensors what was written to copies of them."""
        written = set(self._written)
        for leaf, tensor, copy in zip(self.tensors, given, tensors, strict=True):
            if leaf in written and copy is not tensor:
                with torch.no_grad():
                    tensor.copy_(copy)

    def _check_aliases(
        self, leaves: Sequence[Any], given: Sequence[Tensor], tensors: Sequence[Tensor], sizes: Sizes
    ) -> None:
        """Refuse arguments that share memory. Dense ones of the same sizes that lie where they lay are known not to."""
        dense_ones = all(map(operator.is_, given, tensors))
        addresses = [tensor.data_ptr() for tensor in given] if dense_ones else None
        known = self._apart
        if known is not None and known[0] is sizes and addresses is not None and known[1] == addresses:
            return
        self._apart = None
        written = [at for at, leaf in enumerate(self.tensors) if leaf in self._written]
        found = overlapping([leaves[leaf] for leaf in self.tensors], written)
        if found is not None:
            names = [self.capture.inputs[self.tensors[at]].name for at in found]
            raise Aliased(f"the model writes to argument {names[0]}, which shares memory with {names[1]}")
        if addresses is not None:
            self._apart = (sizes, addresses)


def sizes_of(capture: Capture, leaves: Sequence[Any]) -> Sizes:
    """The sizes of a call that a capture is for.

    Raises:
        InputError: a tensor's shape is not one of the capture's.
    """
    pairs = list(zip(capture.inputs, leaves, strict=True))
    known = {s.dim: leaf for s, leaf in pairs if s.kind == "symbol" and isinstance(s.dim, sympy.Symbol)}
    return bind_symbols(capture.graph, [leaf.shape for s, leaf in pairs if s.kind == "tensor"], known)


def _match_leaf(expected: InputSpec, leaf: Any) -> None:
    """That a leaf is of the captured kind, and a constant has its value."""
    name = expected.name
    if expected.kind == "tensor":
        if not isinstance(leaf, Tensor):
            raise Mismatch(f"argument {name} is {_brief(leaf)}, captured as a tensor", 1)
    elif isinstance(leaf, Tensor):
        raise Mismatch(f"argument {name} is a tensor, captured as {_brief(expected.value)}", 1)
    elif expected.kind == "symbol":
        if isinstance(leaf, bool) or not isinstance(leaf, int):
            raise Mismatch(f"argument {name} is {_brief(leaf)}, captured as an integer", 1)
    elif not expected.accepts(leaf):
        raise Mismatch(f"argument {name} is {_brief(leaf)}, captured as {_brief(expected.value)}", 1)


def _match_type(name: str, tensor: Tensor, dtype: torch.dtype, rank: int) -> None:
    if tensor.dtype != dtype:
        raise Mismatch(f"argument {name} is {tensor.dtype}, captured as {dtype}", 2)
    if tensor.ndim != rank:
        raise Mismatch(f"argument {name} has {tensor.ndim} dims, captured with {rank}", 2)


def _brief(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}" if value is not None else "None"
