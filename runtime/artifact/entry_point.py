"""An entry point of a loaded artifact: called as the model was."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor

from ...codegen.tvm.packing import Pool
from ...frontend.capture import Capture
from ...ir.errors import ArtifactError, InputError, UnsupportedError
from ..calls import Call, CallReader
from ..entry import Aliased, Entry, Mismatch, Sizes
from ..executable import Executable
from ..plan import Buffer
from ..tensors import check_surroundings, check_tensor
from ..undisturbed import never_compiled
from .trees import tree_data

MOST_KNOWN = 4096  # kinds of calls whose sizes are remembered


@dataclass
class SharingExecutable(Executable):
    """An executable that shares packed weights with others: ``packed`` holds them by what they were made of."""

    packed: dict[Any, Tensor] = field(default_factory=dict)

    def _pack(self, buffer: Buffer, pool: Pool | None, work: list[Callable[[], None]]) -> Tensor:
        key = (buffer.name, buffer.packing)
        if key not in self.packed:
            self.packed[key] = super()._pack(buffer, pool, work)
        return self.packed[key]

    def _once(self, panels: Tensor) -> tuple[Tensor, Any]:
        return panels, None


class EntryPoint:
    """One way to call a loaded artifact, by several threads if need be.

    Attributes:
        name: what it is called.
        model: the class or function that it was made of.
    """

    def __init__(self, name: str, model: str, entry: Entry, lock: threading.Lock | None) -> None:
        self.name, self.model = name, model
        self.signature = entry.capture.signature
        self._entry: Entry | None = entry
        self._arguments = tree_data(entry.capture.in_spec, "the arguments")
        self._lock = lock
        self._reader = CallReader(self.signature)
        self._known: dict[Any, Sizes] = {}
        self._fitting: dict[int, pytree.TreeSpec] = {}

    @never_compiled
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The result for these arguments, which are given as they were to the model; no tensor in it requires grad.

        Objects of classes of the model's code become ``Output``, a mapping with attributes.

        Raises:
            InputError: the arguments do not fit the model, or are not a call that it was exported for.
            UnsupportedError: autocast is on, the default device is another one, or PyTorch traces the call.
            ArtifactError: the artifact was closed.
            IndexError: an index was out of range; on a GPU, in this call or an earlier one of this thread.
            OutOfMemoryError: the GPU has not enough memory.
        """
        entry = self._entry
        if entry is None:
            raise ArtifactError(f"the artifact was closed: {self.name} cannot be called")
        device = entry.executable.device
        if torch.is_autocast_enabled(device.type):
            raise UnsupportedError(
                "torch.autocast is on, and artifacts keep their own dtypes: leave autocast, or export a converted "
                "model, as of model.to(torch.bfloat16)"
            )
        check_surroundings(device)
        call = self._reader.read(args, kwargs)
        sizes = self._sizes(entry, call)
        try:
            if self._lock is None:
                return entry.run(call.leaves, sizes)
            with self._lock:
                return entry.run(call.leaves, sizes)
        except Aliased as reason:
            raise InputError(f"{reason}: pass a copy of one of them") from None

    def synchronize(self) -> None:
        """Wait until all calls are done on the device.

        Raises:
            ArtifactError: the artifact was closed.
            IndexError: in a call of this thread an index was out of range, and it was not raised yet.
        """
        self.entry.executable.synchronize()

    def close(self) -> None:
        """Let go of the kernels and weights; a call that is running ends first, on a GPU too."""
        entry, self._entry = self._entry, None
        if entry is not None:
            with suppress(IndexError):  # which nobody is left to be told
                entry.executable.synchronize()
        self._known.clear()

    @property
    def entry(self) -> Entry:
        """The capture behind it, with its executable.

        Raises:
            ArtifactError: the artifact was closed.
        """
        if self._entry is None:
            raise ArtifactError(f"the artifact was closed: {self.name} is gone")
        return self._entry

    def __repr__(self) -> str:
        inputs = (
            [] if self._entry is None else [f"{n.attrs['name']} {n.type}" for n in self._entry.capture.graph.inputs]
        )
        return f"<entry point {self.name} of {self.model}: {', '.join(inputs) or 'closed'}>"

    # --- inside -------------------------------------------------------------------------------------------------------

    def _sizes(self, entry: Entry, call: Call) -> Sizes:
        key = self._key(call)
        try:
            found = self._known.get(key)
        except TypeError:  # a leaf that cannot be hashed
            found, key = None, None
        if found is not None:
            return found
        for place, leaf in enumerate(call.leaves):
            if isinstance(leaf, Tensor):
                check_tensor(self._reader.names(call.spec)[place], leaf, entry.executable.device)
        try:
            sizes = entry.match(self._tree(entry.capture, call.spec), call.leaves)
        except Mismatch as mismatch:
            raise InputError(f"{self.name} was not exported for this call: {mismatch}") from None
        if key is not None and len(self._known) < MOST_KNOWN:
            self._known[key] = sizes
        return sizes

    def _key(self, call: Call) -> Any:
        """What decides whether a call fits, and its sizes."""
        grad = torch.is_grad_enabled()
        parts: list[Any] = [id(call.spec)]
        for place, leaf in enumerate(call.leaves):
            if not isinstance(leaf, Tensor):
                parts.append((type(leaf), leaf.hex() if isinstance(leaf, float) else leaf))
                continue
            if grad and leaf.requires_grad:
                name = self._reader.names(call.spec)[place]
                raise InputError(f"argument {name} requires grad, and artifacts compute no gradients: call .detach()")
            parts.append((type(leaf), leaf.shape, leaf.dtype, leaf.layout, leaf.device))
        return tuple(parts)

    def _tree(self, capture: Capture, spec: pytree.TreeSpec) -> pytree.TreeSpec:
        """The captured tree where the call's is that one but for classes of the same names; else the call's."""
        found = self._fitting.get(id(spec))  # the reader gives one object for equal trees
        if found is None:
            try:
                same = spec == capture.in_spec or tree_data(spec, "the arguments") == self._arguments
            except UnsupportedError:
                same = False
            found = self._fitting[id(spec)] = capture.in_spec if same else spec
        return found
