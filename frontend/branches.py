"""What a model's Python decided by sizes while it was traced."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

import sympy
import torch

from .origins import within_torch

_NN = (str(PurePath(torch.nn.__file__).parent), torch.functional.__file__)


@contextmanager
def recorded_branches() -> Iterator[list[tuple[Any, str]]]:
    """Record each condition on symbolic sizes that a model's Python branches on, as it came out, with its line.

    PyTorch guards every such condition, but it guards its own decisions as well: whether a tensor is contiguous, say,
    which is so at size 1 whatever the strides. Those have no meaning here, where tensors have no strides. Only a branch
    in Python code outside of PyTorch's internals makes a model of size 1 another one.
    """
    found: list[tuple[Any, str]] = []
    original = torch.SymBool.__bool__

    def __bool__(self: torch.SymBool) -> bool:
        condition = self.node.expr
        value = original(self)
        frame = sys._getframe(1)
        file = frame.f_code.co_filename
        if not within_torch(file) or file.startswith(_NN):
            where = f"{PurePath(file).name}:{frame.f_lineno}"
            found.append((condition if value else sympy.Not(condition), where))
        return value

    torch.SymBool.__bool__ = __bool__  # type: ignore[method-assign]
    try:
        yield found
    finally:
        torch.SymBool.__bool__ = original  # type: ignore[method-assign]


def excludes_only_small(condition: Any) -> bool:
    """Whether a condition says no more than that some size is not 0 or not 1."""
    name = type(condition).__name__
    left, right = getattr(condition, "lhs", None), getattr(condition, "rhs", None)
    if left is None or right is None:
        return False
    if left.is_Integer:
        left, right = right, left
        name = _MIRRORED.get(name, name)
    return bool(right.is_Integer) and (name, int(right)) in _SMALL


_MIRRORED = {
    "StrictLessThan": "StrictGreaterThan",
    "LessThan": "GreaterThan",
    "StrictGreaterThan": "StrictLessThan",
    "GreaterThan": "LessThan",
}
_SMALL = {
    ("Unequality", 0),
    ("Unequality", 1),
    ("StrictGreaterThan", 0),
    ("StrictGreaterThan", 1),
    ("GreaterThan", 1),
    ("GreaterThan", 2),
}
