"""The TVMScript of kernels, which is written without TVM: only what compiles it needs the package."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...ir.types import product
from ..program import Format, Param, Program, Skeleton
from ..schedule import Schedule, panel_layout, scratch
from .attention import emit_attention
from .expression import ERROR_PARAM, Scope, index_text
from .idioms import with_idioms
from .map import emit_map
from .native import tvm_version
from .product import emit_product
from .recurrence import emit_recurrence
from .rows import emit_rows
from .scatter import emit_scatter
from .source import Source, size_name
from .storage import storage_type

_EMITTERS: dict[Skeleton, Callable[[Program, Any, Source], None]] = {
    Skeleton.MAP: emit_map,
    Skeleton.ROWS: emit_rows,
    Skeleton.MATMUL: emit_product,
    Skeleton.ATTENTION: emit_attention,
    Skeleton.RECURRENCE: emit_recurrence,
    Skeleton.SCATTER: emit_scatter,
}


def kernel_text(name: str, program: Program, schedule: Schedule) -> str:
    """The TVMScript of one kernel, as a function at module level.

    Raises:
        UnsupportedError: the program has something that this backend cannot write.
    """
    program, src = with_idioms(program), Source()
    buffers = (*program.params, *scratch(program, schedule))
    pointers = [f'{p.name}_ptr: T.handle("{storage_type(p.type.dtype)}")' for p in buffers]
    pointers.append(f'{ERROR_PARAM}_ptr: T.handle("int64")')
    sizes = [f"{size_name(s)}: T.int64" for s in program.symbols]
    src.line("@T.prim_func(private=True, s_tir=True)")
    with src.block(f"def {name}({', '.join(pointers + sizes)}) -> T.int32"):
        src.line('T.attr(T.int32(0), "device_id", 0)')
        src.line('T.attr(T.int32(0), "device_type", 1)')
        scope = Scope(program, src)
        for p in buffers:
            size = _elements(p, schedule, scope)
            src.line(f'{p.name} = T.decl_buffer(({size},), "{storage_type(p.type.dtype)}", data={p.name}_ptr)')
        src.line(f'{ERROR_PARAM} = T.decl_buffer((1,), "int64", data={ERROR_PARAM}_ptr)')
        _EMITTERS[program.skeleton](program, schedule, src)
        src.line("return T.int32(0)")
    return src.text


def _elements(param: Param, schedule: Schedule, scope: Scope) -> str:
    if param.format is Format.PANELS:
        (k, n), layout = param.type.shape, panel_layout(schedule)
        rows = k + (layout.extra_rows + 1) * layout.group if layout.group > 1 else k
        return index_text(rows * (n + layout.tile), scope)
    return index_text(product(param.type.shape), scope)


@lru_cache(maxsize=1)
def version() -> str:
    """What native code depends on besides its text and processor: TVM, and this emitter, which the text calls."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    emitter = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return f"tvm {tvm_version()} emitter {emitter}"
