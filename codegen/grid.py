"""Program expressions evaluated with PyTorch at all points of some axes at once: the oracle's inner part."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor

from ..ir.node import OPS
from ..ir.types import concrete
from .program import (
    Affine,
    Apply,
    Axis,
    Checked,
    Const,
    Expr,
    Guard,
    IndexValue,
    Load,
    Ref,
    as_fraction,
    is_guard,
    postorder,
)

_HALF = (torch.float16, torch.bfloat16)


def _divisor(size: Tensor) -> Tensor:
    """A size to divide by. It is 0 only under a guard that lets no point pass: of nothing there is no element."""
    return torch.where(size == 0, 1, size)


_ARITHMETIC: dict[Any, Callable[..., Any]] = {
    sympy.Add: torch.add,
    sympy.Mul: torch.mul,
    sympy.Mod: lambda a, b: torch.remainder(a, _divisor(b)),
    sympy.Max: torch.maximum,
    sympy.Min: torch.minimum,
}


@dataclass
class Memory:
    """A parameter's elements as they lie in memory, and how often each was written."""

    flat: Tensor
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    writes: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.writes = torch.zeros(len(self.flat), dtype=torch.int64)

    def tensor(self) -> Tensor:
        """The elements in the parameter's shape."""
        if 0 in self.shape:
            return self.flat.new_empty(self.shape)
        return torch.as_strided(self.flat, self.shape, self.strides)

    def offsets(self, index: Sequence[Tensor], mask: Tensor | None, name: str) -> Tensor:
        """The offsets of elements; 0 where the mask says that nothing is read.

        Raises:
            AssertionError: an index that is not masked is out of range.
        """
        total = torch.zeros((), dtype=torch.int64)
        for i, size, stride in zip(index, self.shape, self.strides, strict=True):
            outside = (i < 0) | (i >= size)
            if mask is not None:
                outside = outside & mask
            assert not bool(outside.any()), f"{name} is read or written out of range"
            total = total + i * stride
        return total if mask is None else torch.where(mask, total, 0)


