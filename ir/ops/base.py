"""How operators are declared: helpers shared by the tables in this folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import sympy
import torch

from ..errors import TypeRuleError
from ..node import Node, NormaliseRule, OpDef, Trait, register
from ..types import DTYPE_NAMES, Dim, TensorType, Type, broadcast_shapes, product


def declare(name: str, *, infer: Callable[..., Type], evaluate: Callable[..., Any], **rest: Any) -> OpDef:
    """Declare and register an operator; ``traits`` may be any iterable."""
    rest["traits"] = frozenset(rest.get("traits", ()))
    return register(OpDef(name, infer, evaluate, **rest))


def require(condition: bool, message: str) -> None:
    """Raise TypeRuleError with the message unless the condition holds."""
    if not condition:
        raise TypeRuleError(message)


def is_float(dtype: torch.dtype) -> bool:
    """Whether elements are floating-point numbers."""
    return dtype.is_floating_point


def is_integer(dtype: torch.dtype) -> bool:
    """Whether elements are integers; bool is none."""
    return not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool


def is_number(dtype: torch.dtype) -> bool:
    """Whether elements are integers or floating-point numbers."""
    return is_integer(dtype) or is_float(dtype)


def is_bits(dtype: torch.dtype) -> bool:
    """Whether elements are integers or bool."""
    return is_integer(dtype) or dtype == torch.bool


def is_bool(dtype: torch.dtype) -> bool:
    """Whether elements are bool."""
    return dtype == torch.bool


def is_real(dtype: torch.dtype) -> bool:
    """Whether elements are anything but complex: PyTorch computes with those, in ``aten.call``."""
    return not dtype.is_complex


_WORDS: dict[Callable[[torch.dtype], bool], str] = {
    is_float: "floating-point",
    is_integer: "integer",
    is_number: "numeric",
    is_bits: "integer or bool",
    is_bool: "bool",
}


def require_dtype(name: str, type_: TensorType, of: Callable[[torch.dtype], bool]) -> None:
    """Raise TypeRuleError unless the operand's dtype is one of these."""
    require(of(type_.dtype), f"{name}: needs a {_WORDS.get(of, 'real')} operand, got {type_}")


def number(value: Any, dtype: torch.dtype) -> Any:
    """A number as Python's type for that dtype, so that 1 and 1.0 make one node; dims stay dims.

    Raises:
        TypeRuleError: the dtype has no such number.
    """
    if isinstance(value, sympy.Expr) or dtype.is_complex:
        return value
    if dtype == torch.bool:
        return bool(value)
    if is_float(dtype):
        return float(value)
    require(int(value) == value if abs(value) < math.inf else False, f"{DTYPE_NAMES[dtype]} has no {value}")
    limits = torch.iinfo(dtype)
    require(limits.min <= value <= limits.max, f"{DTYPE_NAMES[dtype]} has no {value}")
    return int(value)


def same_dtype(name: str, types: tuple[TensorType, ...]) -> torch.dtype:
    """The one dtype of the operands; TypeRuleError where they differ (the frontend inserts casts)."""
    dtypes = {t.dtype for t in types}
    if len(dtypes) != 1:  # the message is not built in vain: every node comes by here
        raise TypeRuleError(f"{name}: operands of different dtypes {', '.join(map(str, types))}: insert a cast")
    return types[0].dtype


def axis(dim: int, rank: int) -> int:
    """A non-negative axis. As in PyTorch, 0-d tensors let themselves be addressed as if they had one."""
    require(type(dim) is int and -max(rank, 1) <= dim < max(rank, 1), f"axis {dim} is out of range for rank {rank}")
    return dim + rank if dim < 0 else dim


def axes(dims: tuple[int, ...] | int | None, rank: int) -> tuple[int, ...]:
    """Non-negative axes in rising order; all of them for None."""
    if dims is None:
        return tuple(range(rank))
    given = (dims,) if isinstance(dims, int) else tuple(dims)
    found = tuple(sorted({axis(d, rank) for d in given}))
    require(len(found) == len(given), f"axes {given} repeat")
    return found


def elements(node: Node) -> Dim:
    """The number of elements of a node's (first) result."""
    return product(node.type.shape)


def per_element(count: int) -> Callable[[Node], Dim]:
    """A flops rule: so many operations for each element of the result."""
    return lambda node: elements(node) * count


def per_input_element(count: int) -> Callable[[Node], Dim]:
    """A flops rule: so many operations for each element of the first operand."""
    return lambda node: product(node.inputs[0].type.shape) * count


def pointwise(
    name: str,
    evaluate: Callable[..., Any],
    arity: int = 1,
    *,
    flops: int = 1,
    result: torch.dtype | None = None,
    of: Callable[[torch.dtype], bool] = is_real,
    decompose: Callable[..., Node] | None = None,
    attrs: dict[str, Any] | None = None,
    normalise: NormaliseRule | None = None,
) -> OpDef:
    """Declare an operator on elements: operands of one dtype, broadcast; the result has that dtype or ``result``.

    ``of`` says which dtypes it takes.
    """

    def infer(*types: TensorType, **_: Any) -> TensorType:
        dtype = same_dtype(name, types)
        require_dtype(name, types[0], of)
        return TensorType(broadcast_shapes(*(t.shape for t in types)), result or dtype)

    traits = {Trait.POINTWISE} | ({Trait.COMPOSITE} if decompose else set())
    return declare(
        name,
        infer=infer,
        evaluate=evaluate,
        arity=(arity, arity),
        attrs=attrs or {},
        traits=traits,
        flops=per_element(flops),
        decompose=decompose,
        normalise=normalise,
    )
