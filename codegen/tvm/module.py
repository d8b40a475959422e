"""The TVM module of a model: every kernel as TVMScript text, and native host functions that call them in order.

A kernel takes raw pointers and sizes. A host function takes two tables, the addresses of all buffers and the values of
all size symbols, so that one call from Python runs a whole stretch of the plan.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tvm
from tvm import tirx
from tvm.script import ir as script_ir
from tvm.script import tirx as script_tirx

from ...ir.collection import no_collection
from ...ir.errors import BackendError
from ...ir.types import product
from ..program import Format, Param, Program, Skeleton
from ..schedule import Schedule, panel_layout, scratch
from . import dots, floats, helpers, integers, nibbles, vmath
from .attention import emit_attention
from .expression import ERROR_PARAM, Scope, index_text, size_name
from .map import emit_map
from .native import host_cpu, load, set_threads, tvm_version
from .pipeline import compile_module
from .product import emit_product
from .reading import read_kernels
from .recurrence import emit_recurrence
from .rows import emit_rows
from .scatter import emit_scatter
from .source import Source
from .storage import storage_type
from .team import FEWEST, FUNCTIONS, failed_symbol, open_symbol, team_text

# load, set_threads and host_cpu need no TVM package, and stand here for those who build kernels
__all__ = [
    "Call",
    "Host",
    "build",
    "host_cpu",
    "host_function",
    "kernel_text",
    "load",
    "parse_module",
    "set_threads",
    "version",
]

_EMITTERS: dict[Skeleton, Callable[[Program, Any, Source], None]] = {
    Skeleton.MAP: emit_map,
    Skeleton.ROWS: emit_rows,
    Skeleton.MATMUL: emit_product,
    Skeleton.ATTENTION: emit_attention,
    Skeleton.RECURRENCE: emit_recurrence,
    Skeleton.SCATTER: emit_scatter,
}
# what the text of kernels may name
_NAMES = {
    "I": script_ir,
    "T": script_tirx,
    "vmath": vmath,
    "dots": dots,
    "helpers": helpers,
    "nibbles": nibbles,
    "floats": SimpleNamespace(**floats.FUNCTIONS),
    "integers": SimpleNamespace(**integers.INTEGER),
    "bools": SimpleNamespace(**integers.BOOL),
    "range": range,
    "int": int,
}
_HEADER = "# from tvm.script import ir as I\n# from tvm.script import tirx as T\n@I.ir_module\nclass Module:\n"

_DEFINED = re.compile(r"^def (\w+)\(", re.MULTILINE)

# TVM tells LLVM that buffers of different names never overlap, which holds within a kernel. LLVM puts small kernels in
# the host function, where one kernel writes what the next one reads under another name: no access may move past this.
# It is no instruction of the processor.
_FENCE = "smelt_between_kernels"
_FENCE_TEXT = f"""define linkonce_odr i32 @{_FENCE}() alwaysinline {{
  fence syncscope("singlethread") seq_cst
  ret i32 0
}}
"""


@dataclass(frozen=True)
class Call:
    """One kernel call of a host function: the kernel's name and the table positions of its buffers, in order."""

    kernel: str
    buffers: tuple[int, ...]


@dataclass(frozen=True)
class Host:
    """A host function: its name, the calls in order, the size of the address table and the size symbols by position."""

    name: str
    calls: tuple[Call, ...]
    addresses: int
    symbols: tuple[Any, ...]


def kernel_text(name: str, program: Program, schedule: Schedule) -> str:
    """The TVMScript of one kernel, as a function at module level.

    Raises:
        UnsupportedError: the program has something that this backend cannot write.
    """
    src = Source()
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


def parse_module(texts: Sequence[str]) -> Any:
    """The kernels as one TVM module.

    Raises:
        BackendError: TVM refuses the text.
    """
    try:
        kernels = read_kernels(texts, _NAMES)
        return tvm.IRModule({tvm.ir.GlobalVar(name): function for name, function in kernels.items()})
    except Exception:  # text that only TVM's parser reads, or a fault, of which that tells the line
        return parse_with_tvm(texts)


def parse_with_tvm(texts: Sequence[str]) -> Any:
    """The kernels as one TVM module, read by TVM's own parser.

    Raises:
        BackendError: TVM refuses the text.
    """
    indented = ["    " + line if line else "" for text in texts for line in text.splitlines()]
    source = _HEADER + "\n".join(indented) + "\n"
    try:
        return tvm.script.from_source(source, extra_vars=_NAMES, check_well_formed=False)
    except Exception as error:
        raise BackendError(f"TVM cannot read a generated kernel: {error}") from error


