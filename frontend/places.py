"""Where a condition on sizes arises: the line of the model, and the module that was running."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import fx, nn
from torch._guards import SLoc
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .origins import MODEL_CODE, is_internal, module_within, source_within

# Of the trace that runs; one runs at a time.
_paths: dict[int, str] = {}
_OUTERMOST = "capture_request"  # what is outside of it is no part of the model


@contextmanager
def located(root: nn.Module) -> Iterator[None]:
    """Meanwhile PyTorch's guards know the module that they arise in, beside the line: see :func:`.origins.short`."""
    found = {_members(module): name for name, module in root.named_modules()}
    original = ShapeEnv._get_sloc

    def _get_sloc(self: ShapeEnv, framework_loc: str | None = None) -> SLoc:
        location: SLoc = original(self, framework_loc)
        here = module_here(sys._getframe(1))
        line = _line_of_dynamo() or line_here(sys._getframe(1)) or location.maybe_user_loc
        return SLoc(location.framework_loc, f"{line or ''}{f' [in {here}]' if here else ''}" or None)

    # PyTorch looks for the line outside of its own files: this frame must seem one
    _get_sloc.__code__ = _get_sloc.__code__.replace(co_filename=original.__code__.co_filename)
    _paths.update(found)
    ShapeEnv._get_sloc = _get_sloc  # type: ignore[method-assign]
    try:
        yield
    finally:
        ShapeEnv._get_sloc = original  # type: ignore[method-assign]
        _paths.clear()


def module_here(frame: FrameType | None) -> str:
    """The path of the innermost module whose ``forward`` is running; "" for the model itself, or without one."""
    known = module_within(_current())
    if known:
        return known
    while frame is not None:
        owner = frame.f_locals.get("self") if frame.f_code.co_name == "forward" else None
        path = _paths.get(_members(owner)) if isinstance(owner, nn.Module) else None
        if path is not None:
            return path.removeprefix("model").removeprefix(".")
        frame = frame.f_back
    return ""


def _members(module: nn.Module) -> int:
    """What tells a module: an attribute of a traced one is a stand-in with the same members.

    They are asked for past the module's class, which may be watched for what a layer reads.
    """
    return id(object.__getattribute__(module, "__dict__"))


def line_here(frame: FrameType | None) -> str:
    """The innermost line outside of PyTorch, or of PyTorch's modules where there is none, as PyTorch writes it."""
    within = ""
    while frame is not None:
        file = frame.f_code.co_filename
        if not is_internal(file):
            return f"{file}:{frame.f_lineno} in {frame.f_code.co_name}"
        if not within and file.startswith(MODEL_CODE):
            within = f"{file}:{frame.f_lineno} in {frame.f_code.co_name}"
        if frame.f_code.co_name == _OUTERMOST:
            break
        frame = frame.f_back
    return within


def _current() -> dict[str, Any]:
    """What is known of the node of Dynamo's graph that is being traced."""
    return fx.traceback.get_current_meta() if fx.traceback.has_preserved_node_meta() else {}


def _line_of_dynamo() -> str:
    source = source_within(_current())
    return f"{source} in graph" if source else ""
