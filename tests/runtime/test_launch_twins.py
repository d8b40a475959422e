"""What an artifact launches is, byte for byte, what Triton's own launcher launches, to a driver that is played."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
COMPILER = shutil.which("gcc")
HEADER = Path(sysconfig.get_paths()["include"]) / "Python.h"  # for Triton's launcher, which it compiles

pytestmark = pytest.mark.skipif(COMPILER is None or not HEADER.exists(), reason="needs a C compiler and Python.h")


def test_every_launch_is_tritons(tmp_path: Path) -> None:
    assert COMPILER is not None
    library = tmp_path / "libcuda.so.1"
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", "-O1", "-o", library, HERE / "played_libcuda.c"], check=True, capture_output=True
    )
    (tmp_path / "libcuda.so").symlink_to(library.name)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {
        "PYTHONPATH": str(ROOT / ".typecheck"),
        "LD_LIBRARY_PATH": str(tmp_path),
        "TRITON_LIBCUDA_PATH": str(tmp_path),
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "TRITON_DISABLE_LINE_INFO": "1",  # as in artifacts, so that both load the same code
    }
    program = [sys.executable, HERE / "launch_twins.py", "two-layer-mlp", "llama-decode"]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    mlp, decode, descriptors = json.loads(done.stdout)
    assert len(mlp["twins"]) >= 6
    assert len(decode["twins"]) >= 20
    for model in (mlp, decode):
        for ours, theirs in model["twins"]:
            assert ours == theirs
            assert ours
    assert len(descriptors["twins"]) == 2
    for ours, theirs in descriptors["twins"]:
        (*first, lent, nothing), (*again, other, _) = (lines[0].split() for lines in (ours, theirs))
        assert first == again
        assert int(lent, 16) != 0 != int(other, 16)  # memory of its own for each launch
        assert int(nothing, 16) == 0
