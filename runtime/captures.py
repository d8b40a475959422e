"""The captures of a model: which one a call is for, and a new one where it is for none."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..codegen.tvm.packing import Pool
from ..frontend.capture import Capture
from ..frontend.export import capture
from ..frontend.untouched import WritesStateError
from ..ir.collection import no_collection
from ..ir.errors import CaptureError, InputError, UnsupportedError
from ..rewrites.search.settings import SearchSettings
from .ahead import memory_for
from .build import build_executable, expect_kernels
from .calls import Call, CallReader
from .entry import Entry, Mismatch, Sizes, sizes_of
from .executable import Executable
from .expect import hold_to
from .options import Options
from .paths import Paths
from .precision import asks_for_tf32
from .saved.entry import Keeper, KeptEntry
from .state import attributes_preserved, preserved
from .stateful import kept_of, settles
from .tensors import CPU, check_tensor, dense, is_plain
from .tuned import schedules_for, tuned_now

MAX_CAPTURES = 8
_MAX_KNOWN = 4096
_CONSTANTS = (bool, int, float, complex, str, torch.dtype, torch.device)


class Uncapturable(Exception):
    """The model runs in PyTorch and cannot be captured as one graph; the message says why."""


class Captures:
    """What was captured of a model.

    Args:
        prefix: what paths of attributes begin with that the user does not know of.

    Attributes:
        entries: the captures, oldest first.
        paths: how calls are run that are like one before.
    """

    def __init__(self, model: Callable[..., Any], options: Options, reader: CallReader, *, prefix: str = "") -> None:
        self.model = model
        self._prefix = prefix
        self.options = options
        self.reader = reader
        self.entries: list[Entry] = []
        self.paths = Paths(reader)
        self._known: dict[Any, tuple[Entry, Sizes]] = {}
        self._names: set[str] = set()  # of the weights that the model had when it was captured
        self._attributes: dict[str, tuple[Tensor, int]] = {}
        self._asked: tuple[torch.dtype, bool] | None = None
        self._settled = False  # whether the capture that is being made had the model set attributes
        self._state = kept_of(model)
        self._lock = self._state.lock
        self._state.add(self)

    @property
    def name(self) -> str:
        """What the model is called in messages."""
        return str(getattr(self.model, "__name__", type(self.model).__name__))

    # --- finding ------------------------------------------------------------------------------------------------------

    def find(self, call: Call) -> tuple[Entry, Sizes]:
        """The capture for a call, made where there is none, and the call's sizes.

        Raises:
            InputError: an argument does not fit the model, or requires grad while gradients are enabled.
            CaptureError: the model cannot be captured, or has been for too many kinds of calls.
            UnsupportedError: the model is on a device that there is no backend for, or needs what smelt does not do.
            Uncapturable: it takes more than one graph, and fallbacks are allowed.
        """
        key = self._key(call)
        try:
            found = self._known.get(key)
        except TypeError:  # a leaf that cannot be hashed
            found, key = None, None
        return self._match(call, key) if found is None else found

    def _key(self, call: Call) -> Any:
        """What decides which capture a call is for, and its sizes."""
        grad = torch.is_grad_enabled()
        parts: list[Any] = [id(call.spec)]
        for place, leaf in enumerate(call.leaves):
            if not isinstance(leaf, Tensor):
                parts.append((type(leaf), leaf.hex() if isinstance(leaf, float) else leaf))
                continue
            if grad and leaf.requires_grad:
                name = self.reader.names(call.spec)[place]
                raise InputError(
                    f"argument {name} requires grad, and compiled models compute no gradients: call within "
                    f"torch.no_grad() or torch.inference_mode(), or pass {name}.detach()"
                )
            parts.append((type(leaf), leaf.shape, leaf.dtype, leaf.layout, leaf.device))
        return tuple(parts)

    def _match(self, call: Call, key: Any) -> tuple[Entry, Sizes]:
        with self._lock:
            self._check_leaves(call)
            refusals = []
            for entry in reversed(self.entries):
                try:
                    return self._remember(key, entry, entry.match(call.spec, call.leaves))
                except Mismatch as mismatch:
                    refusals.append(mismatch)
            nearest = max(refusals, key=lambda mismatch: mismatch.near, default=None)
            entry = self._capture(call, str(nearest or ""))
            try:
                return self._remember(key, entry, entry.match(call.spec, call.leaves))
            except Mismatch as mismatch:
                raise CaptureError(f"{self.name} was captured, but not for this call: {mismatch}") from None

    def _remember(self, key: Any, entry: Entry, sizes: Sizes) -> tuple[Entry, Sizes]:
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        if key is not None:
            self._known[key] = (entry, sizes)
        return entry, sizes

    def _check_leaves(self, call: Call) -> None:
        """That every leaf is a tensor that can be read, or what a capture may hold constant."""
        for place, leaf in enumerate(call.leaves):
            if isinstance(leaf, Tensor):
                check_tensor(self.reader.names(call.spec)[place], leaf, self.options.target.device)
            elif self.entries and leaf is not None and not isinstance(leaf, _CONSTANTS):
                name = self.reader.names(call.spec)[place]
                cure = "torch.from_numpy(...)" if hasattr(leaf, "__array__") else "torch.as_tensor(...)"
                raise InputError(f"argument {name} is a {type(leaf).__name__}: pass a tensor, such as {cure} makes")

    # --- capturing ----------------------------------------------------------------------------------------------------

    def _capture(self, call: Call, refusal: str) -> Entry:
        if len(self.entries) >= MAX_CAPTURES:
            raise CaptureError(
                f"{self.name} was captured {MAX_CAPTURES} times, and this call fits none of them: {refusal}\n"
                "Keep that argument as it was, compile with dynamic=True where sizes differ, or compile the model "
                "again for the other kind of calls."
            )
        check_model(self.model, self.name, self.options.target.device)
        if self._state.reason and self.options.fallback == "error":
            raise CaptureError(f"{self.name} cannot be captured: {self._state.reason}")
        if self._state.reason:
            raise Uncapturable(self._state.reason)
        with no_collection(), self._memory() as pool:
            keeper = Keeper(self.model, call, self.options, weights_of(self.model))
            self._settled = False
            entry = self._kept(keeper, call, pool) or self._make(call, refusal, pool)
            if not isinstance(entry, KeptEntry):
                if self._settled:  # a process that found it would hold what this call computed, and set nothing
                    keeper.reason = keeper.reason or "the first call sets attributes, from its arguments perhaps"
                keeper.keep(entry)
                entry.unkept = keeper.reason
        entry.refusal = refusal
        self.entries.append(entry)
        self._names.update(weights_of(self.model))
        self._attributes.update(attributes_of(self.model))
        self._asked = self._asks()
        return entry

    @property
    def is_of_another_default(self) -> bool:
        """Whether PyTorch is asked for other numbers than when the captures were made."""
        return self._asked is not None and self._asked != self._asks()

    def _asks(self) -> tuple[torch.dtype, bool]:
        """PyTorch's default dtype, and whether a GPU's float32 products may be TensorFloat-32's."""
        return torch.get_default_dtype(), self.options.target.kind == "cuda" and asks_for_tf32()

    @contextmanager
    def _memory(self) -> Iterator[Pool | None]:
        """Memory for packed weights, made ready meanwhile; None where that is not worth it."""
        wanted = self.options.target.kind == "cpu" and self.options.quantize is None
        pool = memory_for(self.model) if wanted else None
        try:
            yield pool
        finally:
            if pool is not None:
                pool.close()

    def _kept(self, keeper: Keeper, call: Call, pool: Pool | None) -> Entry | None:
        """An entry for the call that another process made."""
        entry = keeper.find(self.reader.signature, pool)
        if entry is not None:
            examples = [(leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in call.leaves]
            entry.recapture = partial(self._capture_again, call.spec, examples)
        return entry

    def _capture_again(self, spec: pytree.TreeSpec, examples: Sequence[Any]) -> Entry:
        """The capture of a call of these types."""
        leaves = [torch.zeros(leaf[0], dtype=leaf[1]) if isinstance(leaf, tuple) else leaf for leaf in examples]
        with self._lock, no_collection():
            return self._make(Call(spec, leaves), "", None)

    def _make(self, call: Call, refusal: str, pool: Pool | None) -> Entry:
        expect_kernels(self.options.target, self.options.open_cache())
        args, kwargs = pytree.tree_unflatten(call.leaves, call.spec)
        start = time.perf_counter()
        try:
            captured = self._captured(call, args, kwargs)
        except CaptureError as error:
            self._refuse_impossible(call, refusal, error)
            if self.options.fallback == "error":
                raise
            raise Uncapturable(str(error)) from error
        entry = build_entry(captured, self.options, time.perf_counter() - start, call.leaves, pool)
        if self.options.expect and not self.entries:
            with suppress(Mismatch):  # which the caller reports
                hold_to(self.options.expect, entry, entry.match(call.spec, call.leaves), self.name)
        return entry

    def _captured(self, call: Call, args: Any, kwargs: Any) -> Capture:
        """The capture of a call; of a model that sets its attributes only where the first call sets them for good."""
        settings: dict[str, Any] = {"dynamic": self.options.dynamic, "fallback": self.options.fallback}
        try:
            return capture(self.model, args, kwargs, stateless=True, **settings)
        except WritesStateError as error:
            if not settles(self.model, error.names, call, error.plain):
                self._state.refuse([name.removeprefix(self._prefix) for name in error.names])
                raise
            self._settled = True
        # what it sets from now on is there already
        return capture(self.model, args, kwargs, stateless=False, **settings)

    def keep_path(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], entry: Entry, sizes: Sizes) -> None:
        """Remember how a call was run, unless its capture was forgotten meanwhile, as by another thread."""
        with self._lock:
            if any(kept is entry for kept in self.entries):
                self.paths.keep(args, kwargs, entry, sizes)

    def withdraw(self, entry: Entry, call: Call, error: Exception) -> None:
        """Forget a capture whose first call failed, where the model refuses that call as well.

        Tracing sees types only, and PyTorch refuses some of them when it runs an operator.

        Raises:
            InputError: the model refuses the call.
        """
        if entry.sizes is None and not isinstance(error, torch.OutOfMemoryError):
            with self._lock:
                self._forget(entry)
            self._refuse_impossible(call, entry.refusal, error)

    def _forget(self, entry: Entry) -> None:
        self.entries = [kept for kept in self.entries if kept is not entry]
        self._known = {key: found for key, found in self._known.items() if found[0] is not entry}
        self.paths.clear()

    def _refuse_impossible(self, call: Call, refusal: str, error: Exception) -> None:
        """Raise InputError for arguments that the model itself refuses; it is tried on copies of them."""
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in call.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, call.spec)
        try:
            with torch.no_grad(), preserved(self.model), attributes_preserved(self.model):
                self.model(*args, **kwargs)
        except IndexError:
            raise
        except Exception as eager:
            known = f"{refusal}; " if refusal else ""
            raise InputError(f"{known}{self.name} itself refuses these arguments: {eager}") from error

    # --- weights ------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take the model's weights as they are now; where one is gone or of another type, forget all captures.

        So too where a tensor that is an attribute and no buffer was changed: a graph may hold it as a number.
        """
        with self._lock:
            now, attributes = weights_of(self.model), attributes_of(self.model)
            if any(_changed(entry, self._names, now) for entry in self.entries) or _differ(
                self._attributes, attributes
            ):
                self.reset()
            for entry in self.entries:
                kept = entry.capture.weights.items()
                entry.executable.refresh({name: now.get(name, tensor).detach() for name, tensor in kept})

    def reset(self) -> None:
        """Forget all captures: the next call makes one."""
        with self._lock:
            self.entries.clear()
            self._known.clear()
            self._attributes.clear()
            self.paths.clear()


def build_entry(
    captured: Capture,
    options: Options,
    seconds: float,
    leaves: Sequence[Any] | None = None,
    pool: Pool | None = None,
) -> Entry:
    """The executable of a capture that took some seconds to make.

    ``leaves`` are those of its first call, if known; ``pool`` is memory for packed weights, if some was made ready.
    """
    if options.target.kind == "cuda":
        return _cuda_entry(captured, options, seconds, leaves)
    cache = options.open_cache()
    search = SearchSettings(_first_sizes(captured, leaves)) if options.optimize == "search" else None
    sizes = _first_sizes(captured, leaves)
    schedules = schedules_for(options, cache, sizes)

    def build() -> Executable:
        return build_executable(
            captured,
            options.target,
            cache=cache,
            search=search,
            check=options.check,
            quantize=options.quantize,
            schedules=schedules,
            pool=pool,
        )

    executable = build()
    known = leaves is not None and all(r.symbol in sizes for r in captured.graph.symbols)
    if options.tune == "full" and known and leaves is not None:
        tensors = [dense(leaf) for spec, leaf in zip(captured.inputs, leaves, strict=True) if spec.kind == "tensor"]
        schedules = tuned_now(executable, tensors, sizes, options.target, cache)
        executable = build()
    kept = None if cache is None else cache.hits > 0
    return Entry(captured, executable, {"capture": seconds, **executable.timings}, kept)


def _cuda_entry(captured: Capture, options: Options, seconds: float, leaves: Sequence[Any] | None) -> Entry:
    # only who has a GPU needs them
    from .cuda.build import build_cuda
    from .gpu_tuner import gpu_tuned

    machine = options.target.gpu
    tuned = None if options.tune == "off" or machine is None else gpu_tuned(machine, options.open_cache())
    executable = build_cuda(
        captured,
        options.target,
        search=SearchSettings(_first_sizes(captured, leaves)) if options.optimize == "search" else None,
        check=options.check,
        quantize=options.quantize,
        most_graphs=options.graphs,
        streams=options.streams,
        schedules=tuned,
    )
    return Entry(captured, executable, {"capture": seconds, **executable.timings})


def _first_sizes(captured: Capture, leaves: Sequence[Any] | None) -> Sizes:
    """The sizes of a capture's first call; none where it is not known, as for Dynamo's graphs."""
    if leaves is None:
        return {}
    try:
        return sizes_of(captured, leaves)
    except (InputError, ValueError):
        return {}  # the call is not one that the capture is for, which it will be told


def check_model(model: Callable[..., Any], name: str, device: torch.device = CPU) -> None:
    """Raise UnsupportedError for a model in training mode, or not of plain tensors on the target's device."""
    if not isinstance(model, nn.Module):
        return
    part = next((path for path, module in model.named_modules() if module.training), None)
    if part is not None:
        where = f" (its part {part} is)" if part else ""
        raise UnsupportedError(f"{name} is in training mode{where}: call .eval() on the model first")
    for path, tensor in weights_of(model).items():
        if tensor.device != device and (tensor.ndim or tensor.device.type != "cpu"):
            cure = "load its weights" if tensor.device.type == "meta" else f'move it with .to("{device}")'
            raise UnsupportedError(
                f"{path} of {name} is on the device {tensor.device}, and the model was compiled for {device}: {cure} "
                "first, or compile the model again"
            )
        if not is_plain(tensor):
            raise UnsupportedError(
                f"{path} of {name} is a {type(tensor).__name__}, which does not compute as a plain tensor does: "
                "replace it by one, such as what .dequantize() gives"
            )


