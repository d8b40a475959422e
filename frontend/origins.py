"""Where a node of an FX graph comes from in the model's source."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Any

import torch
from torch import fx

from ..ir.node import Origin

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_PLACE = re.compile(r"([^\s()]+):(\d+) in ")
_ROOT = re.compile(r"^model(?:\.|$)(?:L\['self'\](?:\.|$))?")
_TORCH = str(PurePath(torch.__file__).parent)
_HERE = str(PurePath(__file__).parent)


def origin_of(node: fx.Node) -> Origin:
    """The line of the model, and the path of the module in it, that called an operator."""
    return Origin(source_of(node), module_of(node), "frontend")


def source_of(node: fx.Node) -> str:
    """The innermost line outside of PyTorch, ``file.py:12``; PyTorch's own where there is no other."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    frames = [frame for frame in frames if not frame[0].startswith(_HERE)]
    outside = [frame for frame in frames if not within_torch(frame[0])]
    chosen = (outside or frames)[-1:]
    return "".join(f"{PurePath(file).name}:{line}" for file, line in chosen)


def short(location: Any) -> str:
    """The place that PyTorch names for a guard, as ``file.py:12``; as it is where it has another form."""
    found = _PLACE.search(str(location))
    return f"{PurePath(found[1]).name}:{found[2]}" if found else str(location)


def definition_of(function: Any) -> str:
    """The line where a function, or the ``forward`` of a module, is defined; "" where that is unknown."""
    code = getattr(getattr(function, "forward", function), "__code__", None)
    return f"{PurePath(code.co_filename).name}:{code.co_firstlineno}" if code is not None else ""


def within_torch(file: str) -> bool:
    """Whether a file is one of PyTorch's."""
    return file.startswith(_TORCH)


def module_of(node: fx.Node) -> str:
    """The qualified name of the innermost module that was running."""
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    paths = [entry[0] if isinstance(entry, tuple) else entry for entry in stack.values()]
    # the model is a part of the module that is exported; Dynamo names it L['self']
    return _ROOT.sub("", str(paths[-1])) if paths else ""
