"""Sizes that are too long as formulas to be kept symbolic.

PyTorch proves what a model's shapes need by simplifying their formulas, whose time grows much faster than their length.
A Swin pads its image to whole windows, cuts it, takes it apart again and halves it, stage by stage: its sizes become
formulas of more than a thousand parts, and the trace takes many minutes. Usual models stay below 150.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import sympy
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .origins import short
from .places import line_here

MOST_PARTS = 300


class TooLong(Exception):
    """A condition on sizes is a formula of more than ``MOST_PARTS`` parts."""


@contextmanager
def bounded() -> Iterator[None]:
    """Meanwhile conditions on sizes that are too long raise TooLong in this thread."""
    original, thread = ShapeEnv.evaluate_expr, threading.get_ident()

    def evaluate_expr(self: ShapeEnv, condition: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread and is_too_long(condition):
            where = short(line_here(sys._getframe(1)))
            raise TooLong(f"its sizes are formulas of more than {MOST_PARTS} parts ({where})")
        return original(self, condition, *args, **kwargs)

    # PyTorch looks for the line that asks outside of its own files: this frame must seem one
    evaluate_expr.__code__ = evaluate_expr.__code__.replace(co_filename=original.__code__.co_filename)
    ShapeEnv.evaluate_expr = evaluate_expr  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ShapeEnv.evaluate_expr = original  # type: ignore[method-assign]


def is_too_long(condition: Any) -> bool:
    """Whether a formula has more than ``MOST_PARTS`` parts, each counted as often as it is written."""
    if not isinstance(condition, sympy.Basic):
        return False
    return next(islice(sympy.preorder_traversal(condition), MOST_PARTS, None), None) is not None
