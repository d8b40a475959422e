"""What a compiled transformers model does besides plain calls: calls with a cache, and ``generate``.

transformers is imported only where the model is one of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from ...frontend.capture import signature_of
from ..options import Options
from ..stateful import kept_of, share_kept
from .recording import Recording
from .report import CacheReport
from .unchanged import Change, Watch

if TYPE_CHECKING:
    from .calls import CachedCalls


class Generation:
    """The calls with a cache of one model, and what runs its ``generate``.

    Args:
        compile_part: compiles a part of the model, its encoder.
        renew: what is done where the model was changed since it was captured.
    """

    def __init__(
        self,
        model: nn.Module,
        options: Options,
        compile_part: Callable[[nn.Module], Any],
        renew: Callable[[Change], None],
    ) -> None:
        self.model = model
        self.options = options
        self._compile_part = compile_part
        self._renew = renew
        self._watch: Watch | None = None
        self._calls: CachedCalls | None = None
        self._encoder: Any = None
        self._lock = kept_of(model).lock
        self._recording: Recording | None = None

    @property
    def calls(self) -> CachedCalls:
        """The calls with a cache."""
        if self._calls is None:
            from .calls import CachedCalls

            self._calls = CachedCalls(self.model, self.options)
        return self._calls

    def report(self) -> CacheReport | None:
        """What became of such calls; None where there was none."""
        found = None if self._calls is None else self._calls.counts.report()
        return found if found is not None and (found.calls or found.passed) else None

    @property
    def entries(self) -> list[Any]:
        """The captures of such calls, those of the encoder that ``generate`` called first."""
        encoder = [] if self._encoder is None else list(self._encoder.entries)
        return [*encoder, *([] if self._calls is None else self._calls.entries)]

    def run(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The model's output for a call that has a cache, or makes one; None for any other call."""
        with self._lock:
            calls = self.calls
            given = calls.named(args, kwargs)
            if not calls.asked and calls.begins(given):  # generate has looked itself
                self.look()
            calls = self.calls  # which may be others now
            calls.recording = self._recording
            return calls.run(given, args, kwargs)

    @contextmanager
    def recorded(self) -> Iterator[Recording]:
        """Record the calls with a cache within, those of this thread alone."""
        with self._lock:
            self._recording = Recording()
            try:
                yield self._recording
            finally:
                self._recording = None

    def has_cache(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call is given a cache, or makes one."""
        return self.calls.has_cache(self.calls.named(args, kwargs))

    def look(self) -> None:
        """See to it that what was captured is the model as it is now: to call where a text begins."""
        with self._lock:
            if self._watch is None:
                self._watch = Watch(self.model)
                return
            change = self._watch.change(self.calls.written)
            if change is not Change.NOTHING:
                self._renew(change)

    def encoder(self, found: nn.Module) -> Any:
        """The model's encoder compiled."""
        with self._lock:
            if self._encoder is None or self._encoder.original is not found:
                share_kept(found, self.model)
                self._encoder = self._compile_part(found)
            return self._encoder

    def refresh(self) -> None:
        """Take the weights as they are now."""
        with self._lock:
            if self._calls is not None:
                self._calls.refresh()
            if self._encoder is not None:
                self._encoder.refresh()

    def reset(self) -> None:
        """Forget all captures."""
        with self._lock:
            self._calls = self._encoder = None

    def stand_in(self, call: Callable[..., Any]) -> Any:
        """The model as ``generate`` sees it, called by ``call``."""
        from .standin import stand_in

        return stand_in(self.model, call, self)


def generation_of(
    model: Callable[..., Any],
    options: Options,
    compile_part: Callable[[nn.Module], Any],
    renew: Callable[[Change], None],
) -> Generation | None:
    """What a model does with caches; None for one that is not of transformers, or takes no cache.

    The arguments are those of :class:`Generation`.
    """
    transformers = sys.modules.get("transformers.modeling_utils")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return None
    signature = signature_of(model)
    takes_cache = signature is not None and "past_key_values" in signature.parameters
    return Generation(model, options, compile_part, renew) if takes_cache else None
