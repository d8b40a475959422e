"""Kernels for processors that this machine is not: they compile to whole vectors of the processor, and call nothing.

What the instructions compute is tested where such a processor is: here only that there are the right ones.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import tvm

from smelt.codegen.machine import Machine
from smelt.codegen.schedule import candidates
from smelt.codegen.tvm.pipeline import compile_module
from smelt.ir import ops
from smelt.ir.types import symbol

from .harness import Case, operand, tvm_module
from .matmul_cases import linear_case
from .quantized_cases import few_bits

M = symbol("m")


@dataclass(frozen=True)
class Processor:
    """A processor: how TVM names it, its registers, and the multiply-add of whole vectors in its assembly."""

    target: tuple[tuple[str, str], ...]
    machine: Machine
    multiply_add: str

    def compile(self, module: Any) -> Any:
        return compile_module(module, tvm.target.Target({"kind": "llvm", **dict(self.target)}))


PROCESSORS = {
    "AVX2": Processor((("mcpu", "haswell"),), Machine(vector_bits=256, registers=16), r"vfmadd\w+ps\s.*%ymm"),
    "AVX-512": Processor((("mcpu", "skylake-avx512"),), Machine(), r"vfmadd\w+ps\s.*%zmm"),
    "NEON": Processor(
        (("mtriple", "aarch64-linux-gnu"), ("mcpu", "neoverse-n1")),
        Machine(vector_bits=128, registers=32),
        r"fmla\s+v\d+\.4s",
    ),
}


def attention() -> Case:
    q, k, v = (operand(i, (2, 4, M, 64)) for i in range(3))
    return Case([q, k, v], [ops.attention(q, k, v, causal=True, scale=0.125, softcap=0.0)])


def softmax() -> Case:
    x = operand(0, (M, 300))
    return Case([x], [ops.softmax(x, dim=-1)])


KERNELS = {
    "linear and gelu": lambda: linear_case((M,), 768, 96, after=ops.gelu),
    "linear of float16": lambda: linear_case((M,), 64, 96, torch.float16),
    "linear of bfloat16": lambda: linear_case((M,), 64, 96, torch.bfloat16),
    "four bits": lambda: few_bits(256, 96, 4, 32),
    "attention": attention,
    "softmax": softmax,
}


@cache
def assembly(name: str, kernel: str) -> str:
    processor, program = PROCESSORS[name], KERNELS[kernel]().program()
    text = tvm_module.kernel_text("k", program, candidates(program, processor.machine)[0])
    count = len(program.params) + 1
    host = tvm_module.Host("main", (tvm_module.Call("k", tuple(range(count))),) * 2, count, program.symbols)
    module = tvm_module.parse_module([text])
    module[tvm.ir.GlobalVar("main")] = tvm_module.host_function(host, tvm_module.within(module))
    return str(processor.compile(module).mod.inspect_source("asm"))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", PROCESSORS)
def test_kernels_are_whole_vectors_and_call_nothing(name: str, kernel: str) -> None:
    text = assembly(name, kernel)
    found = len(re.findall(PROCESSORS[name].multiply_add, text))
    assert found >= 4, f"{found} multiply-adds of vectors"
    called = set(re.findall(r"\b(?:bl|callq?|jmp)\s+(?!\.L)[*]?([A-Za-z_]\w*)", text))
    mathematics = {c for c in called if re.fullmatch(r"(exp|log|tanh|erf|pow|sin|cos|floor|round)f?|__\w+[hs]f2?", c)}
    assert not mathematics
