"""What PyTorch computes while it traces a model and nothing here reads, left out: a quarter of the time of a trace.

- Its cache of operators on tensors without values: each result is described, made a second time and compared before it
  is kept, which costs more than equal calls save, since equal layers are not traced again (see :mod:`.repeats`).
- ``tensor_meta`` of each node, which asks in which orders a tensor of symbolic sizes is contiguous.
- The whole call stack of each node, and the text of its lines. Read are the frames of ``forward`` (:mod:`.origins`).
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from traceback import FrameSummary, StackSummary
from types import FrameType
from typing import Any

_FORWARD = "forward"  # the only frames that PyTorch keeps of a stack in an exported program


@contextmanager
def lean() -> Iterator[None]:
    """Leave that out meanwhile in this thread; what a version of PyTorch does not have is left as it is.

    The cache is switched off for all threads: without it others trace the same, if more slowly.
    """
    thread = threading.get_ident()
    # imported here: they are PyTorch's tracer, which `import smelt` does without
    dynamo: Any = importlib.import_module("torch._dynamo.config")
    nodes: Any = importlib.import_module("torch.fx.experimental.proxy_tensor")
    proxies: Any = importlib.import_module("torch.fx.proxy")
    with ExitStack() as stack:
        if hasattr(dynamo, "fake_tensor_cache_enabled"):
            stack.enter_context(dynamo.patch(fake_tensor_cache_enabled=False))
        stack.enter_context(_instead(nodes, "_extract_tensor_metadata", partial(_unless, thread)))
        stack.enter_context(_instead(proxies, "CapturedTraceback", partial(_Tracebacks, thread)))
        yield


@contextmanager
def _instead(module: Any, name: str, made: Callable[[Any], Any]) -> Iterator[None]:
    """What is made of the value of a name that a module has, in its place."""
    if name not in vars(module):
        yield
        return
    before = vars(module)[name]
    setattr(module, name, made(before))
    try:
        yield
    finally:
        setattr(module, name, before)


def _unless(thread: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which gives None to a thread."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return None if threading.get_ident() == thread else function(*args, **kwargs)

    return call


class _Tracebacks:
    """PyTorch's ``CapturedTraceback``; a thread gets the frames of ``forward`` alone."""

    def __init__(self, thread: int, kind: Any) -> None:
        self._thread, self._kind = thread, kind

    def extract(self, **options: Any) -> Any:
        """The stack of the caller."""
        if threading.get_ident() == self._thread:
            return _Forwards(sys._getframe(1))
        return self._kind.extract(**options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kind, name)


class _Forwards:
    """The frames of ``forward`` in a call stack, outermost first."""

    def __init__(self, frame: FrameType | None) -> None:
        self._frames: list[FrameSummary] = []
        while frame is not None:
            code = frame.f_code
            if code.co_name == _FORWARD:
                # a line of text, if an empty one: it would be looked up in the file
                self._frames.append(FrameSummary(code.co_filename, frame.f_lineno, _FORWARD, line=""))
            frame = frame.f_back
        self._frames.reverse()

    def summary(self) -> StackSummary:
        """Its frames."""
        return StackSummary.from_list(self._frames)
