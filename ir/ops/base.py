"""How operators are declared: helpers shared by the tables in this folder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..errors import TypeRuleError
from ..node import Node, OpDef, Trait, register
from ..types import Dim, TensorType, Type, broadcast_shapes, product


def declare(name: str, *, infer: Callable[..., Type], evaluate: Callable[..., Any], **rest: Any) -> OpDef:
    """Declare and register an operator; ``traits`` may be any iterable."""
    rest["traits"] = frozenset(rest.get("traits", ()))
    return register(OpDef(name, infer, evaluate, **rest))


def require(condition: bool, message: str) -> None:
    """Raise TypeRuleError with the message unless the condition holds."""
    if not condition:
        raise TypeRuleError(message)


def is_float(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point


def same_dtype(name: str, types: tuple[TensorType, ...]) -> torch.dtype:
    """The one dtype of the operands; TypeRuleError where they differ (the frontend inserts casts)."""
    dtypes = {t.dtype for t in types}
    require(len(dtypes) == 1, f"{name}: operands of different dtypes {', '.join(map(str, types))}: insert a cast")
    return types[0].dtype


def axis(dim: int, rank: int) -> int:
    """A non-negative axis."""
    require(-max(rank, 1) <= dim < max(rank, 1), f"axis {dim} is out of range for rank {rank}")
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
    floats: bool = False,
    decompose: Callable[..., Node] | None = None,
    attrs: dict[str, Any] | None = None,
) -> OpDef:
    """Declare an operator on elements: operands of one dtype, broadcast; the result has that dtype or ``result``."""

    def infer(*types: TensorType, **_: Any) -> TensorType:
        dtype = same_dtype(name, types)
        require(not floats or is_float(dtype), f"{name}: needs a floating-point operand, got {types[0]}")
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
    )
