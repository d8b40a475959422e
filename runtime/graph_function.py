"""One of Dynamo's graphs, compiled: called in place of it, with the inputs that it has."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from ..frontend.dynamo import lower_fx
from ..ir.collection import no_collection
from ..ir.errors import CaptureError, UnsupportedError
from .captures import MAX_CAPTURES, build_entry
from .entry import Aliased, Entry, Mismatch, Sizes
from .fx_outputs import outputs_of, with_outputs
from .fx_weights import WeightWatch, bind_weights
from .options import Options
from .tensors import check_tensor, default_is_cpu

_MAX_KNOWN = 1024


class GraphFunction:
    """A compiled graph, called with the graph's inputs. Dynamo's guards hold where it is called.

    Sizes that Dynamo takes for one graph may need several captures; each is made when it is first needed.

    Args:
        gm: the graph.
        example_inputs: its inputs, as Dynamo passes them.
        options: how it is compiled.

    Attributes:
        entries: the captures, of the inputs that are no weights.
    """

    def __init__(self, gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options) -> None:
        _check_operators(gm)
        if not default_is_cpu():
            raise UnsupportedError(f"the default device is {torch.get_default_device()}")
        for node, value in zip((n for n in gm.graph.nodes if n.op == "placeholder"), example_inputs, strict=True):
            if isinstance(value, Tensor):
                check_tensor(node.name, value, options.target.device)
        self._original = gm
        self._options = options
        # a later capture is made where autocast is off: what it was is a part of the graph
        kind = self._kind = options.target.device.type
        self._around = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        self._outputs = outputs_of(gm)
        self._graph, places = bind_weights(with_outputs(gm, self._outputs.kept), example_inputs)
        self.watch = WeightWatch(places)
        self._free = tuple(place for place in range(len(example_inputs)) if place not in places.values())
        self._known: dict[Any, tuple[Entry, Sizes]] = {}
        self._refused: set[Any] = set()
        self._lock = threading.RLock()
        self.entries = [self._capture([example_inputs[place] for place in self._free])]
        self.watch.note(example_inputs)

    @property
    def entry(self) -> Entry:
        """The first capture."""
        return self.entries[0]

    def _capture(self, leaves: Sequence[Any], static: bool = False) -> Entry:
        start = time.perf_counter()
        with no_collection():
            fallback, around = self._options.fallback, self._around
            captured = lower_fx(self._graph, leaves, fallback=fallback, static=static, around=around, device=self._kind)
            with _plain(self._kind):
                return build_entry(captured, self._options, time.perf_counter() - start, _first_call(leaves))

    def __call__(self, *inputs: Any) -> Any:
        """The graph's results."""
        if torch.is_autocast_enabled(self._kind):  # the graph was traced under it, and holds the casts
            with torch.autocast(self._kind, enabled=False):
                results = self._run(inputs)
        else:
            results = self._run(inputs)
        return self._original.forward(*inputs) if results is None else self._outputs.make(inputs, results)

    def _run(self, inputs: Sequence[Any]) -> Sequence[Any] | None:
        """What the compiled graph returns; None for a call that PyTorch must run."""
        if not default_is_cpu():
            return None
        leaves = [inputs[place] for place in self._free]
        key = tuple([leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in leaves])
        with self._lock:  # equal layers have one graph: another thread may be here with other weights
            if self.watch.changed(inputs):
                self._refresh(inputs, self.entries)
                self.watch.note(inputs)
            found = self._known.get(key) or self._match(inputs, leaves, key)
            if found is None:
                return None
            entry, sizes = found
            try:
                results: Sequence[Any] = entry.run(leaves, sizes)
            except Aliased:
                return None
            if entry.writes_weights:
                self.watch.note(inputs)
            return results

    def _refresh(self, inputs: Sequence[Any], entries: Sequence[Entry]) -> None:
        with _plain(self._kind):
            for entry in entries:
                entry.executable.refresh(self.watch.weights(inputs, entry.executable.weights))

    # --- sizes --------------------------------------------------------------------------------------------------------

    def _match(self, inputs: Sequence[Any], leaves: Sequence[Any], key: Any) -> tuple[Entry, Sizes] | None:
        """The capture for a call, made where there is none; None after too many, and where none can be made."""
        for place, leaf in zip(self._free, leaves, strict=True):
            if isinstance(leaf, Tensor):
                check_tensor(f"input {place}", leaf, self._options.target.device)
        found = self._matching(leaves)
        if found is None and len(self.entries) < MAX_CAPTURES and key not in self._refused:
            # sizes that Dynamo takes for one kind of call, and the capture does not
            made = self._captured_later(leaves, key)
            if made is not None:
                self._refresh(inputs, [made])  # it was made of the weights of the first call
                self.entries.append(made)
                found = self._matching(leaves)
        if found is not None:
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[key] = found
        return found

    def _captured_later(self, leaves: Sequence[Any], key: Any) -> Entry | None:
        """A capture for these sizes only; None where there is none, so that PyTorch runs such calls."""
        try:
            return self._capture(leaves, static=True)
        except (CaptureError, UnsupportedError):
            if self._options.fallback == "error":
                raise
            self._refused.add(key)
            return None

    def _matching(self, leaves: Sequence[Any]) -> tuple[Entry, Sizes] | None:
        for entry in self.entries:
            try:
                return entry, entry.match(entry.capture.in_spec, leaves)
            except Mismatch:
                continue
        return None


def _check_operators(gm: fx.GraphModule) -> None:
    """Raise UnsupportedError for a graph with the steps of a transform: to trace it would leave PyTorch within one."""
    for node in gm.graph.nodes:
        module = getattr(node.target, "__module__", None) or ""
        if node.op == "call_function" and module.startswith(("torch._functorch", "torch._C._functorch")):
            raise UnsupportedError("a transform of torch.func, such as vmap or grad")


def _first_call(leaves: Sequence[Any]) -> list[Any] | None:
    """The leaves of the call that a graph is compiled for; None where Dynamo has only types of them."""
    if any(isinstance(leaf, torch._subclasses.FakeTensor) for leaf in leaves):
        return None
    return [int(leaf.node.hint) if isinstance(leaf, torch.SymInt) else leaf for leaf in leaves]


@contextmanager
def _plain(device: str) -> Iterator[None]:
    """What is computed here is not cast by autocast, and not made in inference mode, where nobody could change it."""
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
        yield
