"""Launches that are prepared: kernels are compiled ahead, once, and launched past Triton's look at every argument."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]


def test_kernels_are_compiled_ahead_once_and_launched_as_they_were_prepared(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT / ".typecheck"), "TRITON_CACHE_DIR": str(tmp_path)}
    program = Path(__file__).with_name("fake_driver.py")
    done = subprocess.run([sys.executable, program], env=environment, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["functions"] == found["ahead"] == found["compiled"] == found["loaded"] == 3
    assert set(found["unlimited"]) == {None}
    assert found["limited"]
    assert set(found["limited"]) == {168}  # what spilled was launched with the first limit at which it does not
    launches = found["launches"]
    assert len(launches) == found["expected"] == 12
    assert all(stream == 7 for _, _, stream, _ in launches)
    assert {arguments[-1] for _, _, _, arguments in launches} == {5, 70}  # the size is an argument, not compiled in
    # the second launch of each is the first again
    half = [[*launch[:2], launch[3][1:]] for launch in launches]
    rows, product, again, product_again, *_ = half
    assert (rows, product) == (again, product_again)
    programs = {tuple(grid) for _, grid, _, arguments in launches if arguments[-1] == 70}
    assert max(x for x, _, _ in programs) > 2
