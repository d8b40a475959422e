"""The text of Triton kernels: one golden for each skeleton, equal for every hash seed, and nothing imported for it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from smelt.codegen.gpu import GPU_MACHINES, GpuSchedule, gpu_schedule_text
from smelt.codegen.gpu_schedule import default_gpu_schedule
from smelt.codegen.triton.file import KernelFile
from smelt.codegen.triton.module import emit
from smelt.ir import ops
from smelt.ir.types import symbol

from .cases import Case, operand

ROOT = Path(__file__).resolve().parents[2]
B, S, K = symbol("b"), symbol("s"), symbol("k")
F32, F16, BF16, I64 = torch.float32, torch.float16, torch.bfloat16, torch.int64


def embedded() -> Case:
    table, ids, positions = operand(0, (30522, 768), BF16), operand(1, (B, S), I64), operand(2, (S, 768), BF16)
    return Case([table, ids, positions], [ops.gelu(ops.add(ops.embedding(table, ids), positions))])


def side_by_side() -> Case:
    x, y = operand(0, (B, 3, 64)), operand(1, (B, 5, 64))
    return Case([x, y], [ops.concat(x, ops.neg(y), dim=1)])


def norm() -> Case:
    x, r, w, c = operand(0, (128, 768)), operand(1, (128, 768)), operand(2, (768,)), operand(3, (768,))
    total = ops.add(x, r)
    return Case([x, r, w, c], [ops.layer_norm(total, w, c, eps=1e-5), total])


def softmax() -> Case:
    return Case([operand(0, (B, S))], [ops.softmax(operand(0, (B, S)), dim=1)])


def linear(rows: object, dtype: torch.dtype = F32) -> Case:
    x, w, b = operand(0, (rows, 768), dtype), operand(1, (3072, 768), dtype), operand(2, (3072,), dtype)  # type: ignore[arg-type]
    return Case([x, w, b], [ops.relu(ops.linear(x, w, b))], weights=frozenset([1]))


def normed_linear() -> Case:
    x, g, w = operand(0, (B, 768)), operand(1, (768,)), operand(2, (2304, 768))
    return Case([x, g, w], [ops.linear(ops.rms_norm(x, g), w)], weights=frozenset([2]))


def gated_linear() -> Case:
    gate, up, w = operand(0, (B, 512), F16), operand(1, (B, 512), F16), operand(2, (256, 512), F16)
    return Case([gate, up, w], [ops.linear(ops.swiglu(gate, up), w)], weights=frozenset([2]))


def attention(queries: object) -> Case:
    heads = [operand(i, (B, h, n, 64), F16) for i, (h, n) in enumerate(((8, queries), (2, K), (2, K)))]  # type: ignore[arg-type]
    inputs = [*heads, operand(3, (), I64)]
    return Case(inputs, [ops.attention(*inputs, causal=True, scale=0.125)])


def cache_write() -> Case:
    cache, row, place = operand(0, (B, 8, 1024, 64)), operand(1, (B, 8, 1, 64)), operand(2, (1,), I64)
    return Case([cache, row, place], [ops.index_put(cache, row, place, dim=2)])


def recurrent() -> Case:
    shapes = ((S, B, 1024), (1024, 256), (1024,), (B, 256), (B, 256))
    inputs = [operand(i, shape) for i, shape in enumerate(shapes)]
    node = ops.recurrence(*inputs, kind="lstm", reverse=False)
    return Case(inputs, list(ops.results(node)), weights=frozenset([1]))


CASES: dict[str, Callable[[], Case]] = {
    "map": embedded,
    "pieces": side_by_side,
    "rows": norm,
    "rows-in-passes": softmax,
    "matmul": lambda: linear(B),
    "matmul-half": lambda: linear(B, BF16),
    "gemv": lambda: linear(1),
    "rows-and-matmul": normed_linear,
    "matmul-of-swiglu": gated_linear,
    "attention": lambda: attention(S),
    "decode": lambda: attention(1),
    "scatter": cache_write,
    "recurrence": recurrent,
}


def written(name: str) -> tuple[KernelFile, GpuSchedule]:
    case = CASES[name]()
    program = case.program()
    schedule = default_gpu_schedule(program, GPU_MACHINES["sm_90"])
    return emit("kernel", program, schedule, case.region.symbols), schedule


def text_of(name: str) -> str:
    file, schedule = written(name)
    launches = [f"# {x.function}: {x.programs} programs of {x.warps} warps, {x.stages} stages\n" for x in file.launches]
    return f"# {gpu_schedule_text(schedule)}\n{''.join(launches)}{file.text}"


@pytest.mark.parametrize("name", CASES)
def test_text(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"triton/{name}.txt", text_of(name))


_PRINT = """
import hashlib, sys
from tests.codegen.test_triton_text import CASES, text_of
for name in CASES:
    print(name, hashlib.sha256(text_of(name).encode()).hexdigest())
assert "tvm" not in sys.modules and "triton" not in sys.modules, "writing source needs no backend"
"""


@pytest.mark.parametrize("seed", ["1"])
def test_text_is_the_same_for_every_hash_seed(seed: str) -> None:
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT / ".typecheck")}
    command = [sys.executable, "-c", _PRINT]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = dict(line.split() for line in run.stdout.splitlines())
    assert found == {name: hashlib.sha256(text_of(name).encode()).hexdigest() for name in CASES}


def test_offsets_are_32_bits_where_sizes_are_known() -> None:
    assert written("rows")[0].bits == 32
    assert written("map")[0].bits == 64
