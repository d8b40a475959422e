"""Operands that the GPU copies to shared memory by tensor descriptors (TMA), a block at a time.

A descriptor is a matrix in memory whose rows start at multiples of 16 bytes. It is made by the kernel; elements outside
of it are 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ...ir.types import Dim
from ..program import Axis, Expr, Format, Load, Param, Program
from ..prologue import HELD_ROW
from .indexing import dim_text
from .scope import Scope
from .width import strides_of

if TYPE_CHECKING:
    from .product import Product

ALIGNMENT = 16  # bytes, of the start of each row


@dataclass(frozen=True)
class Descriptor:
    """A matrix that blocks are read from.

    Attributes:
        name: of the variable.
        across: whether a row of memory is a row of terms, [rows or columns, terms].
        bits: of the kernel's index arithmetic.
    """

    name: str
    across: bool
    bits: int

    def block(self, first: str, start: str, *, rows_first: bool) -> str:
        """The block at a row or column and a term; [rows, terms], or [terms, columns] with ``rows_first=False``."""
        if self.bits == 64:  # descriptors take 32 bits
            first, start = (x if x.isdigit() else f"tl.full((), {x}, tl.int32)" for x in (first, start))
        at = [first, start] if self.across else [start, first]
        text = f"{self.name}.load([{', '.join(at)}])"
        return text if self.across == rows_first else f"tl.trans({text})"


def is_matrix(program: Program, expr: Expr, axes: Sequence[Axis], k: Axis, dtype: torch.dtype, bits: int = 32) -> bool:
    """Whether an operand is a matrix in memory along one axis of ``axes`` and the terms, as descriptors take it.

    With ``bits=64`` a size that is not a number may be too large for one.
    """
    return _layout(program, expr, axes, k, dtype, bits) is not None


@dataclass(frozen=True)
class _Matrix:
    """A parameter as a matrix in memory; ``across`` where terms lie side by side in it."""

    param: Param
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    across: bool


def _layout(
    program: Program, expr: Expr, axes: Sequence[Axis], k: Axis, dtype: torch.dtype, bits: int
) -> _Matrix | None:
    if not isinstance(expr, Load) or len(expr.index) != 2 or len(axes) != 1 or dtype.itemsize > 2:
        return None
    param = program.param(expr.param)
    if param.type.dtype != dtype:
        return None
    turn = -1 if param.format is Format.PANELS and param.transposed else 1
    shape, strides, index = (tuple(x)[::turn] for x in (param.type.shape, strides_of(param), expr.index))
    lines = (axes[0].symbol, HELD_ROW)
    across = index[1] == k.symbol and index[0] in lines
    if not across and not (index[0] == k.symbol and index[1] in lines):
        return None
    sizes = (axes[0].size, k.size) if across else (k.size, axes[0].size)
    whole = isinstance(strides[0], int) and strides[1] == 1 and strides[0] * dtype.itemsize % ALIGNMENT == 0
    known = all((bits == 32 and not isinstance(n, int)) or (isinstance(n, int) and 0 < n < 2**31) for n in shape)
    return _Matrix(param, shape, strides, across) if whole and known and sizes == shape else None


def descriptor_of(
    product: Product, expr: Expr, axes: Sequence[Axis], dtype: torch.dtype, scope: Scope
) -> Descriptor | None:
    """Write a descriptor of an operand; None where it can have none."""
    if len(product.c.reduced) != 1:
        return None
    (k,) = product.c.reduced
    found = _layout(scope.program, expr, axes, k, dtype, scope.bits)
    if found is None:
        return None
    lines = product.m if axes == product.c.rows else product.n
    block = [lines, product.k] if found.across else [product.k, lines]
    sizes, steps = (", ".join(dim_text(n, scope) for n in x) for x in (found.shape, found.strides))
    made = f"tl.make_tensor_descriptor({found.param.name}, [{sizes}], [{steps}], [{', '.join(block)}])"
    return Descriptor(product.src.let("tensor", made), found.across, scope.bits)
