"""Products of so few columns that lanes run along the terms: a vector of columns would be padding for the most part."""

from __future__ import annotations

import torch

from .contraction import contraction, panel_load
from .dot import group_offset, is_row_major
from .program import Load, Program, dot_stage
from .prologue import phases

MOST_COLUMNS = 8  # from here on a padded vector of columns is as good
MOST_TERMS = 512  # that each lane of one vector sums


def is_narrow(program: Program, lanes: int) -> bool:
    """Whether a MATMUL program multiplies rows of float32 as they lie in memory with a packed weight of few columns."""
    c = contraction(program, dot_stage(program))
    columns = 1
    for axis in c.columns:
        columns = columns * axis.size if isinstance(axis.size, int) else MOST_COLUMNS + 1
    if columns > MOST_COLUMNS or c.batch or len(c.reduced) != 1 or phases(program) is not None:
        return False
    terms, left, right = c.reduced[0].size, c.left, c.right
    if not isinstance(terms, int) or not lanes <= terms <= MOST_TERMS * lanes:
        return False
    if left.dtype != torch.float32 or right.dtype != torch.float32:
        return False
    if not isinstance(left, Load) or not isinstance(right, Load) or panel_load(program, right) is not right:
        return False
    along = group_offset(program.param(left.param), left.index, c.reduced[0], 1)
    return along is not None and is_row_major(c.reduced, right.index[0])
