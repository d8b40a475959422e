"""Functions that Dynamo leaves alone where compiled code calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_NAMES = ("set_code_exec_strategy", "_FrameExecStrategy", "_FrameAction")


def never_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that Dynamo compiles no more than what it calls.

    Dynamo would take each frame of the runtime for one of the user's. ``torch.compiler.disable`` turns it off by a
    wrapper around each call, and takes a second to import; a mark on the code costs a call nothing.
    """
    frames: Any = torch._C._dynamo.eval_frame  # not part of PyTorch's public interface
    if not all(hasattr(frames, name) for name in _NAMES):
        return torch.compiler.disable(function)  # type: ignore[no-any-return, no-untyped-call]
    skip = frames._FrameAction.SKIP
    frames.set_code_exec_strategy(function.__code__, frames._FrameExecStrategy(skip, skip))
    function._torchdynamo_disable = True  # type: ignore[attr-defined] # while a caller is traced
    return function
