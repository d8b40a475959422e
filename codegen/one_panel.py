"""Right operands that lie in memory as a packed panel would: each row of a matrix is as wide as a register tile."""

from __future__ import annotations

from .contraction import contraction
from .program import Format, Load, Program, dot_stage
from .runs import runs_along


def is_one_panel(program: Program, width: int) -> bool:
    """Whether a MATMUL program can read its right operand in place, ``width`` columns side by side for each term."""
    c = contraction(program, dot_stage(program))
    right = c.right
    if not isinstance(right, Load) or len(c.columns) != 1 or c.columns[0].size != width or len(c.reduced) != 1:
        return False
    param = program.param(right.param)
    if param.format is Format.PANELS or param.type.dtype != c.stage.dtype or param.type.dtype.itemsize < 4:
        return False
    terms, columns = (runs_along(param, right.index, axis) for axis in (c.reduced[0], c.columns[0]))
    if terms is None or columns is None or terms.length or columns.length:
        return False
    return bool(terms.step == width and columns.step == 1)
