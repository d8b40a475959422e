"""The conditions under which a graph addresses nothing outside of its tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import sympy

from ..ir import ops
from ..ir.node import Node, result_types

Condition = tuple[Any, str]


def limits_of(nodes: Iterable[Node]) -> Iterator[Condition]:
    """What sizes must satisfy, with the line that needs it.

    PyTorch takes sizes to be 2 or more, so that the length of ``x[:2]`` is 2 for it, whatever the length of ``x``.
    """
    for node in nodes:
        for condition in _conditions(node):
            if condition not in (sympy.true, True):
                yield condition, node.origin.source


def _conditions(node: Node) -> Iterator[Any]:
    attrs: Any = node.attrs
    if node.op is ops.slice_:
        size = node.inputs[0].shape[attrs["dim"]]
        yield from (_at_most(0, attrs["start"]), _at_most(attrs["start"], attrs["stop"]), _at_most(attrs["stop"], size))
    elif node.op is ops.slice_put:
        target, source = (x.shape[attrs["dim"]] for x in node.inputs)
        last = attrs["start"] + attrs["step"] * (source - 1) + 1
        yield from (_at_most(0, attrs["start"]), _at_most(last, target))
    for type_ in result_types(node.type):
        # a product of sizes is a size where its factors are
        yield from (_at_most(0, dim) for dim in type_.shape if _is_linear(dim))


def _is_linear(dim: Any) -> bool:
    return all(
        term.as_coeff_Mul()[1].is_Symbol for term in sympy.Add.make_args(dim) if not sympy.sympify(term).is_number
    )


def _at_most(low: Any, high: Any) -> Any:
    return sympy.Le(low, high)
