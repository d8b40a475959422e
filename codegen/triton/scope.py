"""Where expressions are written: a block of points with one dim for each tile, its masks, and what is known there.

A value is a scalar, or a block of the full rank with extent 1 along the dims that it does not vary along, so that
operands broadcast by themselves.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

import sympy

from ...ir.types import SymbolRange
from ..bounds import Bounds
from ..program import Expr, Program, program_axes
from .source import Source

Dims = frozenset[int]
NONE: Dims = frozenset()


@dataclass(frozen=True)
class Value:
    """The text of a value and the dims that it varies along; ``full`` is that of a literal with its type."""

    text: str
    dims: Dims = NONE
    full: str | None = None

    @property
    def typed(self) -> str:
        """The text where a literal will not do."""
        return self.full or self.text


@dataclass(frozen=True)
class Scope:
    """One place in a kernel.

    Attributes:
        program: what the kernel computes.
        src: where lines are written.
        bits: of index arithmetic, 32 or 64.
        bounds: what is known of indices.
        shape: the names of the block's extents.
        axes: the value of each axis symbol.
        refs: the value of each stage.
        masks: for each dim of the block which of its points are there; None where all are.
        guard: which points the expression being written is for; None for all.
        fill: whether loads give 0 where they are masked.
        known: expressions that were written before.
    """

    program: Program
    src: Source
    bits: int
    bounds: Bounds
    shape: tuple[str, ...] = ()
    axes: Mapping[sympy.Symbol, Value] = field(default_factory=dict)
    refs: Mapping[str, Value] = field(default_factory=dict)
    masks: tuple[str | None, ...] = ()
    guard: Value | None = None
    fill: bool = False
    known: MutableMapping[Expr, Value] = field(default_factory=lambda: ChainMap({}))

    @property
    def index_type(self) -> str:
        """The type of indices."""
        return f"tl.int{self.bits}"

    def block(self, shape: Iterable[str], masks: Iterable[str | None]) -> Scope:
        """A block of points at this place, nothing known of them."""
        return replace(self, shape=tuple(shape), masks=tuple(masks), known=ChainMap({}))

    def at(self, axes: Mapping[sympy.Symbol, Value]) -> Scope:
        """This scope with more axes named."""
        return replace(self, axes={**self.axes, **axes})

    def knowing(self, refs: Mapping[str, Value]) -> Scope:
        """This scope with more stages named."""
        return replace(self, refs={**self.refs, **refs})

    def inner(self) -> Scope:
        """The scope of a nested block of lines: what becomes known there is not known after it."""
        assert isinstance(self.known, ChainMap)
        return replace(self, known=self.known.new_child())

    def under(self, guard: Value) -> Scope:
        """The scope of an expression that is for fewer points."""
        return replace(self.inner(), guard=guard)

    # --- masks --------------------------------------------------------------------------------------------------------

    def mask(self, dims: Dims) -> Value | None:
        """Which points of a block that varies along ``dims`` are there; may vary along more dims."""
        inside = dims | (NONE if self.guard is None else self.guard.dims)
        parts = [Value(m, frozenset({d})) for d, m in enumerate(self.masks) if d in inside and m is not None]
        return conjunction([*parts, *([] if self.guard is None else [self.guard])])

    def extents(self, dims: Dims) -> str:
        """The shape of a block that varies along some dims."""
        sizes = [name if d in dims else "1" for d, name in enumerate(self.shape)]
        return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"

    @property
    def everywhere(self) -> Dims:
        """All dims."""
        return frozenset(range(len(self.shape)))

    def widened(self, value: Value, dims: Dims) -> Value:
        """A value as a block that varies along more dims."""
        if dims <= value.dims:
            return value
        wanted = dims | value.dims
        return Value(f"tl.broadcast_to({value.typed}, {self.extents(wanted)})", wanted)


def conjunction(conditions: Sequence[Value]) -> Value | None:
    """Where all conditions hold; None for none."""
    if not conditions:
        return None
    text = " & ".join(c.text for c in conditions)
    if len({bool(c.dims) for c in conditions}) > 1:  # the interpreter makes a block of a scalar bool one of int8
        text = f"(({text}) != 0)"
    return Value(text, NONE.union(*(c.dims for c in conditions)))


def root_scope(program: Program, src: Source, bits: int, ranges: Iterable[SymbolRange]) -> Scope:
    """The scope of a kernel before any block."""
    bounds = Bounds(ranges)
    for axis in program_axes(program):
        bounds.add(axis)
    return Scope(program, src, bits, bounds)


def lanes(rank: int, dim: int) -> str:
    """The subscript that makes a row of numbers stand along one dim of a block."""
    if rank == 1:
        return ""
    return f"[{', '.join(':' if d == dim else 'None' for d in range(rank))}]"


def counted(extent: str, rank: int, dim: int, bits: int) -> str:
    """Numbers from 0 along one dim of a block, of so many bits: what is added to a literal has no more than these."""
    return f"tl.arange(0, {extent}){'.to(tl.int64)' if bits == 64 else ''}{lanes(rank, dim)}"
