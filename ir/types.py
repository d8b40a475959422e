"""Types of values: element types, dims that are integers or symbolic expressions, tensor and tuple types.

A dim is an ``int`` or a sympy expression over size symbols. Symbols are made by :func:`symbol` only, so that two
symbols of one name are one object wherever they come from: a capture, the text parser or a test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import sympy
import torch

from .dims import normal_form, print_dim, print_symbol, value_of
from .errors import BroadcastError, TypeRuleError

Dim: TypeAlias = int | sympy.Expr
Shape: TypeAlias = tuple[Dim, ...]

DTYPE_NAMES: dict[torch.dtype, str] = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
    torch.complex64: "c64",
    torch.complex128: "c128",
}
DTYPES: dict[str, torch.dtype] = {name: dtype for dtype, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class TensorType:
    """The type of one tensor: its shape (dims in normal form, outermost first) and its element type.

    Raises:
        TypeRuleError: a dim is neither a whole number from 0 nor a size expression.
    """

    shape: Shape
    dtype: torch.dtype

    def __post_init__(self) -> None:
        shape = canonical_shape(self.shape)
        object.__setattr__(self, "shape", shape)
        if any(isinstance(dim, int) and dim < 0 for dim in shape):
            raise TypeRuleError(f"a shape of {list(shape)}: a dim is negative")

    @property
    def rank(self) -> int:
        """The number of dims."""
        return len(self.shape)

    @property
    def numel(self) -> Dim:
        """The number of elements."""
        return product(self.shape)

    @property
    def nbytes(self) -> Dim:
        """The size in bytes when stored densely."""
        return self.numel * self.dtype.itemsize

    def with_shape(self, shape: Iterable[Dim]) -> TensorType:
        """The same element type in another shape."""
        return TensorType(tuple(shape), self.dtype)

    def with_dtype(self, dtype: torch.dtype) -> TensorType:
        """The same shape of another element type."""
        return TensorType(self.shape, dtype)

    def __str__(self) -> str:
        return f"{DTYPE_NAMES.get(self.dtype, self.dtype)}[{', '.join(map(print_dim, self.shape))}]"


@dataclass(frozen=True)
class TupleType:
    """The type of an operator with several results; ``item`` takes one of them."""

    items: tuple[TensorType, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.items))})"


@dataclass(frozen=True)
class UnknownType:
    """The type of a pattern's variable and of everything built on it. Never in a graph."""

    def __str__(self) -> str:
        return "?"


Type = TensorType | TupleType | UnknownType
UNKNOWN = UnknownType()


@dataclass(frozen=True)
class SymbolRange:
    """A size symbol and the sizes it may take, both ends included; ``high=None`` is unbounded."""

    symbol: sympy.Symbol
    low: int = 0
    high: int | None = None

    def __str__(self) -> str:
        return f"{print_symbol(self.symbol.name)} in [{self.low}, {'inf' if self.high is None else self.high}]"

    def __contains__(self, value: int) -> bool:
        return self.low <= value and (self.high is None or value <= self.high)


@cache
def symbol(name: str) -> sympy.Symbol:
    """The size symbol of that name: a non-negative integer."""
    return sympy.Symbol(name, integer=True, nonnegative=True)


def canonical_dim(dim: Dim) -> Dim:
    """A dim in its one normal form: an ``int`` where it is a number, an expanded expression otherwise.

    Raises:
        TypeRuleError: it is no dim.
    """
    if isinstance(dim, int):
        return int(dim)
    if isinstance(dim, sympy.Expr):
        return normal_form(dim)
    raise TypeRuleError(f"a dim is {dim!r}: neither an integer nor a size expression")


def canonical_shape(shape: Iterable[Dim]) -> Shape:
    """:func:`canonical_dim` of every dim."""
    return tuple(canonical_dim(dim) for dim in shape)


def product(dims: Iterable[Dim]) -> Dim:
    """The product of dims, in normal form; 1 for none."""
    total: Dim = 1
    for dim in dims:
        total = total * dim
    return canonical_dim(total)


def symbols_of(dims: Iterable[Dim]) -> tuple[sympy.Symbol, ...]:
    """The size symbols in dims, by name."""
    found = {s for dim in dims if isinstance(dim, sympy.Expr) for s in dim.free_symbols}
    return tuple(sorted(found, key=str))


def substitute(dim: Dim, sizes: Mapping[sympy.Symbol, Dim]) -> Dim:
    """A dim with symbols replaced, all at once."""
    if isinstance(dim, int):
        return dim
    return canonical_dim(dim.subs(dict(sizes), simultaneous=True))


def concrete(dim: Dim, sizes: Mapping[sympy.Symbol, int]) -> int:
    """A dim's value for the given sizes.

    Raises:
        TypeRuleError: a symbol of the dim has no size, or the value is no whole number.
    """
    return dim if isinstance(dim, int) else value_of(dim, sizes)


def differ(left: Dim, right: Dim) -> bool:
    """Whether two dims are known to differ: not where that rests on a division, a remainder, a minimum or a maximum."""
    difference = canonical_dim(left - right)
    if isinstance(difference, int):
        return difference != 0
    return not difference.atoms(sympy.Function)


def broadcast_dims(left: Dim, right: Dim) -> Dim:
    """One dim of a broadcast.

    Raises:
        TypeRuleError: the dims differ and neither is 1.
    """
    if left == right or (isinstance(right, int) and right == 1):
        return left
    if isinstance(left, int) and left == 1:
        return right
    raise BroadcastError(left, right)


def broadcast_shapes(*shapes: Shape) -> Shape:
    """The common shape of operands by PyTorch's broadcasting rule."""
    rank = max((len(shape) for shape in shapes), default=0)
    result: list[Dim] = [1] * rank
    for shape in shapes:
        offset = rank - len(shape)
        for i, dim in enumerate(shape):
            result[offset + i] = broadcast_dims(result[offset + i], dim)
    return tuple(result)


def contiguous_strides(shape: Shape) -> Shape:
    """Row-major strides, in elements."""
    strides: list[Dim] = []
    step: Dim = 1
    for dim in reversed(shape):
        strides.append(step)
        step = canonical_dim(step * dim)
    return tuple(reversed(strides))
