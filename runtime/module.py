"""The compiled module: called as the model was, captured on the first call, recaptured where a guard fails."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..frontend.capture import signature_of
from ..ir.errors import CaptureError, ExpectationError, UnsupportedError
from .calls import Call, CallReader, kind_of
from .captures import Captures, Uncapturable
from .dump import dump
from .entry import Aliased, Entry, Sizes
from .explain import Explanation, explain_module
from .generation.model import generation_of
from .generation.unchanged import Change
from .hooks import is_hooked
from .options import Options
from .paths import MISS
from .report import Report, make_report
from .split import SplitModel, Untraceable
from .stateful import kept_of
from .tensors import check_surroundings, is_surrounded, is_traced

_SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class CompiledModule(nn.Module):
    """A model compiled for inference. Made by ``smelt.compile``.

    It is called as the model was and returns what the model returns, without gradients. Parameters, buffers, submodules
    and attributes are those of the model, which is ``original``; methods reached so run the model itself, but for
    ``generate`` of a transformers model, which runs compiled calls. It may be called from several threads.

    Copies and pickles hold the model, and are captured anew on their first call.
    """

    original: Callable[..., Any]
    _device: torch.device
    options: Options

    def __init__(self, original: Callable[..., Any], options: Options) -> None:
        super().__init__()
        self._begin(original, options)

    def _begin(self, original: Callable[..., Any], options: Options) -> None:
        # Past nn.Module's own bookkeeping: the model is not a child, or every name in its state_dict would change.
        state = self.__dict__
        signature = signature_of(original)
        reader = CallReader(signature)
        state.update(original=original, options=options, __doc__=original.__doc__)
        state["_modal"] = original if isinstance(original, nn.Module) else nn.Module().eval()  # a function has no modes
        state["_device"] = options.target.device
        state.update(_reader=reader, _captures=Captures(original, options, reader), _split=None, _told=set())
        state["_untraceable"] = {}
        parts = replace(options, expect={}, kv_cache_dtype=None)  # which were said of the whole
        generation = generation_of(original, options, lambda part: CompiledModule(part, parts), self._renew)
        state.update(_generation=generation)
        if isinstance(original, nn.Module):
            state.update((name, original.__dict__[name]) for name in _SHARED)
        state["_own_forward"] = None
        if signature is not None:
            forward = _forward(self, signature)
            state.update(__signature__=signature, forward=forward, _own_forward=forward)

    # --- calling ------------------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As ``nn.Module`` calls, which takes a microsecond to find that nothing comes before or after ``forward``.

        Within a trace, by ``torch.compile`` or ``torch.export``, it is the model, which takes part in what is traced.
        """
        if is_traced():
            with torch.no_grad():
                return self.original(*args, **kwargs)
        state = self.__dict__  # looked at directly: with __getattr__, each attribute takes three times as long
        if state.get("forward") is not state["_own_forward"] or is_hooked(self):
            return super().__call__(*args, **kwargs)
        if not (is_surrounded() or state["_modal"].training) and state["_generation"] is None:
            result = state["_captures"].paths.run(args, kwargs)
            if result is not MISS:
                return result
        return self._run(args, kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's result for these arguments, in the model's own structure; no tensor in it requires grad.

        Raises:
            InputError: an argument does not fit the model, or requires grad while gradients are enabled.
            CaptureError: the model cannot be captured, or has been for too many kinds of calls.
            ExpectationError: the first capture is not what ``expect`` said of it.
            UnsupportedError: the model is in training mode or not on the target's device, autocast is on, the default
                device is another, or PyTorch transforms the call.
            OutOfMemoryError: the GPU has not enough memory.
            IndexError: an index was out of range.
        """
        if is_traced():
            with torch.no_grad():
                return self.original(*args, **kwargs)
        return self._run(args, kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._check_mode()
        if self._generation is not None:
            self._follow_default()
            found = self._generation.run(args, kwargs)
            if found is not None:
                return found
        captures: Captures = self._captures
        result = captures.paths.run(args, kwargs)
        if result is not MISS:
            return result
        self._follow_default()
        if self._untraceable:
            reason = self._untraceable.get(kind_of(self._reader.read(args, kwargs)))
            if reason is not None:
                return self._in_pytorch(args, kwargs, reason)
        split: SplitModel | None = self._split
        if split is not None:
            return self._run_split(split, args, kwargs)
        call = self._reader.read(args, kwargs)
        try:
            entry, sizes = captures.find(call)
        except Uncapturable as reason:
            if self.options.expect:
                raise ExpectationError(f"{self._captures.name} is not one graph, as expected: {reason}") from None
            return self._run_split(SplitModel(self.original, self.options, str(reason)), args, kwargs)
        try:
            result = entry.run(call.leaves, sizes)
        except Aliased as reason:
            return self._in_pytorch(args, kwargs, str(reason))
        except RuntimeError as error:
            captures.withdraw(entry, call, error)
            raise
        captures.keep_path(args, kwargs, entry, sizes)
        return result

    def _run_split(self, split: SplitModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of a call that Dynamo splits; PyTorch's of all calls of a kind that Dynamo fails at."""
        try:
            if self._captures.entries:  # which may hold as constants what other calls set
                with kept_of(self.original).watching(self.original):
                    result = split(args, kwargs)
            else:
                result = split(args, kwargs)
        except Untraceable as error:
            reason = f"{self._captures.name} is no one graph in such a call, and Dynamo fails at it: {error}"
            self._untraceable[kind_of(self._reader.read(args, kwargs))] = reason
            return self._in_pytorch(args, kwargs, reason)
        self.__dict__["_split"] = split
        return result

    def synchronize(self) -> None:
        """Wait until all calls are done on the target's device.

        Raises:
            IndexError: in a call of this thread an index was out of range, and it was not raised yet.
        """
        for entry in self.entries:
            entry.executable.synchronize()

    def _check_mode(self) -> None:
        if self.training:
            raise UnsupportedError(
                f"{self._captures.name} is in training mode, and compiled models are for inference: call .eval() first"
            )
        if torch.is_autocast_enabled(self._device.type):
            raise UnsupportedError(
                "torch.autocast is on, and compiled models keep their own dtypes: leave autocast, or convert the "
                "model, as with model.to(torch.bfloat16)"
            )
        check_surroundings(self._device)

    def _follow_default(self) -> None:
        """Forget what was captured under another default dtype, or for a GPU with other products of float32."""
        if self._captures.is_of_another_default:
            self.reset()

    def _in_pytorch(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], reason: str) -> Any:
        kept = kept_of(self.original)
        with kept.lock, torch.no_grad(), kept.watching(self.original):
            result = self.original(*args, **kwargs)
        if reason not in self._told:
            self._told.add(reason)
            warnings.warn(f"{reason}: such calls run in PyTorch", UserWarning, stacklevel=4)
        return result

    def entry_for(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Entry, Sizes, Call]:
        """The capture for a call, made where there is none, with the call's leaves and sizes.

        Raises:
            UnsupportedError: the model is split, or returns a cache, so that no one capture is for the whole call.
        """
        call = self._reader.read(args, kwargs)
        reason = "" if self._split is None else self._split.reason
        if self._split is None:
            try:
                entry, sizes = self._captures.find(call)
                entry.complete()
                return entry, sizes, call
            except Uncapturable as error:
                reason = str(error)
        if self._generation is not None and self._generation.has_cache(args, kwargs):
            raise UnsupportedError(
                f"the call of {self._captures.name} returns a cache, and no capture holds one: give use_cache=False, "
                'as in kwargs={"use_cache": False}. What generate and calls with a cache captured is in report()'
            )
        raise UnsupportedError(f"{self._captures.name} is split into several graphs: {reason}")

    @property
    def takes_cache(self) -> bool:
        """Whether the model is one of transformers that is called with a cache of keys and values."""
        return self._generation is not None

    # --- what it did --------------------------------------------------------------------------------------------------

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The captures, oldest first; those of the parts where the model is split."""
        found = tuple(self._captures.entries if self._split is None else self._split.entries)
        if self._generation is not None:
            found += tuple(self._generation.entries)
        for entry in found:
            entry.complete()
        return found

    @property
    def is_split(self) -> bool:
        """Whether the model is more than one graph, with Python between them."""
        return self._split is not None

    @property
    def recaptured(self) -> tuple[str, ...]:
        """Why it was captured again, once for each capture but the first: the guard that failed, and what fixed it."""
        return tuple(entry.refusal for entry in self._captures.entries[1:])

    def ir(self, after: str | None = None, *, stage: str | None = None) -> str:
        """The model's graph as text, of the capture that was made last; of every part where the model is split.

        Args:
            after: the pass after which to show it, such as ``"fuse"``.
            stage: ``"captured"``, the name of a pass, ``"final"`` (the default), ``"kernels"`` for the kernel programs
                or ``"code"`` for the generated source.

        Raises:
            CaptureError: the module was not called yet.
            ValueError: there is no such stage, or both are given.
        """
        if after is not None and stage is not None:
            raise ValueError("give after or stage, not both")
        return dump(self._latest(), stage or after or "final")

    def report(self) -> Report:
        """What was compiled and how: kernels, fallbacks, specialised sizes, rules fired, seconds. Printable.

        Raises:
            CaptureError: the module was not called yet.
        """
        caches = None if self._generation is None else self._generation.report()
        split = None if self._split is None else self._split.reason
        if split is None and not self.entries:
            split = next(iter(self._untraceable.values()), None)
        if caches is None and split is None:
            self._latest()
        name, target = self._captures.name, self.options.target
        return make_report(name, target, self.entries, split, caches)

    def explain(
        self, args: tuple[Any, ...] | None = None, kwargs: Mapping[str, Any] | None = None, *, measure: bool = False
    ) -> Explanation:
        """Why it is what it is: kernels against the machine's roofs, bytes over the least, refused fusions, memory.

        The machine's roofs are measured the first time, which takes some five seconds, and kept in the cache folder.
        Of a GPU that is not there none are known: times are left out then, and refused fusions are by bytes.

        Args:
            args, kwargs: a call of the model, which is not run; by default the sizes of the last call are taken.
            measure: time every kernel and count the memory that PyTorch takes, for which the call is run on copies.

        Raises:
            CaptureError: the module was not called yet, and no arguments are given.
            UnsupportedError: arguments are given, and the model is split into several graphs; or a model for a GPU that
                is not there is to be measured.
            ValueError: there are no arguments to measure with.
        """
        if args is not None or kwargs is not None:
            entry, sizes, call = self.entry_for(args or (), kwargs or {})
            given = (call, self.original) if measure else (None, None)
            return explain_module(self._captures.name, self.options, [(entry, sizes)], *given)
        if measure:
            raise ValueError("give the arguments of a call to measure with: explain(args, kwargs, measure=True)")
        called = [(entry, entry.sizes) for entry in self._latest() if entry.sizes is not None]
        if not called:
            raise CaptureError(f"{self._captures.name} was not called yet: call it once, or give a call's arguments")
        return explain_module(self._captures.name, self.options, called)

    def _latest(self) -> tuple[Entry, ...]:
        if not self.entries:
            split: SplitModel | None = self._split
            why = "was not captured yet: call it once" if split is None else f"has no graph of ours: {split.reason}"
            raise CaptureError(f"{self._captures.name} {why}")
        return self.entries if self._split is not None else self.entries[-1:]

    # --- weights ------------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Take the weights as they are now. To call after they were changed; kernels hold packed copies of them."""
        if self._split is not None:
            self.reset()
        self._captures.refresh()
        if self._generation is not None:
            self._generation.refresh()

    def _renew(self, change: Change) -> None:
        """Follow the model where it was changed since it was captured."""
        if change is Change.MODULES:
            self.reset()
        else:
            self.refresh()

    def reset(self) -> None:
        """Forget all captures: the next call makes one."""
        kept_of(self.original).clear()
        self._captures.reset()
        self._untraceable.clear()
        self.__dict__["_split"] = None
        if self._generation is not None:
            self._generation.reset()

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load weights into the model, and refresh."""
        loaded = self._model().load_state_dict(*args, **kwargs)
        self.refresh()
        return loaded

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own."""
        return self._model().state_dict(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> CompiledModule:
        """What ``.to()``, ``.half()`` and the like do: done to the model, which is captured anew."""
        self._model()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.reset()
        return self

    def _model(self) -> nn.Module:
        """The model where it is a module; a module without weights where it is a function."""
        return self.original if isinstance(self.original, nn.Module) else nn.Module()

    # --- being the model ----------------------------------------------------------------------------------------------

    @property
    def training(self) -> bool:
        """Whether the model is in training mode, where it cannot be called."""
        original = self.__dict__.get("original")
        return isinstance(original, nn.Module) and original.training

    @training.setter
    def training(self, mode: bool) -> None:
        original = self.__dict__.get("original")
        if isinstance(original, nn.Module):
            original.training = mode

    def __getattr__(self, name: str) -> Any:
        original = self.__dict__.get("original")
        if original is None or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        if name == "generate" and self._generation is not None:
            return self._generate(getattr(original, name))
        return getattr(original, name)

    def _generate(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The model's ``generate``, each call in it compiled."""

        @functools.wraps(method)
        def generate(*args: Any, **kwargs: Any) -> Any:
            self._check_mode()
            self._follow_default()
            self._generation.look()
            assistant = kwargs.get("assistant_model")
            if isinstance(assistant, CompiledModule) and assistant._generation is not None:
                assistant._generation.look()
                kwargs["assistant_model"] = assistant._generation.stand_in(assistant)
            try:
                return self._generation.stand_in(self).generate(*args, **kwargs)
            finally:
                self._generation.calls.asked = 0

        return generate

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the model's attribute, as ``fast.generation_config = ...`` means to; ``forward`` is this module's own."""
        original = self.__dict__.get("original")
        if isinstance(original, nn.Module) and name not in self.__dict__ and not hasattr(type(self), name):
            setattr(original, name, value)
        else:
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self.original)})  # type: ignore[no-untyped-call]

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModule:
        return CompiledModule(copy.deepcopy(self.original, memo), self.options)

    def __getstate__(self) -> dict[str, Any]:
        return {"original": self.original, "options": self.options}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        super().__init__()
        self._begin(state["original"], state["options"])

    def extra_repr(self) -> str:
        """The model's class, the target and the number of captures."""
        return f"{self._captures.name}, {self.options.target}, {len(self._captures.entries)} captured"


def _forward(module: CompiledModule, signature: Any) -> Callable[..., Any]:
    """The module's ``forward`` with the model's signature, for those who read it there."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return CompiledModule.forward(module, *args, **kwargs)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    forward.__doc__ = CompiledModule.forward.__doc__
    return forward
