"""Rows kernels in Triton, interpreted: whole rows at once, and rows in passes."""

from __future__ import annotations

import pytest

from smelt.codegen.program import Skeleton

from . import test_map_rows as cpu
from .cases import Case
from .triton_harness import build

ROWS: dict[str, Case] = {
    name: case for name, case in cpu.CASES.items() if "awkward" not in name and case.program().skeleton is Skeleton.ROWS
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
def test_rows(name: str) -> None:
    case = ROWS[name]
    kernel = build(case)
    for sizes in case.sizes:
        kernel.check(sizes)