def weights_of(model: Callable[..., Any]) -> dict[str, Tensor]:
    """A model's parameters and buffers by every name that they have; none for a function."""
    if not isinstance(model, nn.Module):
        return {}
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def attributes_of(model: Callable[..., Any]) -> dict[str, tuple[Tensor, int]]:
    """The tensors that a model's modules hold as plain attributes, with their versions."""
    found: dict[str, tuple[Tensor, int]] = {}
    for path, module in model.named_modules() if isinstance(model, nn.Module) else ():
        for name, value in vars(module).items():
            values = (
                value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            )
            if name not in _OF_MODULES:
                for place, tensor in enumerate(values):
                    if isinstance(tensor, Tensor):
                        version = 0 if tensor.is_inference() else tensor._version
                        found[f"{path}.{name}.{place}"] = (tensor, version)
    return found


_OF_MODULES = {"_parameters", "_buffers"}


def _differ(before: Mapping[str, tuple[Tensor, int]], now: Mapping[str, tuple[Tensor, int]]) -> bool:
    """Whether an attribute is another tensor, was written to, or is gone."""
    return any(path not in now or now[path][0] is not t or now[path][1] != v for path, (t, v) in before.items())


def _changed(entry: Entry, known: Collection[str], now: Mapping[str, Tensor]) -> bool:
    """Whether a weight is gone, or became one of another type, which the kernels were not made for."""
    kept = entry.capture.weights
    if any(name in known and name not in now for name in kept):
        return True
    return any(name in now and (now[name].shape, now[name].dtype) != (t.shape, t.dtype) for name, t in kept.items())
