"""Products of float32 on GPUs: TensorFloat-32 where PyTorch is asked for it, and never elsewhere."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

import smelt
from smelt.codegen.gpu import GPU_MACHINES, GpuMatmulSchedule, gpu_schedule_text
from smelt.codegen.gpu_schedule import default_gpu_schedule, in_tf32
from smelt.codegen.triton.cubin import compile_file
from smelt.codegen.triton.module import emit
from smelt.ir import ops
from smelt.runtime.contract import compare
from smelt.runtime.precision import asks_for_tf32
from smelt.runtime.saved.settings import _pytorch

from ..codegen.cases import Case, operand
from ..codegen.triton_harness import build
from .fake_gpu import TARGET, executable_of, playing

H200 = GPU_MACHINES["sm_90"]
CUDA: Any = torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = CUDA.fp32_precision
    yield
    torch.set_float32_matmul_precision("highest")
    CUDA.fp32_precision = before


def _set(value: str) -> None:
    CUDA.fp32_precision = value


def _allow(value: bool) -> None:
    CUDA.allow_tf32 = value


@pytest.mark.parametrize(
    ("ask", "take_back"),
    [
        (lambda: torch.set_float32_matmul_precision("high"), lambda: torch.set_float32_matmul_precision("highest")),
        (lambda: torch.set_float32_matmul_precision("medium"), lambda: torch.set_float32_matmul_precision("highest")),
        (lambda: _set("tf32"), lambda: _set("ieee")),
        (lambda: _allow(True), lambda: _allow(False)),
    ],
    ids=["high", "medium", "fp32_precision", "allow_tf32"],
)
def test_every_way_of_asking(ask: Callable[[], None], take_back: Callable[[], None]) -> None:
    assert not asks_for_tf32()
    exact = list(_pytorch())
    ask()
    assert asks_for_tf32()
    assert list(_pytorch()) != exact  # the key of captures that are kept
    take_back()
    assert not asks_for_tf32()


def test_the_switch_is_followed() -> None:
    model, x = nn.Linear(64, 48).eval(), torch.randn(40, 64)
    with playing():
        fast = smelt.compile(model, target=TARGET, dynamic=False)

        def schedule() -> GpuMatmulSchedule:
            torch.testing.assert_close(fast(x), model(x))
            assert len(fast.entries) == 1
            (kernel,) = executable_of(fast).kernels
            assert isinstance(kernel.schedule, GpuMatmulSchedule)
            assert ('input_precision="tf32"' in kernel.source) == kernel.schedule.tf32
            assert ('input_precision="ieee"' in kernel.source) != kernel.schedule.tf32
            return kernel.schedule

        assert not schedule().tf32
        _set("tf32")
        assert schedule().tf32
        assert smelt.verify(fast, x).worst is not None
        _set("ieee")
        assert not schedule().tf32


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_products_stay(dtype: torch.dtype, rows: int) -> None:
    _set("tf32")
    model, x = nn.Linear(64, 48).eval().to(dtype), torch.randn(rows, 64, dtype=dtype)
    with playing():
        fast = smelt.compile(model, target=TARGET, dynamic=False)
        fast(x)
        assert "tf32" not in executable_of(fast).kernels[0].source.replace("tf32=False", "")


def test_a_processor_computes_float32() -> None:
    model, x = nn.Linear(64, 48).eval(), torch.randn(40, 64)
    expected = smelt.compile(model, cache=False)(x)
    _set("tf32")
    fast = smelt.compile(model, cache=False)
    assert torch.equal(fast(x), expected)
    _set("ieee")
    fast(x)
    assert len(fast.entries) == 1


def test_an_artifact_computes_float32(tmp_path: Path) -> None:
    _set("tf32")
    smelt.export(nn.Linear(64, 48).eval(), (torch.randn(40, 64),), target="sm_90").save(tmp_path / "model.smelt")
    source = zipfile.ZipFile(tmp_path / "model.smelt").read("forward/sm_90/kernels.py").decode()
    assert 'input_precision="ieee"' in source
    assert 'input_precision="tf32"' not in source


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """Numbers with ten bits of mantissa."""
    bits = x.view(torch.int32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF).view(torch.float32)


def test_contract() -> None:
    x, w = torch.randn(40, 256), torch.randn(48, 256)
    exact, eager = x.double() @ w.double().T, x @ w.T
    ours = _rounded(x) @ _rounded(w).T
    assert not compare("y", ours, eager, exact).passed
    assert compare("y", ours, ours + 1e-3 * ours.abs() * torch.rand_like(ours), exact, tf32=True).passed
    wrong = ours.clone()
    wrong[3, 5] += 5
    assert not compare("y", wrong, ours, exact, tf32=True).passed
    assert not compare("y", x.bfloat16().float() @ w.bfloat16().float().T, eager, exact, tf32=True).passed


# --- kernels ----------------------------------------------------------------------------------------------------------


def product(rows: int, terms: int, columns: int) -> Case:
    x, w = operand(0, (rows, terms)), operand(1, (columns, terms))
    return Case([x, w], [ops.relu(ops.linear(x, w))], rtol=2e-3)


def test_interpreted() -> None:
    case = product(37, 70, 33)
    schedule = in_tf32(GpuMatmulSchedule(16, 16, 16), case.program())
    build(case, schedule).check({})
    few = GpuMatmulSchedule(1, 16, 16, dot=False)
    assert in_tf32(few, case.program()) is few


def test_source(golden: Callable[[str, str], None]) -> None:
    program = product(256, 1024, 1024).program()
    schedule = in_tf32(default_gpu_schedule(program, H200), program)
    golden("triton/tf32.txt", f"# {gpu_schedule_text(schedule)}\n{emit('kernel', program, schedule).text}")


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_machine_code(target: str) -> None:
    program, machine = product(256, 1024, 1024).program(), GPU_MACHINES[target]
    schedule = in_tf32(default_gpu_schedule(program, machine), program)
    for found in compile_file(emit("kernel", program, schedule), machine):
        assert found.spills == 0
