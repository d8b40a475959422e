"""Matmul kernels in Triton, interpreted: tiles, few rows, dtypes without ``tl.dot``, epilogues and prologues."""

from __future__ import annotations

import pytest

from . import matmul_cases as cpu
from . import prologue_cases, window_cases
from .cases import Case
from .triton_harness import build

FEW = ({"m": 0}, {"m": 1}, {"m": 9}, {"m": 17})


def cases() -> dict[str, Case]:
    found = {f"linear {name}": case for name, case in cpu.linears().items()}
    found |= {f"product {name}": case for name, case in cpu.activations().items()}
    found |= {f"prologue {name}": case for name, case in prologue_cases.cases().items()}
    windows = ("taps apart", "image", "groups", "groups of odd columns", "groups torch.bfloat16")
    found |= {f"windows {name}": case for name, case in window_cases.cases().items() if name in windows}
    return found


CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_matmul(name: str) -> None:
    kernel = build(CASES[name])
    sizes = CASES[name].sizes
    for known in FEW if sizes in (cpu.ROWS, prologue_cases.ROWS) else sizes:
        kernel.check(known)