@dataclass(frozen=True)
class Grid:
    """The points of some axes: dim n of every tensor belongs to axis n."""

    axes: tuple[Axis, ...]
    sizes: Mapping[sympy.Symbol, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the axes."""
        return tuple(concrete(a.size, self.sizes) for a in self.axes)

    def position(self, symbol: sympy.Symbol) -> Tensor:
        """The value of an axis (along its own dim) or of a size."""
        for n, axis in enumerate(self.axes):
            if axis.symbol == symbol:
                line = torch.arange(self.shape[n])
                return line.reshape([-1 if d == n else 1 for d in range(len(self.axes))])
        return torch.tensor(self.sizes[symbol])


class Points:
    """Evaluates expressions at the points of a grid."""

    def __init__(
        self, grid: Grid, memory: Mapping[str, Memory], stages: Mapping[str, Tensor], dtype: torch.dtype | None
    ) -> None:
        self.grid, self.memory, self.stages, self.dtype = grid, memory, stages, dtype

    def full(self, expr: Expr) -> Tensor:
        """The value of an expression at every point."""
        return self.value(expr).expand(self.grid.shape)

    def value(self, root: Expr, mask: Tensor | None = None) -> Tensor:
        """The value of an expression, broadcastable to the grid; where the mask is false, anything."""
        known: dict[Expr, Tensor] = {}
        for expr in postorder([root], is_guard):
            known[expr] = self._value(expr, known, mask)
        return known[root]

    def _value(self, expr: Expr, known: Mapping[Expr, Tensor], mask: Tensor | None) -> Tensor:
        match expr:
            case Const():
                return torch.tensor(expr.value, dtype=self.computed(expr.dtype))
            case IndexValue():
                return self.index(expr.index).to(self.computed(expr.dtype))
            case Load():
                return self._load(expr, known, mask)
            case Ref():
                return self._stage(self.stages[expr.stage], expr.index)
            case Guard():
                return self._guard(expr, mask)
            case Checked():
                return self._checked(expr, known[expr.value], mask)
            case Apply():
                return self._apply(expr, [known[a] for a in expr.args])

    def computed(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype that values of a dtype are computed in."""
        if self.dtype is not None and dtype.is_floating_point:
            return self.dtype
        return torch.float32 if dtype in _HALF else dtype

    def _stage(self, stage: Tensor, index: Sequence[Affine]) -> Tensor:
        """A stage at an index. Its axes of size 1 may be none of the grid's, which has only those that loops need."""
        places = zip(index, stage.shape, strict=True)
        at = [torch.tensor(0) if size == 1 else self.index(i) for i, size in places]
        return stage[tuple(i.expand(self.grid.shape) for i in at)] if at else stage

    def _load(self, expr: Load, known: Mapping[Expr, Tensor], mask: Tensor | None) -> Tensor:
        memory = self.memory[expr.param]
        if 0 in self.grid.shape:  # no point: nothing is read
            return torch.zeros((), dtype=self.computed(expr.dtype))
        at = [known[i] if isinstance(i, Expr) else self.index(i) for i in expr.index]
        offsets = memory.offsets(at, mask, expr.param)
        if not len(memory.flat):  # the mask is false everywhere
            return torch.zeros((), dtype=self.computed(expr.dtype)).expand(offsets.shape)
        return memory.flat[offsets].to(self.computed(expr.dtype))

    def _guard(self, expr: Guard, mask: Tensor | None) -> Tensor:
        index = self.index(expr.index)
        inside = (index >= 0) & (index < self.index(expr.size))
        then, otherwise = (inside, ~inside) if mask is None else (inside & mask, ~inside & mask)
        return torch.where(inside, self.value(expr.then, then), self.value(expr.otherwise, otherwise))

    def _checked(self, expr: Checked, value: Tensor, mask: Tensor | None) -> Tensor:
        size, index = self.index(expr.size), value.to(torch.int64)
        if expr.wrap:
            index = torch.where(index < 0, index + size, index)
        outside = (index < 0) | (index >= size)
        if bool((outside if mask is None else outside & mask).expand(self.grid.shape).any()):
            raise IndexError(f"an index is out of range: a dim is {int(size)}")
        return torch.where(outside, 0, index)

    def _apply(self, expr: Apply, args: list[Tensor]) -> Tensor:
        if expr.op == "cast":
            rounded = args[0] if self.dtype is not None and expr.dtype.is_floating_point else args[0].to(expr.dtype)
            return rounded.to(self.computed(expr.dtype))
        value: Tensor = OPS[expr.op].evaluate(*args)
        # floats of bits have a dtype of their own
        return value.to(self.computed(expr.dtype)) if expr.dtype.is_floating_point else value

    # --- index expressions --------------------------------------------------------------------------------------------

    def index(self, index: Affine) -> Tensor:
        """The value of index arithmetic: int64."""
        if isinstance(index, int) or index.is_Integer:
            return torch.tensor(int(index))
        if index.is_Symbol:
            return self.grid.position(index)
        numerator, denominator = as_fraction(index.args[0] if index.func in (sympy.floor, sympy.ceiling) else index)
        if index.func is sympy.ceiling:
            return -self._quotient(-numerator, denominator)
        if index.func is sympy.floor or denominator != 1:
            return self._quotient(numerator, denominator)
        return self._arithmetic(index)

    def _quotient(self, numerator: sympy.Expr, denominator: sympy.Expr) -> Tensor:
        return torch.div(self.index(numerator), _divisor(self.index(denominator)), rounding_mode="floor")

    def _arithmetic(self, index: sympy.Expr) -> Tensor:
        if isinstance(index, sympy.Pow):
            return torch.pow(self.index(index.base), int(index.exp))
        first, *rest = map(self.index, index.args)
        for other in rest:
            first = _ARITHMETIC[index.func](first, other)
        return first
