"""The rate at which memory is read: every thread reads its own part from the first byte to the last, and asks ahead.

What kernels that stream weights are compared with. Values are only combined, so nothing that uses them is faster.
"""

from __future__ import annotations

from typing import Any

import numpy
import torch
import tvm
from tvm.script import ir as I
from tvm.script import tirx as T

from .meter import Meter
from .module import set_threads
from .packing import aligned_empty
from .prefetch import AHEAD

LINE = 64
CHAINS = 8  # lines of one turn of the loop, each combined on its own
BLOCK = LINE * CHAINS

_KERNEL = """
@I.ir_module
class Module:
    @T.prim_func(s_tir=True)
    def main(data: T.Buffer((share * threads,), "int32"), results: T.Buffer((16 * threads,), "int32")):
        T.func_attr({"global_symbol": "main"})
        with T.attr(0, "pragma_import_llvm", text):
            for t in T.parallel(threads):
                results[t * 16] = T.call_pure_extern(
                    "int32", "smelt_read", T.address_of(data[t * share]), T.int64(share * 4)
                )
"""


def llvm_text() -> str:
    """``smelt_read(data, nbytes)``: a number that depends on every line of the memory; ``nbytes`` in whole blocks."""
    line, chains = f"<{LINE // 4} x i32>", range(CHAINS)
    steps = []
    for c in chains:
        steps += [
            f"  %ahead{c} = getelementptr i8, ptr %here, i64 {AHEAD + c * LINE}",
            f"  call void @llvm.prefetch.p0(ptr %ahead{c}, i32 0, i32 3, i32 1)",
            f"  %p{c} = getelementptr i8, ptr %here, i64 {c * LINE}",
            f"  %v{c} = load {line}, ptr %p{c}, align {LINE}",
            f"  %b{c} = xor {line} %a{c}, %v{c}",
        ]
    lines = [
        "define i32 @smelt_read(ptr %data, i64 %nbytes) alwaysinline {",
        "entry:",
        "  br label %loop",
        "loop:",
        "  %at = phi i64 [ 0, %entry ], [ %next, %loop ]",
        *(f"  %a{c} = phi {line} [ zeroinitializer, %entry ], [ %b{c}, %loop ]" for c in chains),
        "  %here = getelementptr i8, ptr %data, i64 %at",
        *steps,
        f"  %next = add i64 %at, {BLOCK}",
        "  %more = icmp slt i64 %next, %nbytes",
        "  br i1 %more, label %loop, label %exit",
        "exit:",
        *(f"  %s{c} = xor {line} %{f's{c - 1}' if c else 'b0'}, %b{c}" for c in chains),
        f"  %result = call i32 @llvm.vector.reduce.or.v{LINE // 4}i32({line} %s{CHAINS - 1})",
        "  ret i32 %result",
        "}",
        f"declare i32 @llvm.vector.reduce.or.v{LINE // 4}i32({line})",
        "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)",
    ]
    return "\n".join(lines)


def meter(nbytes: int, threads: int, cpu: str) -> Meter:
    """A run that reads ``nbytes``, in whole blocks of each thread, at least one; its amount is in bytes."""
    share = max(nbytes // threads // BLOCK, 1) * BLOCK
    data = aligned_empty((share // 4 * threads,), torch.int32).zero_()
    run, read = _build(share // 4, threads, cpu), tvm.runtime.from_dlpack(data)
    results = tvm.runtime.tensor(numpy.zeros(16 * threads, "int32"))

    def once() -> None:
        set_threads(threads)
        run(read, results)

    return Meter(once, share * threads)


def _build(share: int, threads: int, cpu: str) -> Any:
    names = {"I": I, "T": T, "text": llvm_text(), "threads": threads, "share": share}
    module = tvm.script.from_source(_KERNEL, extra_vars=names)
    return tvm.compile(module, target=tvm.target.Target({"kind": "llvm", "mcpu": cpu}))["main"]
