"""Which sums of products the processor's dot instructions compute, and how many terms they take at a time.

Such an instruction multiplies two vectors of 32-bit lanes, each of which holds a group of terms side by side: two of
bfloat16, or four of int8. It adds the products of a group to a sum in float32 or int32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import sympy
import torch

from .program import Apply, Axis, Combiner, Expr, Format, Load, Param, Program, Stage, dot_stage, postorder
from .runs import Runs, runs_along

if TYPE_CHECKING:
    from .machine import Machine

BYTES = (torch.int8, torch.uint8)


def terms_at_once(program: Program, machine: Machine) -> int:
    """How many terms of its sum a MATMUL program takes in one lane: 1 where no dot instruction computes it.

    Pairs of bfloat16 are summed in float32, whatever lies around the products. Quads of int8 (those of the left
    operand may be uint8) are summed in int32, exactly; the right operand must be a weight in panels, which are packed
    with what makes up for the signs of the left one.
    """
    stage = dot_stage(program)
    if not isinstance(stage.value, Apply) or stage.value.op != "mul" or not _reads_panels_whole(program, stage):
        return 1
    left, right = stage.value.args
    if machine.has_bf16_dot and left.dtype == right.dtype == torch.bfloat16:
        return 2
    return 4 if machine.has_vnni and stage.dtype == torch.int32 and _are_bytes(program, (left, right)) else 1


def attention_terms_at_once(program: Program, machine: Machine) -> int:
    """The same of an ATTENTION program: 2 where all three operands are bfloat16 and keys lie in pairs in memory."""
    scores = dot_stage(program)
    out = next(s for s in program.stages if s.combine and s.combine.kind is Combiner.SOFTMAX_SUM)
    assert isinstance(scores.value, Apply)
    assert scores.combine is not None
    assert out.combine is not None
    (key,), reduced = out.combine.axes, scores.combine.axes
    dtypes = {x.dtype for x in (*scores.value.args, out.value)}
    if not machine.has_bf16_dot or dtypes != {torch.bfloat16} or len(reduced) != 1:
        return 1
    keys = [x for x in scores.value.args if isinstance(x, Load) and _reads(x, key)]
    bases = [group_offset(program.param(x.param), x.index, reduced[0], 2) for x in keys]
    return 2 if len(bases) == 1 and bases[0] is not None else 1


def _reads(load: Load, axis: Axis) -> bool:
    return any(isinstance(i, sympy.Expr) and axis.symbol in i.free_symbols for i in load.index)


def _reads_panels_whole(program: Program, stage: Stage) -> bool:
    """Whether a packed weight, where there is one, is multiplied as it lies in memory."""
    assert isinstance(stage.value, Apply)
    assert stage.combine is not None
    for operand in stage.value.args:
        loads = [e for e in postorder([operand]) if isinstance(e, Load) and _is_packed(program, e)]
        if loads and (byte_load(operand) or operand) is not loads[0]:
            return False
        if loads and not is_row_major(stage.combine.axes, loads[0].index[0]):
            return False
    return True


def _is_packed(program: Program, load: Load) -> bool:
    return program.param(load.param).format is Format.PANELS


def _are_bytes(program: Program, operands: tuple[Expr, Expr]) -> bool:
    loads = [byte_load(x) for x in operands]
    packed = [x for x in loads if x is not None and _is_packed(program, x)]
    return None not in loads and len(packed) == 1 and packed[0].dtype == torch.int8


def byte_load(expr: Expr) -> Load | None:
    """The load of a byte that an expression widens to int32, if it is that."""
    if isinstance(expr, Apply) and expr.op == "cast" and expr.dtype == torch.int32:
        (operand,) = expr.args
        return operand if isinstance(operand, Load) and operand.dtype in BYTES else None
    return None


def is_row_major(axes: Sequence[Axis], index: object) -> bool:
    """Whether an index is the row-major one over some axes."""
    flat: sympy.Expr | int = 0
    for axis in axes:
        flat = flat * axis.size + axis.symbol
    return isinstance(index, sympy.Expr | int) and bool(sympy.expand(flat - index) == 0)


def group_offset(param: Param, index: Sequence[object], axis: Axis, group: int) -> sympy.Expr | None:
    """Where row ``index`` of an operand starts, in groups, if all groups of its terms along ``axis`` lie side by side.

    None where they do not: the number of terms or the distance of rows is not whole groups, or terms are not
    neighbours.
    """
    found = group_runs(param, index, axis, group)
    return None if found is None or found.length else found.base


def group_runs(param: Param, index: Sequence[object], axis: Axis, group: int) -> Runs | None:
    """The same where terms may lie in several runs of whole groups: offsets, and the length of a run, in groups."""
    if not isinstance(axis.size, int) or axis.size % group or param.format is Format.PANELS:
        return None
    found = runs_along(param, index, axis)
    if found is None or found.step != 1 or found.length % group:
        return None
    parts = [term.as_coeff_Mul()[0] for x in (found.base, found.jump) for term in sympy.Add.make_args(x)]
    if not all(c.is_Integer and c % group == 0 for c in parts):
        return None
    base, jump = (sympy.expand(x / group) for x in (found.base, found.jump))
    return Runs(base, found.step, jump, found.length // group)
