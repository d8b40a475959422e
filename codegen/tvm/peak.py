"""The arithmetic peak of a processor: multiply-adds between registers, in as many independent chains as hide latency.

What kernels are compared with. Memory is not touched, so nothing that multiplies and adds is faster.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy
import tvm
from tvm.script import ir as I
from tvm.script import tirx as T

from ..machine import Machine
from .meter import Meter
from .module import set_threads

CHAINS = 12  # a latency of 4, two units and some: enough, and it fits 16 registers
SEED = 0x3F003F00  # 0.5 as a float, two of it as bfloat16: neither overflows nor becomes denormal


_KERNEL = """
@I.ir_module
class Module:
    @T.prim_func(s_tir=True)
    def main(results: T.Buffer((16 * threads,), "int32"), steps: T.int64):
        T.func_attr({"global_symbol": "main"})
        with T.attr(0, "pragma_import_llvm", text):
            for t in T.parallel(threads):
                results[t * 16] = T.call_pure_extern("int32", "smelt_peak", steps, seed)
"""


@dataclass(frozen=True)
class Arithmetic:
    """One kind of multiply-add on vectors of ``lanes`` x 32 bits.

    Attributes:
        accumulator, operand: LLVM types of that width.
        function: the LLVM intrinsic; it takes an accumulator and two operands.
        operations: multiplications and additions of one instruction.
    """

    name: str
    lanes: int
    accumulator: str
    operand: str
    function: str
    operations: int


def kinds(machine: Machine, features: Iterable[str]) -> list[Arithmetic]:
    """The multiply-adds that a processor has."""
    lanes, present = machine.vector_bits // 32, set(features)
    floats = f"<{lanes} x float>"
    found = [Arithmetic("float32", lanes, floats, floats, f"llvm.fma.v{lanes}f32", 2 * lanes)]
    if lanes == 16 and machine.has_bf16_dot:
        found.append(Arithmetic("bfloat16", 16, floats, "<32 x bfloat>", "llvm.x86.avx512bf16.dpbf16ps.512", 64))
    if lanes == 16 and "avx512vnni" in present:
        wide = "<16 x i32>"
        found.append(Arithmetic("int8", 16, wide, wide, "llvm.x86.avx512.vpdpbusd.512", 128))
    return found


def llvm_text(kind: Arithmetic) -> str:
    """``smelt_peak(steps, seed)``: ``steps * CHAINS`` instructions, and a number that depends on all of them."""
    whole, acc, op = f"<{kind.lanes} x i32>", kind.accumulator, kind.operand
    # an fma adds its operand, the dot products add to their accumulator
    call = "{a}, {o} %x, {o} %x" if "fma" not in kind.function else "%x, {o} %x, {o} {a}"
    first = acc if "fma" not in kind.function else op
    last = op if "fma" not in kind.function else acc
    chains = range(CHAINS)
    lines = [
        "define i32 @smelt_peak(i64 %steps, i32 %seed) alwaysinline {",
        "entry:",
        f"  %one = insertelement {whole} poison, i32 %seed, i32 0",
        f"  %wide = shufflevector {whole} %one, {whole} poison, {whole} zeroinitializer",
        f"  %x = bitcast {whole} %wide to {op}",
        *(f"  %m{c} = add {whole} %wide, splat (i32 {c})" for c in chains),
        *(f"  %start{c} = bitcast {whole} %m{c} to {acc}" for c in chains),
        "  br label %loop",
        "loop:",
        "  %n = phi i64 [ 0, %entry ], [ %next, %loop ]",
        *(f"  %a{c} = phi {acc} [ %start{c}, %entry ], [ %b{c}, %loop ]" for c in chains),
        *(f"  %b{c} = call {acc} @{kind.function}({first} {call.format(a=f'%a{c}', o=op)})" for c in chains),
        "  %next = add i64 %n, 1",
        "  %more = icmp slt i64 %next, %steps",
        "  br i1 %more, label %loop, label %exit",
        "exit:",
        *(f"  %i{c} = bitcast {acc} %b{c} to {whole}" for c in chains),
        *(f"  %s{c} = xor {whole} %{f's{c - 1}' if c else 'wide'}, %i{c}" for c in chains),
        f"  %result = extractelement {whole} %s{CHAINS - 1}, i32 0",
        "  ret i32 %result",
        "}",
        f"declare {acc} @{kind.function}({first}, {op}, {last})",
    ]
    return "\n".join(lines)


def meter(kind: Arithmetic, threads: int, cpu: str, steps: int = 1 << 20) -> Meter:
    """A run of ``steps`` multiply-adds in each chain on each of that many threads; its amount is in operations."""
    run = _build(kind, threads, cpu)
    results = tvm.runtime.tensor(numpy.zeros(16 * threads, "int32"))

    def once() -> None:
        set_threads(threads)
        run(results, steps)

    return Meter(once, threads * steps * CHAINS * kind.operations)


def _build(kind: Arithmetic, threads: int, cpu: str) -> Any:
    module = tvm.script.from_source(
        _KERNEL, extra_vars={"I": I, "T": T, "text": llvm_text(kind), "threads": threads, "seed": SEED}
    )
    return tvm.compile(module, target=tvm.target.Target({"kind": "llvm", "mcpu": cpu}))["main"]
