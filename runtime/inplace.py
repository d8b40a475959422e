"""Results in the memory of an operand: a kernel may overwrite what it reads for the last time, element by element.

A kernel of pointwise work, or what follows a product, computes each element of its only result once, from loads that
come before the store. Where the program loads an operand only there, and at the very place in memory that it stores to,
no element is read after it was written, in whatever order and by whatever thread the elements are computed. Native code
holds to that: emitters visit each point of a store once, and kernels' pointers may alias for LLVM (no ``noalias``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import sympy

from ..codegen.program import Index, Load, Program, Skeleton, postorder, stage_roots, store_roots
from ..ir.types import Shape

if TYPE_CHECKING:
    from .plan import Plan

_ELEMENTWISE = (Skeleton.MAP, Skeleton.MATMUL)


def overwritable(program: Program) -> tuple[int, ...]:
    """The positions, among a program's inputs, of the operands whose memory its result may take."""
    if program.skeleton not in _ELEMENTWISE or len(program.stores) != 1 or program.stores[0].accumulate:
        return ()
    (store,) = program.stores
    out = program.param(store.param)
    at = _offset(store.index, out.strides)
    if at is None:
        return ()
    in_stages = {load.param for stage in program.stages for load in _loads(stage_roots(stage))}
    in_store: dict[str, list[Load]] = {}
    for load in _loads(store_roots(store)):
        in_store.setdefault(load.param, []).append(load)
    return tuple(
        position
        for position, param in enumerate(program.inputs)
        if param.name in in_store
        and param.name not in in_stages
        and param.type.dtype.itemsize == out.type.dtype.itemsize
        and all(_same(_offset(load.index, param.strides), at) for load in in_store[param.name])
    )


def _loads(roots: Sequence[object]) -> list[Load]:
    return [e for e in postorder(roots) if isinstance(e, Load)]  # type: ignore[arg-type]


def _offset(index: Sequence[Index], strides: Shape) -> sympy.Expr | None:
    """The place in memory of an index, in elements; None where it comes from data."""
    if not all(isinstance(i, int | sympy.Expr) for i in index):
        return None
    terms = (sympy.sympify(i) * sympy.sympify(s) for i, s in zip(index, strides, strict=True))
    return sympy.expand(sympy.Add(*terms))


def _same(left: sympy.Expr | None, right: sympy.Expr) -> bool:
    return left is not None and sympy.expand(left - right) == 0


def find_reuse(plan: Plan) -> dict[int, int]:
    """For each result in the arena that may take an operand's memory, the operand: table positions.

    The operand is an intermediate too, of as many bytes, which the kernel reads once and is the last to read.
    """
    from .plan import KernelStep, Place  # which calls this

    found: dict[int, int] = {}
    for at, step in enumerate(plan.steps):
        if not isinstance(step, KernelStep):
            continue
        program = step.kernel.program
        results = [plan.buffers[i] for i in step.buffers[len(program.inputs) :][: len(program.outputs)]]
        if len(results) != 1 or results[0].place is not Place.ARENA or plan.live[results[0].position][0] != at:
            continue
        for i in overwritable(program):
            operand = plan.buffers[step.buffers[i]]
            ends_here = operand.place is Place.ARENA and plan.live[operand.position][1] == at
            once = step.buffers.count(operand.position) == 1
            if ends_here and once and operand.type.nbytes == results[0].type.nbytes:
                found[results[0].position] = operand.position
                break
    return found
