"""Matmul kernels in Triton, interpreted: tiles, few rows, dtypes without ``tl.dot``, epilogues and prologues."""

from __future__ import annotations

import pytest

from . import test_matmul as cpu
from . import test_prologue
from .cases import Case
from .triton_harness import build

FEW = ({"m": 0}, {"m": 1}, {"m": 9}, {"m": 17})


def cases() -> dict[str, Case]:
    found = {f"linear {name}": case for name, case in cpu._cases().items()}
    found |= {f"product {name}": case for name, case in cpu._products().items()}
    found |= {f"prologue {name}": case for name, case in test_prologue._cases().items()}
    return found


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_matmul(name: str) -> None:
    kernel = build(CASES[name])
    sizes = CASES[name].sizes
    for known in FEW if sizes in (cpu.ROWS, test_prologue.ROWS) else sizes:
        kernel.check(known)
