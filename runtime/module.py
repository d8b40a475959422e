"""The compiled module: called as the model was, captured on the first call, recaptured where a guard fails."""

from __future__ import annotations

import copy
import inspect
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

from ..frontend.capture import signature_of
from ..frontend.export import capture
from ..ir.errors import CaptureError, InputError, UnsupportedError
from .build import build_executable
from .calls import Call, CallReader
from .dump import dump
from .entry import Aliased, Entry, Mismatch, Sizes
from .options import Options
from .report import Report, report_of
from .split import SplitModel
from .state import preserved
from .tensors import check_tensor

MAX_CAPTURES = 8
_MAX_KNOWN = 4096
_SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_PLAIN = (Tensor, bool, int, float, complex, str, torch.dtype, torch.device)


class CompiledModule(nn.Module):
    """A model compiled for inference. Made by ``smelt.compile``.

    It is called as the model was and returns what the model returns, without gradients. Parameters, buffers, submodules
    and attributes are those of the model, which is ``original``. Calls from several threads take turns.

    Copies and pickles hold the model and are captured anew on their first call.
    """

    original: Callable[..., Any]

    def __init__(self, original: Callable[..., Any], options: Options) -> None:
        super().__init__()
        self._begin(original, options)

    def _begin(self, original: Callable[..., Any], options: Options) -> None:
        # Past nn.Module's own bookkeeping: the model is not a child, or every name in its state_dict would change.
        state = self.__dict__
        state.update(original=original, options=options, _lock=threading.RLock())
        state.update(_entries=[], _known={}, _refusals=[], _split=None, _told=set())
        if isinstance(original, nn.Module):
            state.update((name, original.__dict__[name]) for name in _SHARED)
        signature = signature_of(original)
        state["_reader"] = CallReader(signature)
        if signature is not None:
            state["__signature__"] = signature
        state["__doc__"] = original.__doc__

    # --- calling ------------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result for these arguments, in the model's own structure; no tensor in it requires grad.

        Raises:
            InputError: an argument does not fit the model, or requires grad while gradients are enabled.
            CaptureError: the model cannot be captured, or has been for too many kinds of calls.
            UnsupportedError: the model is in training mode or not on the CPU, or autocast is on.
            IndexError: an index was out of range.
        """
        self._check_mode()
        if self._split is not None:
            return self._split(*args, **kwargs)
        call = self._reader.read(args, kwargs)
        key = self._key(call)
        found = self._known.get(key) if key is not None else None
        if found is None:
            found = self._find(call, key)
            if found is None:
                return self.forward(*args, **kwargs)
        entry, sizes = found
        try:
            return cast(Entry, entry).run(call.leaves, sizes)
        except Aliased as reason:
            self._tell(f"{reason}: such calls run in PyTorch")
            with torch.no_grad():
                return self.original(*args, **kwargs)

    def _check_mode(self) -> None:
        if self.training:
            raise UnsupportedError(
                f"{self._name()} is in training mode, and smelt compiles for inference: call .eval() on it first"
            )
        if torch.is_autocast_enabled("cpu"):
            raise UnsupportedError(
                "torch.autocast is on, and smelt keeps the model's own dtypes: leave autocast, or convert the model, as "
                "with model.to(torch.bfloat16)"
            )

    def _key(self, call: Call) -> Any:
        """What decides which capture a call is for, and its sizes; None where a leaf cannot be compared so."""
        grad = torch.is_grad_enabled()
        parts: list[Any] = [id(call.spec)]
        for place, leaf in enumerate(call.leaves):
            if isinstance(leaf, Tensor):
                if grad and leaf.requires_grad:
                    raise self._refuse_grad(call, place)
                parts.append((type(leaf), leaf.shape, leaf.dtype, leaf.layout, leaf.device))
            else:
                parts.append((type(leaf), leaf))
        key = tuple(parts)
        with suppress(TypeError):
            hash(key)
            return key
        return None

    def _refuse_grad(self, call: Call, place: int) -> InputError:
        name = self._reader.names(call.spec)[place]
        return InputError(
            f"argument {name} requires grad, and compiled models compute no gradients: call within torch.no_grad() or "
            f"torch.inference_mode(), or pass {name}.detach()"
        )

    # --- finding a capture --------------------------------------------------------------------------------------------

    def _find(self, call: Call, key: Any) -> tuple[Entry, Sizes] | None:
        """The capture for a call, made where there is none; None where the model is split instead."""
        with self._lock:
            self._check_arguments(call)
            refusal = ""
            for entry in reversed(self._entries):
                try:
                    return self._remember(key, entry, entry.match(call.spec, call.leaves))
                except Mismatch as mismatch:
                    refusal = refusal or str(mismatch)
            return self._capture(call, key, refusal)

    def _check_arguments(self, call: Call) -> None:
        """That every leaf is a tensor that can be read, or what a capture may hold constant."""
        captured = bool(self._entries)
        for place, leaf in enumerate(call.leaves):
            if isinstance(leaf, Tensor):
                check_tensor(self._reader.names(call.spec)[place], leaf)
            elif captured and leaf is not None and not isinstance(leaf, _PLAIN):
                name = self._reader.names(call.spec)[place]
                cure = "torch.from_numpy(...)" if hasattr(leaf, "__array__") else "torch.as_tensor(...)"
                raise InputError(f"argument {name} is a {type(leaf).__name__}: pass a tensor, such as {cure} makes")

    def _remember(self, key: Any, entry: Entry, sizes: Sizes) -> tuple[Entry, Sizes]:
        if len(self._known) >= _MAX_KNOWN:
            self._known.clear()
        if key is not None:
            self._known[key] = (entry, sizes)
        return entry, sizes

    def _capture(self, call: Call, key: Any, refusal: str) -> tuple[Entry, Sizes] | None:
        if len(self._entries) >= MAX_CAPTURES:
            raise CaptureError(
                f"{self._name()} was captured {MAX_CAPTURES} times, and this call fits none of them: {refusal}\n"
                "Keep that argument as it was, compile with dynamic=True where sizes differ, or compile the model again "
                "for the other kind of calls."
            )
        self._check_model()
        args, kwargs = pytree.tree_unflatten(call.leaves, call.spec)
        start = time.perf_counter()
        try:
            captured = capture(
                self.original, args, kwargs, dynamic=self.options.dynamic, fallback=self.options.fallback
            )
        except CaptureError as error:
            self._refuse_impossible(call, refusal, error)
            if self.options.fallback == "error":
                raise
            self.__dict__["_split"] = SplitModel(self.original, self.options, str(error))
            return None
        entry = self._build(captured, time.perf_counter() - start)
        if refusal:
            self._refusals.append(refusal)
        try:
            return self._remember(key, entry, entry.match(call.spec, call.leaves))
        except Mismatch as mismatch:
            raise CaptureError(f"{self._name()} was captured, but not for this call: {mismatch}") from None

    def _build(self, captured: Any, seconds: float) -> Entry:
        cache = self.options.open_cache()
        executable = build_executable(captured, self.options.target, cache=cache)
        entry = Entry(captured, executable)
        entry.timings = {"capture": seconds, **executable.timings}
        entry.cache = None if cache is None else "hit" if cache.hits else "miss"
        self._entries.append(entry)
        return entry

    def _check_model(self) -> None:
        """That the model, and every part of it, is one that can be captured."""
        if not isinstance(self.original, nn.Module):
            return
        part = next((name for name, module in self.original.named_modules() if module.training), None)
        if part is not None:
            raise UnsupportedError(f"{self._name()} has a part in training mode, {part}: call .eval() on the model")
        for kind, tensors in (("parameter", self.original.named_parameters()), ("buffer", self.original.named_buffers())):
            for name, tensor in tensors:
                if tensor.device.type != "cpu":
                    cure = "load its weights" if tensor.device.type == "meta" else 'move it with .to("cpu")'
                    raise UnsupportedError(
                        f"{kind} {name} of {self._name()} is on the device {tensor.device}, which smelt has no backend "
                        f"for yet: {cure} and compile it then"
                    )

    def _refuse_impossible(self, call: Call, refusal: str, error: CaptureError) -> None:
        """Raise InputError for arguments that the model itself refuses; they are tried on copies."""
        leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in call.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, call.spec)
        try:
            with torch.no_grad(), preserved(self.original):
                self.original(*args, **kwargs)
        except IndexError:
            raise
        except Exception as eager:
            reason = f"{refusal}; the" if refusal else "the"
            raise InputError(f"{reason} model itself refuses these arguments: {eager}") from error

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            warnings.warn(message, UserWarning, stacklevel=4)

    def _name(self) -> str:
        return getattr(self.original, "__name__", type(self.original).__name__)

    # --- what it did --------------------------------------------------------------------------------------------------

    def ir(self, after: str | None = None, *, stage: str | None = None) -> str:
        """The model's graph as text, of the capture that was made last.

        Args:
            after: the pass after which to show it, such as ``"fuse"``.
            stage: ``"captured"``, the name of a pass, ``"final"`` (the default), ``"kernels"`` for the kernel programs or
                ``"code"`` for the generated source.

        Raises:
            CaptureError: the module was not called yet.
            ValueError: there is no such stage.
        """
        if after is not None and stage is not None:
            raise ValueError("give after or stage, not both")
        return dump(self._captured_entries(), stage or after or "final")

    def report(self) -> Report:
        """What was compiled and how: kernels, fallbacks, specialised sizes, rules, seconds. Printable.

        Raises:
            CaptureError: the module was not called yet.
        """
        return report_of(self)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The captures, in the order in which they were made; those of the parts of a split model."""
        return tuple(self._entries) if self._split is None else tuple(self._split.entries)

    def _captured_entries(self) -> tuple[Entry, ...]:
        if not self.entries:
            raise CaptureError(f"{self._name()} was not captured yet: call it once")
        return self.entries if self._split is not None else self.entries[-1:]

    # --- weights ------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take the weights as they are now. To call after they were changed; they are packed again."""
        if not isinstance(self.original, nn.Module):
            return
        with self._lock:
            now = dict(self.original.named_parameters(remove_duplicate=False))
            now |= dict(self.original.named_buffers(remove_duplicate=False))
            if self._split is not None or any(_changed(entry, now) for entry in self._entries):
                self.reset()
            for entry in self._entries:
                weights = {name: now.get(name, kept).detach() for name, kept in entry.capture.weights.items()}
                entry.executable.refresh(weights)

    def reset(self) -> None:
        """Forget all captures: the next call makes one."""
        with self._lock:
            self._entries.clear()
            self._known.clear()
            self._refusals.clear()
            self.__dict__["_split"] = None

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights into the model, and refresh."""
        if not isinstance(self.original, nn.Module):
            return super().load_state_dict(*args, **kwargs)
        found = self.original.load_state_dict(*args, **kwargs)
        self.refresh()
        return found

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own."""
        return (self.original if isinstance(self.original, nn.Module) else super()).state_dict(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> CompiledModule:
        """What ``.to()``, ``.half()`` and the like do: done to the model, which is captured anew."""
        if isinstance(self.original, nn.Module):
            self.original._apply(fn, recurse)
        self.reset()
        return self

    # --- being the model ----------------------------------------------------------------------------------------------

    @property
    def training(self) -> bool:  # type: ignore[override]
        """Whether the model is in training mode, where it cannot be called."""
        return bool(getattr(self.__dict__.get("original"), "training", False))

    @training.setter
    def training(self, mode: bool) -> None:
        original = self.__dict__.get("original")
        if isinstance(original, nn.Module):
            original.training = mode

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            original = self.__dict__.get("original")
            if original is None or (name.startswith("__") and name.endswith("__")):
                raise
            return getattr(original, name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.original)})

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModule:
        return CompiledModule(copy.deepcopy(self.original, memo), self.options)

    def __getstate__(self) -> dict[str, Any]:
        return {"original": self.original, "options": self.options}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__init__()
        self._begin(state["original"], state["options"])

    def extra_repr(self) -> str:
        """The model, the target and the number of captures."""
        return f"{self._name()}, {self.options.target}, {len(self.entries)} captured"


def _changed(entry: Entry, now: Mapping[str, Tensor]) -> bool:
    """Whether a weight became one of another type, which kernels were not made for."""
    return any(
        (now[name].shape, now[name].dtype) != (kept.shape, kept.dtype)
        for name, kept in entry.capture.weights.items()
        if name in now
    )


__all__ = ["MAX_CAPTURES", "CompiledModule", "inspect"]
