"""Positions of elements as expressions: what a view reads, for sizes that are symbols.

A position is a polynomial over size symbols and index symbols. A reshape keeps the row-major offset; between two shapes
the axes are put into groups of equal size, within which positions are merged (``i * n + j``) or split again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy

from ...ir.types import Dim, Shape, canonical_dim, contiguous_strides

Position = tuple[Any, ...]  # one expression for each axis: an ``int`` or a polynomial
Provable = Callable[[Any, Any], bool]  # whether 0 <= part < size, for all sizes and indices


class BeyondProofError(Exception):
    """The proof does not reach this: an operator, a shape or a position that it has no meaning for."""


class SplitIndex(Exception):
    """An index has to be written as several, one for each of these sizes, before a position can be told."""

    def __init__(self, index: sympy.Symbol, sizes: Shape) -> None:
        super().__init__(f"{index} over {sizes}")
        self.index, self.sizes = index, sizes


def offset(position: Position, shape: Shape) -> Any:
    """The row-major offset of an element."""
    strides = contiguous_strides(shape)
    return expanded(sum((i * s for i, s in zip(position, strides, strict=True)), sympy.Integer(0)))


def expanded(x: Any) -> Any:
    """A position in normal form."""
    return sympy.expand(sympy.sympify(x))


def regrouped(position: Position, have: Shape, want: Shape, provable: Provable) -> Position:
    """The position in the shape ``want`` of the element at a position in the shape ``have``.

    Raises:
        SplitIndex: an index has to be split first.
        BeyondProofError: the shapes have no common groups, or a position cannot be split.
    """
    found: list[Any] = [0] * len(want)
    sources = [d for d, size in enumerate(have) if size != 1]
    targets = [d for d, size in enumerate(want) if size != 1]
    while sources or targets:
        left, right = _group(have, sources, want, targets)
        sources, targets = sources[len(left) :], targets[len(right) :]
        sizes = tuple(want[d] for d in right)
        parts = [position[d] for d in left]
        merged = offset(tuple(parts), tuple(have[d] for d in left)) if left else sympy.Integer(0)
        for d, part in zip(right, split(merged, sizes, provable), strict=True):
            found[d] = part
    return tuple(found)


def _group(have: Shape, sources: Sequence[int], want: Shape, targets: Sequence[int]) -> tuple[list[int], list[int]]:
    """The first axes of both shapes that hold equally many elements."""
    if not sources or not targets:
        raise BeyondProofError(f"{have} and {want} have no axes in common")
    left, right = [sources[0]], [targets[0]]
    sizes: list[Dim] = [have[sources[0]], want[targets[0]]]
    while sizes[0] != sizes[1]:
        if len(left) < len(sources) and (_divides(sizes[0], sizes[1]) or len(right) == len(targets)):
            left.append(sources[len(left)])
            sizes[0] = canonical_dim(sizes[0] * have[left[-1]])
        elif len(right) < len(targets):
            right.append(targets[len(right)])
            sizes[1] = canonical_dim(sizes[1] * want[right[-1]])
        else:
            raise BeyondProofError(f"{have} and {want} have no axes in common")
    return left, right


def _divides(part: Dim, whole: Dim) -> bool:
    """Whether a size divides another, as polynomials."""
    if isinstance(part, int) and isinstance(whole, int):
        return part != 0 and whole % part == 0
    quotient = sympy.cancel(sympy.sympify(whole) / sympy.sympify(part))
    return bool(sympy.denom(quotient) == 1)


def split(merged: Any, sizes: Shape, provable: Provable) -> list[Any]:
    """The position in a shape of the element at an offset.

    Raises:
        SplitIndex: the offset is one index, which has to be split.
        BeyondProofError: no way was found.
    """
    parts: list[Any] = []
    for d in range(len(sizes) - 1):
        inner = sympy.sympify(contiguous_strides(sizes)[d])
        outer, merged = _divided(merged, inner)
        if not provable(merged, inner):
            whole = expanded(outer * inner + merged)
            if not parts and whole.is_Symbol and whole.name.startswith("_"):
                raise SplitIndex(whole, sizes)
            raise BeyondProofError(f"{whole} cannot be split into parts of {inner}")
        parts.append(outer)
    return [*parts, merged]


def _divided(x: Any, size: Any) -> tuple[Any, Any]:
    """The terms of a polynomial that a size divides, divided by it, and the others."""
    outer, rest = sympy.Integer(0), sympy.Integer(0)
    if size == 0:
        raise BeyondProofError("an axis without elements")
    for term in sympy.Add.make_args(expanded(x)):
        quotient = sympy.cancel(term / size)
        whole = sympy.denom(quotient) == 1
        outer, rest = (outer + quotient, rest) if whole else (outer, rest + term)
    return outer, rest
