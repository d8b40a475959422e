"""How TVM turns our kernels into LLVM IR: loops are vectorised and unrolled, and no expression is rewritten.

TVM's own pipeline simplifies expressions again and again. It takes floats for real numbers, puts bound values in place
wherever they are used, which makes an expression exponentially long (half a minute for one ``pow``), and eliminates
common subexpressions afterwards. It also gets sums of floors and remainders of negative numbers wrong, which may stand
in an index: even ``FlattenBuffer`` simplifies those, and is left out since every buffer here is flat. LLVM does all of
that better, knowing what floats are.
"""

from __future__ import annotations

from typing import Any

import tvm
from tvm import tirx
from tvm.tirx import compilation_pipeline

from . import intrinsic

NAME = "smelt"


def _passes() -> list[Any]:
    transform = tirx.transform
    return [
        transform.VectorizeLoop(True),
        transform.UnrollLoop(),
        transform.AnnotateEntryFunc(),
        transform.SplitHostDevice(),
        transform.MakePackedAPI(),
    ]


def _pipeline() -> tuple[Any, Any, Any]:
    def lower(module: Any, _: Any) -> Any:
        return tvm.ir.transform.Sequential(_passes())(module)

    lowering = tvm.transform.module_pass(lower, opt_level=0)
    return lowering, intrinsic.finalize_host_passes, compilation_pipeline.finalize_device_passes


compilation_pipeline.register_tir_pipeline(NAME, _pipeline)


def compile_module(module: Any, target: Any) -> Any:
    """Compile a module of kernels and host functions."""
    with intrinsic.building_for(target):
        # what `tvm.compile` does with functions that are no graphs, which it looks for by their class
        return tvm.runtime.Executable(tirx.build(module, target, pipeline=NAME))
