"""What is known of whole numbers from how they came about."""

from __future__ import annotations

from ..ir import ops
from ..ir.node import Node, Trait


def values_below(x: Node) -> int | None:
    """A number that all elements are below, none being negative; None where that is not known.

    Known are places along an axis of a fixed size, as ``argmax`` gives them, through views, casts and choices of them.
    """
    while (x.has(Trait.VIEW) or x.is_a(ops.cast, ops.index)) and not x.dtype.is_floating_point:
        x = x.inputs[0]
    if x.is_a(ops.argmax, ops.argmin):
        size = x.inputs[0].shape[ops.reduced_axes(x)[0]]
        return size if isinstance(size, int) else None
    return None
