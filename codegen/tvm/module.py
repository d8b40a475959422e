"""The TVM module of a model: every kernel as TVMScript text, and native host functions that call them in order.

A kernel takes raw pointers and sizes. A host function takes two tables, the addresses of all buffers and the values of
all size symbols, so that one call from Python runs a whole stretch of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import tvm
from tvm import tirx
from tvm.script import ir as script_ir
from tvm.script import tirx as script_tirx

from ...ir.collection import no_collection
from ...ir.errors import BackendError
from . import dots, floats, helpers, integers, nibbles, vmath
from .host import Call, Host, wants_team
from .native import host_cpu, load, set_threads
from .pipeline import compile_module
from .reading import read_kernels
from .team import FUNCTIONS, failed_symbol, open_symbol, team_text

if TYPE_CHECKING:
    from .kernel import kernel_text, version

# what needs no TVM package stands here too for those who build kernels
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
    "wants_team",
]

# How a host function calls a kernel: the call of a kernel on pointers, with what tells a size of that name.
Invoke = Callable[[str, Sequence[Any], Callable[[str], Any]], Any]

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

# TVM tells LLVM that buffers of different names never overlap, which holds within a kernel. LLVM puts small kernels in
# the host function, where one kernel writes what the next one reads under another name: no access may move past this.
# It is no instruction of the processor.
_FENCE = "smelt_between_kernels"
_FENCE_TEXT = f"""define linkonce_odr i32 @{_FENCE}() alwaysinline {{
  fence syncscope("singlethread") seq_cst
  ret i32 0
}}
"""


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


def host_function(host: Host, invoke: Invoke, *, team: bool = False, fenced: bool = True) -> Any:
    """The PrimFunc that makes the calls of a host; with ``team`` their parallel loops are shared out by ``team.py``.

    Where it is ``fenced``, kernels may become part of it.
    """
    table = tirx.decl_buffer((host.addresses,), "int64", name="addresses")
    sizes = tirx.decl_buffer((max(len(host.symbols), 1),), "int64", name="sizes")
    positions = host.sizes()

    def size(name: str) -> Any:
        return tirx.BufferLoad(sizes, [positions[name]])

    statements = []
    for call in host.calls:
        pointers = [tirx.reinterpret("handle", tirx.BufferLoad(table, [at])) for at in call.buffers]
        if fenced:
            statements.append(tirx.Evaluate(tirx.call_extern("int32", _FENCE)))
        statements.append(tirx.Evaluate(invoke(call.kernel, pointers, size)))
    body = tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]
    if fenced:
        body = _imported(_FENCE_TEXT, body)
    if team:
        body = _imported(team_text(host.name), _with_team(host, body))
    function = tirx.PrimFunc([table, sizes], body)
    return function.with_attr("global_symbol", host.name).with_attr("s_tir", True)


def within(module: Any) -> Invoke:
    """Calls of kernels of the same module."""

    def invoke(kernel: str, pointers: Sequence[Any], size: Callable[[str], Any]) -> Any:
        variable = module.get_global_var(kernel)
        names = [str(p.name) for p in module[variable].params[len(pointers) :]]
        return tvm.ir.Call(variable, [*pointers, *map(size, names)], ret_ty=tvm.ir.PrimType("int32"))

    return invoke


def by_name(sizes: Mapping[str, Sequence[str]]) -> Invoke:
    """Calls of kernels of other modules, of which the names of their sizes are known."""

    def invoke(kernel: str, pointers: Sequence[Any], size: Callable[[str], Any]) -> Any:
        return tirx.call_extern("int32", kernel, *pointers, *map(size, sizes[kernel]))

    return invoke


def _imported(text: str, body: Any) -> Any:
    """A statement with LLVM text beside it."""
    return tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", tvm.ir.StringImm(text), body)


def _with_team(host: Host, body: Any) -> Any:
    """A parallel loop of one step around the calls, which becomes the team's."""
    opened = tirx.Evaluate(tirx.call_extern("int32", open_symbol(host.name)))
    once = tirx.For(tirx.Var("once", "int64"), _int64(0), _int64(1), tirx.ForKind.PARALLEL, body)
    failed = tirx.call_extern("int32", failed_symbol(host.name))
    text = tvm.ir.StringImm("a parallel loop failed")
    check = tirx.AssertStmt(failed == 0, tvm.ir.StringImm("RuntimeError"), [text])
    return tirx.SeqStmt([opened, once, check])


def team_functions() -> dict[str, Any]:
    """The functions of ``team.py`` that have an address, by name."""
    return {name: _function(name, kinds, body) for name, (kinds, body) in FUNCTIONS.items()}


def _function(name: str, kinds: Sequence[str], body: str) -> Any:
    """A function that has an address and does what a function of imported LLVM text does."""
    parameters = [tirx.Var(f"p{i}", kind) for i, kind in enumerate(kinds)]
    run = tirx.Evaluate(tirx.call_extern("int32", body, *parameters))
    statements = tirx.SeqStmt([run, tirx.Return(tirx.IntImm("int32", 0))])
    function = tirx.PrimFunc(parameters, statements, ret_type=tvm.ir.PrimType("int32"))
    return public(function, name).with_attr("s_tir", True)


def public(function: Any, name: str) -> Any:
    """A function that other objects call by a name, without packed arguments."""
    attributes = {"global_symbol": name, "calling_conv": 1}
    return reduce(lambda made, item: made.with_attr(*item), attributes.items(), function)


def _int64(value: int) -> Any:
    return tirx.IntImm("int64", value)


def build(texts: Sequence[str], hosts: Sequence[Host], cpu: str) -> Any:
    """Compile kernels and host functions for a processor; the result gives host functions by name.

    Raises:
        BackendError: TVM refuses the text or fails to compile it.
    """
    target = tvm.target.Target({"kind": "llvm", "mcpu": cpu})
    with no_collection():
        team = wants_team(texts, hosts)
        module = parse_module(texts)
        for name, function in team_functions().items() if team else ():
            module[tvm.ir.GlobalVar(name)] = function
        for host in hosts:
            module[tvm.ir.GlobalVar(host.name)] = host_function(host, within(module), team=team)
        return compiled(module, target)


def compiled(module: Any, target: Any) -> Any:
    """A TVM module compiled.

    Raises:
        BackendError: TVM fails to.
    """
    try:
        return compile_module(module, target)
    except Exception as error:
        raise BackendError(f"TVM cannot compile the kernels: {error}") from error


def __getattr__(name: str) -> Any:
    if name not in ("kernel_text", "version"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import kernel  # imports PyTorch, which compiling kernels does without

    return getattr(kernel, name)
