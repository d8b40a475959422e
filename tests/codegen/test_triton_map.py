"""Map kernels in Triton, interpreted, against what their regions mean."""

from __future__ import annotations

import pytest

from smelt.codegen.program import Skeleton

from .regions import all_regions
from .triton_harness import build

MAPS = {name: case for name, case in all_regions().items() if case.program().skeleton is Skeleton.MAP}


@pytest.mark.parametrize("name", MAPS)
def test_map(name: str) -> None:
    kernel = build(MAPS[name])
    for sizes in MAPS[name].sizes:
        kernel.check(sizes)
