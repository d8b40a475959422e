"""The kernel program: what one kernel computes, without saying how.

A program is a list of parameters (tensors in memory), stages and stores. A stage computes one value for each point of
its axes, from loads, earlier stages and scalar expressions, and may combine over reduced axes. Index maps are sympy
expressions over axis symbols and size symbols, affine but where a reshape forces a division. Programs are values: equal
ones are one kernel. Schedules (tile sizes and the like) are kept apart, in ``codegen.schedule``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import sympy
import torch

from ..ir.types import Shape, TensorType
from .expressions import (
    Affine,
    Apply,
    Axis,
    Checked,
    Const,
    Expr,
    Guard,
    Index,
    IndexValue,
    Load,
    Ref,
    as_fraction,
    axis_symbol,
    is_guard,
    operands,
    postorder,
)

__all__ = [
    "Affine",
    "Apply",
    "Axis",
    "Checked",
    "Combine",
    "Combiner",
    "Const",
    "Expr",
    "Format",
    "Guard",
    "Index",
    "IndexValue",
    "Load",
    "Param",
    "Program",
    "Recurrence",
    "Ref",
    "Role",
    "Skeleton",
    "Stage",
    "Store",
    "as_fraction",
    "axis_symbol",
    "can_fail",
    "dot_stage",
    "is_guard",
    "operands",
    "postorder",
    "program_axes",
    "program_roots",
    "stage_roots",
    "store_roots",
]


class Format(Enum):
    """How a parameter lies in memory."""

    STRIDED = "strided"
    PANELS = "panels"  # a matrix [K, N] in panels of columns, as the schedule's ``PanelLayout`` says


class Role(Enum):
    """Whether a kernel reads or writes a parameter."""

    IN = "in"
    OUT = "out"


@dataclass(frozen=True)
class Param:
    """A tensor in memory.

    ``strides`` are in elements, one for each axis of ``type.shape``; the data starts at the parameter's pointer. For
    ``Format.PANELS`` the type is the logical matrix [K, N], the schedule gives the layout, and ``transposed`` says that
    the weight to be packed is held as [N, K].
    """

    name: str
    type: TensorType
    strides: Shape
    role: Role
    format: Format = Format.STRIDED
    transposed: bool = False


# --- stages -----------------------------------------------------------------------------------------------------------


class Combiner(Enum):
    """How a stage combines its value over reduced axes."""

    SUM = "sum"
    PROD = "prod"
    MAX = "max"  # NaN if any is NaN
    MIN = "min"
    ANY = "any"
    ALL = "all"
    ARGMAX = "argmax"  # the first of equals; NaN counts as largest
    ARGMIN = "argmin"
    DOT = "dot"  # a sum whose value is a product of two expressions
    CUMSUM = "cumsum"  # a running sum: the axis stays
    SOFTMAX_SUM = "softmax_sum"  # sum over the axis of softmax(score) * value; 0 where every score is -inf


@dataclass(frozen=True)
class Combine:
    """A combination over ``axes``. ``score`` is for SOFTMAX_SUM only.

    ``bound`` promises that every score at an index >= bound is -inf (causal attention), so that tiles may be skipped;
    with ``offset``, a value that does not vary along any axis, at an index >= bound + offset.
    """

    kind: Combiner
    axes: tuple[Axis, ...]
    score: Expr | None = None
    bound: Affine | None = None
    offset: Expr | None = None


@dataclass(frozen=True)
class Stage:
    """``name[axes] = combine over combine.axes of value``; without ``combine`` simply the value at each point."""

    name: str
    axes: tuple[Axis, ...]
    value: Expr
    combine: Combine | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the result."""
        if self.combine and self.combine.kind in (Combiner.ARGMAX, Combiner.ARGMIN):
            return torch.int64
        return self.value.dtype


@dataclass(frozen=True)
class Recurrence:
    """A state carried along ``time``: the one stage of a recurrent layer. Gate order as in ``ir.ops.recurrent``.

    ``gates`` is [T, B, G H], ``weight`` [G H, H] (Format.PANELS of its transpose), ``bias`` [G H], ``states`` [B, H]
    each; ``outputs`` are the parameters of y [T, B, H] and the last states [B, H].
    """

    kind: str
    reverse: bool
    time: Axis
    batch: Axis
    hidden: Axis
    gates: str
    weight: str
    bias: str
    states: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Store:
    """``param[index] = value`` for each point of the axes; ``+=`` with ``accumulate``.

    Only stores of a SCATTER program accumulate or have an index that comes from data.
    """

    param: str
    axes: tuple[Axis, ...]
    index: tuple[Index, ...]
    value: Expr
    accumulate: bool = False


class Skeleton(Enum):
    """How a program's stages become loops."""

    MAP = "map"  # no combination: one loop nest a store
    ROWS = "rows"  # combinations over the inner axes of rows that are parallel
    MATMUL = "matmul"  # one DOT stage, everything else after it at the same points
    ATTENTION = "attention"  # DOT, SOFTMAX_SUM
    RECURRENCE = "recurrence"
    SCATTER = "scatter"  # stores one after another, the points of each in row-major order: the last writer wins


@dataclass(frozen=True)
class Program:
    """One kernel. ``symbols`` are the size symbols it is called with, in the order of its size arguments."""

    skeleton: Skeleton
    params: tuple[Param, ...]
    stages: tuple[Stage, ...]
    stores: tuple[Store, ...]
    symbols: tuple[sympy.Symbol, ...]
    recurrence: Recurrence | None = None

    def param(self, name: str) -> Param:
        """The parameter of that name."""
        return next(p for p in self.params if p.name == name)

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(s for s in self.stages if s.name == name)

    @property
    def inputs(self) -> tuple[Param, ...]:
        """The parameters that are read, in order."""
        return tuple(p for p in self.params if p.role is Role.IN)

    @property
    def outputs(self) -> tuple[Param, ...]:
        """The parameters that are written, in order."""
        return tuple(p for p in self.params if p.role is Role.OUT)


def dot_stage(program: Program) -> Stage:
    """The first stage that is a sum of products."""
    return next(s for s in program.stages if s.combine is not None and s.combine.kind is Combiner.DOT)


def stage_roots(stage: Stage) -> tuple[Expr, ...]:
    """The expressions that a stage evaluates."""
    combine = stage.combine
    extra = (combine.offset, combine.score) if combine else ()
    return (*(x for x in extra if x is not None), stage.value)


def store_roots(store: Store) -> tuple[Expr, ...]:
    """The expressions that a store evaluates: those in its index, then its value."""
    return (*(i for i in store.index if isinstance(i, Expr)), store.value)


def program_roots(program: Program) -> tuple[Expr, ...]:
    """The expressions of all stages, then of all stores, in order."""
    stages = [x for stage in program.stages for x in stage_roots(stage)]
    return (*stages, *(x for store in program.stores for x in store_roots(store)))


def program_axes(program: Program) -> tuple[Axis, ...]:
    """Every axis of a program once, in order of appearance."""
    found: dict[Axis, None] = {}
    for stage in program.stages:
        found.update(dict.fromkeys(stage.axes))
        found.update(dict.fromkeys(stage.combine.axes if stage.combine else ()))
    for store in program.stores:
        found.update(dict.fromkeys(store.axes))
    if program.recurrence is not None:
        r = program.recurrence
        found.update(dict.fromkeys((r.time, r.batch, r.hidden)))
    return tuple(found)


def can_fail(program: Program) -> bool:
    """Whether the kernel checks indices that come from data, and so needs the error cell."""
    return any(isinstance(e, Checked) for e in postorder(program_roots(program)))
