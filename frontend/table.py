"""The table of lowerings: how each ATen operator is written in our operators.

A lowering is called as the ATen operator is, with nodes for tensors and dims for integers, after a :class:`Call` that
knows the types of the results. Its result must have those types: the caller checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import sympy
import torch

from ..ir import ops
from ..ir.errors import CaptureError
from ..ir.node import Node
from ..ir.ops.base import axis
from ..ir.types import Dim, Shape, TensorType, broadcast_shapes, product, symbols_of
from .numbers import SizeNumber
from .sizes import Sizes

Scalar: TypeAlias = bool | int | float | sympy.Expr | SizeNumber
Lowering: TypeAlias = Callable[..., Any]
L = TypeVar("L", bound=Lowering)

LOWERINGS: dict[str, Lowering] = {}


class NotLowered(Exception):
    """Raised by a lowering for arguments that it does not cover; the message is the reason for the fallback."""


class NeedsFixed(Exception):
    """Raised by a lowering that must know the numbers of symbolic dims; the reason goes into the report."""

    def __init__(self, dims: Iterable[Dim], reason: str) -> None:
        super().__init__(reason)
        self.dims = tuple(d for d in dims if not isinstance(d, int))
        self.reason = reason


class NeedsEqual(CaptureError):
    """The types of a call do not fit. They may if some sizes are equal, which PyTorch did not find out.

    Attributes:
        symbols: the sizes in question.
        equation: what is known to hold, where that is known.
        node: the name of the FX node.
        pinned: sizes that an expression of theirs must equal a number for, as those of an image whose patches are
            as many as there are positions.
    """

    pinned: frozenset[sympy.Symbol] = frozenset()

    def __init__(
        self, symbols: Iterable[sympy.Symbol], message: str, equation: Any = None, node: str | None = None
    ) -> None:
        super().__init__(message)
        self.symbols = frozenset(symbols)
        self.equation = equation
        self.node = node


class NeedsFunctional(Exception):
    """The graph holds something that only PyTorch's own functionalisation resolves; the message says what."""


