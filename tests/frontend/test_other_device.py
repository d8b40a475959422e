"""Models that are on another device than the CPU are captured as the same graphs. No such device is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.utils import backend_registration

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch has no devices for Python backends",
)
def test_graphs_are_those_of_the_cpu() -> None:
    names = ["two-layer-mlp", "gpt2", "llama"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / ".typecheck")}
    command = [sys.executable, Path(__file__).with_name("other_device.py"), *names]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == {name: [True, ["npy:0"], []] for name in names}
