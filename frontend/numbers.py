"""Floating-point numbers that depend on sizes: ``1 / math.sqrt(x.shape[-1])`` of a symbolic dim."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from ..ir import ops
from ..ir.dims import normal_form
from ..ir.node import Node


@dataclass(frozen=True)
class SizeNumber:
    """A Python float that is known once the sizes are: an expression of PyTorch's over our symbols."""

    expression: Any

    def node(self, dtype: torch.dtype) -> Node:
        """The number as a 0-d tensor, computed in float64 as Python does and rounded once.

        Raises:
            TypeError: it is computed by a function that is not known here.
        """
        value = _node(self.expression)
        return value if value.dtype == dtype else ops.cast(value, dtype=dtype)


def _scalar(value: Any) -> Node:
    return ops.scalar(value, torch.float64)


_FUNCTIONS: dict[str, Callable[..., Node]] = {
    "ToFloat": lambda x: x,
    "IntTrueDiv": ops.div,
    "FloatTrueDiv": ops.div,
    "FloatPow": ops.pow,
    "Pow": ops.pow,
    "Abs": ops.abs,
    "OpaqueUnaryFn_sqrt": ops.sqrt,
    "OpaqueUnaryFn_exp": ops.exp,
    "OpaqueUnaryFn_log": ops.log,
    "OpaqueUnaryFn_log2": ops.log2,
    "OpaqueUnaryFn_sin": ops.sin,
    "OpaqueUnaryFn_cos": ops.cos,
    "OpaqueUnaryFn_tanh": ops.tanh,
}
_FOLDED: dict[str, Callable[..., Node]] = {
    "Add": ops.add,
    "Mul": ops.mul,
    "Max": ops.maximum,
    "Min": ops.minimum,
}


def _node(expression: Any) -> Node:
    # depth is that of an expression in the model's source: recursion is safe
    if expression.is_number:
        return _scalar(float(expression))
    if expression.is_integer and expression.func.__name__ != "ToFloat":
        return _scalar(normal_form(expression))
    operands = [_node(sympy.sympify(arg)) for arg in expression.args]
    name = expression.func.__name__
    if name in _FOLDED:
        total = operands[0]
        for operand in operands[1:]:
            total = _FOLDED[name](total, operand)
        return total
    if name not in _FUNCTIONS:
        raise TypeError(f"a number computed from sizes by {name}")
    return _FUNCTIONS[name](*operands)