def host_function(host: Host, module: Any, *, team: bool = False) -> Any:
    """The PrimFunc that makes the calls of a host; with ``team`` their parallel loops are shared out by ``team.py``."""
    table = tirx.decl_buffer((host.addresses,), "int64", name="addresses")
    sizes = tirx.decl_buffer((max(len(host.symbols), 1),), "int64", name="sizes")
    calls = [_call(call, host, module, table, sizes) for call in host.calls]
    fence = tirx.Evaluate(tirx.call_extern("int32", _FENCE))
    statements = [part for call in calls for part in (fence, call)]
    body = _imported(_FENCE_TEXT, tirx.SeqStmt(statements))
    if team:
        body = _imported(team_text(host.name), _with_team(host, body))
    function = tirx.PrimFunc([table, sizes], body)
    return function.with_attr("global_symbol", host.name).with_attr("s_tir", True)


def _imported(text: str, body: Any) -> Any:
    """A statement with LLVM text beside it."""
    return tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", tvm.ir.StringImm(text), body)


def wants_team(texts: Sequence[str], hosts: Sequence[Host]) -> bool:
    """Whether a host function may start several parallel loops."""
    parallel = {name for text in texts if "T.parallel(" in text for name in _DEFINED.findall(text)}
    return any(sum(call.kernel in parallel for call in host.calls) >= FEWEST for host in hosts)


def _with_team(host: Host, body: Any) -> Any:
    """A parallel loop of one step around the calls, which becomes the team's."""
    opened = tirx.Evaluate(tirx.call_extern("int32", open_symbol(host.name)))
    once = tirx.For(tirx.Var("once", "int64"), _int64(0), _int64(1), tirx.ForKind.PARALLEL, body)
    failed = tirx.call_extern("int32", failed_symbol(host.name))
    text = tvm.ir.StringImm("a parallel loop failed")
    check = tirx.AssertStmt(failed == 0, tvm.ir.StringImm("RuntimeError"), [text])
    return tirx.SeqStmt([opened, once, check])


def _function(name: str, kinds: Sequence[str], body: str) -> Any:
    """A function that has an address and does what a function of imported LLVM text does."""
    parameters = [tirx.Var(f"p{i}", kind) for i, kind in enumerate(kinds)]
    run = tirx.Evaluate(tirx.call_extern("int32", body, *parameters))
    statements = tirx.SeqStmt([run, tirx.Return(tirx.IntImm("int32", 0))])
    function = tirx.PrimFunc(parameters, statements, ret_type=tvm.ir.PrimType("int32"))
    plain = {"global_symbol": name, "calling_conv": 1, "s_tir": True}  # no packed arguments
    return reduce(lambda made, item: made.with_attr(*item), plain.items(), function)


def _int64(value: int) -> Any:
    return tirx.IntImm("int64", value)


def _call(call: Call, host: Host, module: Any, table: Any, sizes: Any) -> Any:
    variable = module.get_global_var(call.kernel)
    function = module[variable]
    positions = {size_name(s): i for i, s in enumerate(host.symbols)}
    pointers = [tirx.reinterpret("handle", tirx.BufferLoad(table, [at])) for at in call.buffers]
    symbols = [str(p.name) for p in function.params[len(pointers) :]]
    arguments = pointers + [tirx.BufferLoad(sizes, [positions[s]]) for s in symbols]
    return tirx.Evaluate(tvm.ir.Call(variable, arguments, ret_ty=tvm.ir.PrimType("int32")))


def build(texts: Sequence[str], hosts: Sequence[Host], cpu: str) -> Any:
    """Compile kernels and host functions for a processor; the result gives host functions by name.

    Raises:
        BackendError: TVM refuses the text or fails to compile it.
    """
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu})
    with no_collection():
        team = wants_team(texts, hosts)
        module = parse_module(texts)
        for name, (kinds, body) in FUNCTIONS.items() if team else ():
            module[tvm.ir.GlobalVar(name)] = _function(name, kinds, body)
        for host in hosts:
            module[tvm.ir.GlobalVar(host.name)] = host_function(host, module, team=team)
        try:
            return compile_module(module, target)
        except Exception as error:
            raise BackendError(f"TVM cannot compile the kernels: {error}") from error


@lru_cache(maxsize=1)
def version() -> str:
    """What native code depends on besides its text and processor: TVM, and this emitter, which the text calls."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    emitter = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    return f"tvm {tvm_version()} emitter {emitter}"
