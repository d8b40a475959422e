"""Entries that were kept: written once a model is captured, and read in another process instead of capturing it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from ...codegen.tvm.packing import Pool
from ...ir.errors import SmeltError
from ...ir.text import print_graph
from ..build import library_key, thread_pool
from ..cache import CacheWarning
from ..calls import Call
from ..entry import Entry, Mismatch
from ..executable import Executable
from ..options import Options
from ..plan import TorchStep
from .capture import capture_data, capture_of
from .key import key_of
from .kinds import Unsure
from .plan import plan_data, plan_of
from .store import Store
from .values import NoForm


class KeptEntry(Entry):
    """An entry that was read. It runs calls; what shows how it was compiled is had by :meth:`complete`.

    Attributes:
        recapture: makes the entry anew.
        captured: the text of the captured graph.
    """

    recapture: Callable[[], Entry]
    captured: str

    def complete(self) -> None:
        """Capture and compile the model after all, for its graphs, kernels and report; kernels come from the cache."""
        made = self.recapture()
        if print_graph(made.capture.graph) != self.captured:
            warnings.warn(
                "a kept capture is not what the model is captured as now: something decides that which no key tells. "
                'The new one is used from here on; say cache="kernels" for this model, and please report it',
                CacheWarning,
                stacklevel=3,
            )
        self.capture, self.executable = made.capture, made.executable
        self.timings = {**self.timings, **made.timings}
        self._arrange()
        self.__class__ = Entry  # type: ignore[assignment]


_NOTHING: Any = None  # until an entry is known to be for a call


class Keeper:
    """Looks for kept captures of a model for one call, and keeps the one that was made because there was none.

    Attributes:
        reason: why captures of this model cannot be kept; "" where they can.
    """

    def __init__(self, model: Callable[..., Any], call: Call, options: Options, weights: Mapping[str, Tensor]) -> None:
        self.model, self.call, self.options, self.weights = model, call, options, weights
        self.cache = options.open_cache()
        self.reason, self._key = "", ""
        self._loose: Sequence[Tensor] = ()
        if self.cache is None or options.cache == "kernels":
            self.reason = "the cache is not used"
            return
        if options.target.kind != "cpu":
            self.reason = "captures for GPUs are not kept"
            return
        try:
            self._key, self._loose = key_of(model, call, options)
        except Unsure as unsure:
            self.reason = str(unsure)
        except Exception as error:  # an attribute of the user's may raise anything when it is looked at
            self.reason = f"its state cannot be read: {type(error).__name__}: {error}"

    def find(self, signature: Any, pool: Pool | None = None) -> KeptEntry | None:
        """The kept entry for the call; None where there is none. ``pool`` is memory for packed weights, if some is."""
        if self.reason or self.cache is None:
            return None
        store = Store(self.cache)
        for body in store.get(self._key):
            start = time.perf_counter()
            try:
                entry = self._restore(body, signature, pool)
            except (SmeltError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                store.damaged(self._key, error)
                continue
            if entry is not None:
                entry.timings = {"restore": time.perf_counter() - start}
                return entry
        return None

    def _restore(self, body: Mapping[str, Any], signature: Any, pool: Pool | None) -> KeptEntry | None:
        """The entry; None where it is for other calls, or its native code is not kept any more."""
        assert self.cache is not None
        plan, hosts, derived = plan_of(body["plan"])
        capture = capture_of(body["capture"], plan.graph, self.weights, signature)
        entry = KeptEntry(capture, _NOTHING, {}, cached=True)
        entry.captured = body["captured"]
        try:
            entry.match(self.call.spec, self.call.leaves)
        except Mismatch:
            return None
        names = [host for host in hosts if isinstance(host, str)]
        path = self.cache.get(body["library"]) if names else None
        if names and path is None:  # before any weight is packed
            return None
        with ThreadPoolExecutor(1) as thread:  # loading takes Python's lock, and packing leaves it free
            loading = thread.submit(_load, path, names)
            entry.executable = Executable(
                plan=plan,
                weights=capture.weights,
                derived=derived,
                hosts=(),
                graphs={},
                kernels=(),
                fallbacks=capture.fallbacks,
                pool=pool,
            )
        library = loading.result()
        if library is None:
            return None
        entry.executable.hosts = [library[host] if isinstance(host, str) else host for host in hosts]
        entry.executable.prepare = thread_pool(self.options.target.threads) if library else None
        return entry

    def keep(self, entry: Entry) -> None:
        """Keep an entry that was made for the call, where nothing stands against it."""
        if self.reason or self.cache is None:
            return
        try:
            body = self._body(entry)
        except (NoForm, ValueError, TypeError) as error:  # of a graph too that has no text
            self.reason = str(error)
            return
        Store(self.cache).put(self._key, body)

    def _body(self, entry: Entry) -> dict[str, Any]:
        executable = entry.executable
        assert isinstance(executable, Executable)
        held = {t.untyped_storage().data_ptr() for t in self._loose if t.numel()}
        for name, tensor in entry.capture.weights.items():
            if name not in self.weights and tensor.untyped_storage().data_ptr() in held:
                raise NoForm(f"the model holds a tensor that is neither a parameter nor a buffer: {name}")
        key = library_key(executable.plan, self.options.target)
        native = any(not isinstance(host, TorchStep) for host in executable.hosts)
        if native and key is None:
            raise NoForm("its native code has no key")
        return {
            "captured": print_graph(entry.capture.graph),
            "capture": capture_data(entry.capture, self.weights),
            "plan": plan_data(executable),
            "library": key,
        }


def _load(path: Path | None, names: Sequence[str]) -> Mapping[str, Any] | None:
    """Host functions of a library by name; None where it cannot be loaded."""
    if path is None:
        return {}
    from ...codegen.tvm import native  # only a target that runs on TVM needs it

    try:
        return native.load(path, names)
    except Exception:  # whatever the dynamic linker raises: the model is captured, and says so
        return None