@dataclass(frozen=True)
class Call:
    """One call of an ATen operator.

    Attributes:
        name: its overload, ``aten.add.Tensor``.
        types: the types of its tensor results.
        sizes: the sizes of the capture.
    """

    name: str
    types: tuple[TensorType, ...]
    sizes: Sizes

    @property
    def type(self) -> TensorType:
        """The type of the first result."""
        return self.types[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first result."""
        return self.types[0].dtype

    @property
    def shape(self) -> Shape:
        """The shape of the first result."""
        return self.types[0].shape


def lowers(*names: str, namespace: str = "aten") -> Callable[[L], L]:
    """Enter a lowering for these overloads of ATen, ``add.Tensor``, or of another library of operators."""

    def enter(lowering: L) -> L:
        for name in names:
            if f"{namespace}.{name}" in LOWERINGS:
                raise ValueError(f"{namespace}.{name} is lowered twice")
            LOWERINGS[f"{namespace}.{name}"] = lowering
        return lowering

    return enter


# --- values -----------------------------------------------------------------------------------------------------------


def cast(x: Node, dtype: torch.dtype) -> Node:
    """A node in another dtype; itself where it has it."""
    return x if x.dtype == dtype else ops.cast(x, dtype=dtype)


def is_scalar(x: object) -> bool:
    """Whether an argument is a number: one of Python, a size, or computed from sizes."""
    return isinstance(x, bool | int | float | sympy.Expr | SizeNumber)


def as_node(x: Node | Scalar, dtype: torch.dtype) -> Node:
    """An operand, cast; a 0-d constant for a number."""
    if isinstance(x, SizeNumber):
        return x.node(dtype)
    return cast(x, dtype) if isinstance(x, Node) else ops.scalar(plain(x, dtype), dtype)


def constant(x: Node, value: Scalar) -> Node:
    """A number as a 0-d tensor of another node's dtype."""
    return ops.scalar_like(plain(value, x.dtype), x)


def truth(x: Node) -> Node:
    """Whether elements are not zero, as bool."""
    return x if x.dtype == torch.bool else ops.ne(x, constant(x, 0))


def plain(value: Scalar, dtype: torch.dtype) -> bool | int | float | sympy.Expr:
    """A number as the attribute of a tensor of that dtype."""
    if isinstance(value, sympy.Expr):
        return value
    if isinstance(value, SizeNumber):
        raise NotLowered("a number that depends on sizes")
    if isinstance(value, complex):
        raise NotLowered("complex numbers")
    if dtype == torch.bool:
        return bool(value)
    return float(value) if dtype.is_floating_point else int(value)


_CATEGORIES = ("bool", "int", "float", "complex")


def _category(dtype: torch.dtype) -> int:
    if dtype == torch.bool:
        return 0
    return 3 if dtype.is_complex else 2 if dtype.is_floating_point else 1


def _number_dtype(x: Scalar) -> torch.dtype:
    if isinstance(x, bool):
        return torch.bool
    if isinstance(x, float | SizeNumber):
        return torch.get_default_dtype()
    return torch.int64


def promoted(*operands: Node | Scalar) -> torch.dtype:
    """The dtype that PyTorch computes in: tensors with axes first, then 0-d ones, then numbers by their kind alone."""
    groups: list[torch.dtype | None] = [None, None, None]
    for x in operands:
        rank = (0 if x.tensor_type.rank else 1) if isinstance(x, Node) else 2
        dtype = x.dtype if isinstance(x, Node) else _number_dtype(x)
        known = groups[rank]
        groups[rank] = dtype if known is None else torch.promote_types(known, dtype)
    result: torch.dtype | None = None
    for group in groups:
        if group is None:
            continue
        if result is None:
            result = group
        elif _category(group) > _category(result):
            result = torch.promote_types(result, group) if _category(result) == 3 else group
    assert result is not None
    return result


def exact(value: Scalar, dtype: torch.dtype) -> bool:
    """Whether a half type holds a number without rounding it."""
    if isinstance(value, sympy.Expr | SizeNumber):
        return False
    return bool(torch.tensor(value, dtype=dtype).double() == torch.tensor(value, dtype=torch.float64)) or value != value


def elementwise(op: Callable[..., Node], *operands: Node | Scalar, result: torch.dtype | None = None) -> Node:
    """Apply an operator on elements as PyTorch does: promote, compute, and give the result its dtype.

    Half types meet a number that they cannot hold in float32, as in PyTorch's kernels.
    """
    dtype = promoted(*operands)
    if dtype in ops.HALF and any(is_scalar(x) and not exact(x, dtype) for x in operands):
        value = op(*(as_node(x, torch.float32) for x in operands))
        return cast(value, result or (dtype if value.dtype == torch.float32 else value.dtype))
    value = op(*(as_node(x, dtype) for x in operands))
    return value if result is None else cast(value, result)


def in_dtype(x: Node, dtype: torch.dtype, define: Callable[[Node], Node]) -> Node:
    """A function of one operand, computed in ``dtype``, or in float32 and rounded once where that is a half type."""
    wide = torch.float32 if dtype in ops.HALF else dtype
    return cast(define(cast(x, wide)), dtype)


# --- shapes -----------------------------------------------------------------------------------------------------------


def reshape(x: Node, shape: Sequence[Dim]) -> Node:
    """A node in another shape; itself where it has it."""
    have, want = x.tensor_type.numel, product(shape)
    if have != want:
        message = f"{x.type} as {list(shape)}: the numbers of elements differ"
        raise NeedsEqual(symbols_of([have, want]), message, sympy.Eq(have, want))
    return x if x.shape == tuple(shape) else ops.reshape(x, shape=tuple(shape))


def expand(x: Node, shape: Sequence[Dim]) -> Node:
    """A node broadcast to a shape; itself where it has it."""
    return x if x.shape == tuple(shape) else ops.expand(x, shape=tuple(shape))


def permute(x: Node, dims: Sequence[int]) -> Node:
    """A node with its axes in another order; itself where that is the same order."""
    order = tuple(axis(d, x.tensor_type.rank) for d in dims)
    return x if order == tuple(range(len(order))) else ops.permute(x, dims=order)


def full(shape: Sequence[Dim], value: Scalar, dtype: torch.dtype) -> Node:
    """A tensor of one number."""
    return ops.full(shape=tuple(shape), value=plain(value, dtype), dtype=dtype)


def broadcast(*nodes: Node) -> tuple[Node, ...]:
    """Nodes in their common shape."""
    shape = broadcast_shapes(*(node.shape for node in nodes))
    return tuple(expand(node, shape) for node in nodes)


def dims_of(dims: Any, rank: int) -> tuple[int, ...]:
    """The axes that an ATen reduction names: all of them for none or an empty list."""
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return tuple(range(rank))
    given = [dims] if isinstance(dims, int) else list(dims)
    return tuple(sorted({axis(d, rank) for d in given})) if rank else ()
