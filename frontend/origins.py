"""Where a node of an FX graph comes from in the model's source."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import fx

from ..ir.node import Origin

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_PLACE = re.compile(r"([^\s()]+):(\d+) in ")
_MODULE = re.compile(r" \[in ([^\]]+)\]")
_ROOT = re.compile(r"^(?:model(?:\.|$))?(?:L\['self'\](?:\.|$))?")
_TORCH = str(PurePath(torch.__file__).parent)
_HERE = str(PurePath(__file__).parent)
# Python of PyTorch's that is written as a model is
MODEL_CODE = (str(PurePath(torch.nn.__file__).parent), torch.functional.__file__)


def origin_of(node: fx.Node) -> Origin:
    """The line of the model, and the path of the module in it, that called an operator."""
    return Origin(source_of(node), module_of(node), "frontend")


def source_of(node: fx.Node) -> str:
    """The innermost line outside of PyTorch, ``file.py:12``; PyTorch's own where there is no other."""
    return source_within(node.meta)


def source_within(meta: Mapping[str, Any]) -> str:
    """:func:`source_of` a node with this metadata."""
    frames = _FRAME.findall(meta.get("stack_trace") or "")
    frames = [frame for frame in frames if not frame[0].startswith((_HERE, "<"))]
    outside = [frame for frame in frames if not within_torch(frame[0])]
    chosen = (outside or frames)[-1:]
    return "".join(f"{PurePath(file).name}:{line}" for file, line in chosen)


def short(location: Any) -> str:
    """The place of a guard, as ``file.py:12`` or ``file.py:12 in encoder.0``; as it is where it has another form."""
    text = str(location)
    found, module = _PLACE.search(text), _MODULE.search(text)
    return at(f"{PurePath(found[1]).name}:{found[2]}", module[1] if module else "") if found else text


def at(line: str, module: str) -> str:
    """A line with the module that was running, where it is not the model itself."""
    return f"{line} in {module}" if module else line


def definition_of(function: Any) -> str:
    """The line where a function, or the ``forward`` of a module, is defined; "" where that is unknown."""
    code = getattr(getattr(function, "forward", function), "__code__", None)
    return f"{PurePath(code.co_filename).name}:{code.co_firstlineno}" if code is not None else ""


def is_internal(file: str) -> bool:
    """Whether a file is one of PyTorch's, or of this package's that trace a model, or no file."""
    return within_torch(file) or file.startswith((_HERE, "<"))


def within_torch(file: str) -> bool:
    """Whether a file is one of PyTorch's."""
    return file.startswith(_TORCH)


def module_of(node: fx.Node) -> str:
    """The qualified name of the innermost module that was running."""
    return module_within(node.meta)


def module_within(meta: Mapping[str, Any]) -> str:
    """:func:`module_of` a node with this metadata."""
    stack: dict[str, Any] = meta.get("nn_module_stack") or {}
    paths = [entry[0] if isinstance(entry, tuple) else entry for entry in stack.values()]
    # the model is a part of the module that is exported; Dynamo names it L['self']
    return _ROOT.sub("", str(paths[-1])) if paths else ""
