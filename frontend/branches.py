"""What a model's Python decided by sizes while it was traced, and why one capture serves size 1 as well.

PyTorch takes every symbolic size to be 2 or more: a dim of 1 broadcasts, is contiguous whatever its stride, and can be
squeezed away. It makes a dim whose example is 1 a constant, and decides ``size > 1`` without a guard. Yet nearly every
model is the same at 1. So:

- examples of 0 and 1 are enlarged while a model is traced (see :class:`.arguments.Attempt`);
- of PyTorch's guards, those that only say that a size is not 0 or 1, or that two sizes differ, are dropped: they are
  about strides and broadcasting, and our operators have neither strides nor broadcasting that depends on a size;
- instead, the conditions that the model's own Python asks are recorded, guarded or not, and so are those that a
  lowering relies on: a slice within its axis, an axis that a squeeze kept;
- a capture is refused where it does not hold for the sizes of its example.

``torch.fx.experimental._config.backed_size_oblivious`` would do a part of this, but takes some slices for sizes that
depend on data in PyTorch 2.11, and is not what ``torch.export`` is tested with.

A symbolic size is at least 1, not 0: PyTorch's symbols are positive, and ``size > 0`` is true before anyone asks.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import sympy
import torch

from ..ir import ops
from ..ir.node import Node
from .origins import MODEL_CODE, at, within_torch
from .places import module_here


@dataclass(frozen=True)
class Branch:
    """A condition on sizes, as it came out for the example, and the line that asked."""

    condition: Any
    file: str
    line: int
    function: str
    module: str = ""

    @property
    def where(self) -> str:
        """The line and the module, ``file.py:12 in encoder.0``."""
        return at(f"{PurePath(self.file).name}:{self.line}", self.module)


@contextmanager
def recorded_branches() -> Iterator[list[Branch]]:
    """Record each condition on symbolic sizes that Python code outside of PyTorch's internals branches on."""
    found: list[Branch] = []
    original = torch.SymBool.__bool__

    def __bool__(self: torch.SymBool) -> bool:
        condition = self.node.expr
        value = bool(original(self))  # type: ignore[no-untyped-call]
        frame = sys._getframe(1)
        file = frame.f_code.co_filename
        if not within_torch(file) or file.startswith(MODEL_CODE):
            asked = condition if value else sympy.Not(condition)
            found.append(Branch(asked, file, frame.f_lineno, frame.f_code.co_name, module_here(frame)))
        return value

    # PyTorch names the line that caused a guard, and looks for it outside of its own files: this frame must seem one
    __bool__.__code__ = __bool__.__code__.replace(co_filename=torch.__file__)
    torch.SymBool.__bool__ = __bool__  # type: ignore[method-assign]
    try:
        yield found
    finally:
        torch.SymBool.__bool__ = original  # type: ignore[method-assign]


def is_internal(condition: Any, location: Any) -> bool:
    """Whether a guard of PyTorch's is of the kinds that its own decisions leave behind."""
    if isinstance(condition, sympy.Ne) or excludes_only_small(condition):
        return True
    about_strides = getattr(getattr(location, "framework_loc", None), "name", "") in _STRIDES
    return about_strides and not isinstance(condition, sympy.Eq)


# functions of PyTorch's that order or compare strides
_STRIDES = {
    "is_contiguous",
    "check_contiguous_sizes_strides",
    "is_non_overlapping_and_dense",
    "compute_elementwise_output_logical_to_physical_perm",
    "should_swap",
    "ge",
}


def excludes_only_small(condition: Any) -> bool:
    """Whether a condition says no more than that some size is not 0 or not 1."""
    left, right = getattr(condition, "lhs", None), getattr(condition, "rhs", None)
    if left is None or right is None:
        return False
    name = type(condition).__name__
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


def may_be_idle(branch: Branch) -> bool:
    """Whether both ways of a branch are known to give the same result, provided that :func:`is_idle`.

    transformers asks for attention whether there is more than one query: if not, it drops the causal mask, and it folds
    grouped heads into queries, which changes nothing.
    """
    known = branch.function == "sdpa_attention_forward" and PurePath(branch.file).name == "sdpa_attention.py"
    return known and excludes_only_small(branch.condition)


def is_idle(nodes: Iterable[Node]) -> bool:
    """Whether a causal mask hides nothing from a single query: wherever there is one, there is one key as well."""
    causal = (n for n in nodes if n.op is ops.attention and n.attrs["causal"])
    return all(n.inputs[0].shape[2] == n.inputs[1].shape[2] for n in causal)
