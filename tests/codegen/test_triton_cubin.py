"""Kernels compiled to machine code without a GPU: what Triton takes, which its interpreter does not check."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smelt.codegen.gpu import GPU_MACHINES, GpuMachine
from smelt.ir.errors import BackendError

from .test_triton_text import written

pytest.importorskip("triton")

from smelt.codegen.triton.cubin import compile_file, occupancy_of, signature_of

H200 = GPU_MACHINES["sm_90"]


@pytest.mark.parametrize(
    ("name", "target"),
    [("map", "sm_90"), ("rows", "sm_80"), ("gemv", "sm_90"), ("decode", "sm_90"), ("matmul-half", "sm_100")],
)
def test_machine_code(name: str, target: str) -> None:
    file, _ = written(name)
    found = compile_file(file, GPU_MACHINES[target])
    assert [(r.function, r.bits) for r in found] == [(x.function, f.bits) for f in file.all for x in f.launches]
    names = {f"kernel_{part}" for part in ("parts", "whole", "alone")} if name == "decode" else {"kernel"}
    assert {r.function for r in found} == names
    for r in found:
        assert 0 < r.registers <= 255
        assert r.spills == 0
        assert r.bytes > 0
        assert 0 < r.occupancy <= 1


def test_signature() -> None:
    file, _ = written("map")
    (launch,) = file.launches
    assert signature_of(file, launch) == {
        "in0": "*bf16", "in1": "*i64", "in2": "*bf16", "out0": "*bf16", "err": "*i64", "n_b": "i64", "n_s": "i64"
    }  # fmt: skip


def test_too_much_shared_memory() -> None:
    file, _ = written("matmul-half")
    with pytest.raises(BackendError, match="shared memory"):
        compile_file(file, replace(H200, block_shared_bytes=1024))


def test_code_that_triton_refuses() -> None:
    file, _ = written("map")
    with pytest.raises(BackendError, match="cannot compile kernel"):
        compile_file(replace(file, text=file.text.replace("tl.arange(0, BLOCK)", "tl.arange(0, 7)")), H200)


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "expected"),
    [(32, 0, 4, 1.0), (64, 0, 4, 0.5), (255, 0, 4, 0.125), (32, 100 << 10, 4, 0.125), (16, 0, 1, 0.5)],
)
def test_occupancy(registers: int, shared: int, warps: int, expected: float) -> None:
    assert occupancy_of(registers, shared, warps, GpuMachine()) == expected
