"""TVM operators that are LLVM functions of ours.

TVM's passes and code generator simplify the value of a bound variable with the values of earlier ones put in. That
takes time exponential in the depth of an expression, and treats floats as real numbers. So a function of ours stays one
opaque, vectorisable operator while TVM works. A last pass turns it into a call of the LLVM function for its number of
lanes, and LLVM inlines that.

A pipeline that ends with ``finalize_host_passes`` of this module can build them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import tvm
from tvm import tirx
from tvm.ir import Op, register_op_attr
from tvm.tirx import compilation_pipeline

from . import llvm

Expr = Any  # a tvm.ir.Expr of primitive type: tvm has no type stubs
Function = Callable[..., Expr]
Body = Callable[..., llvm.Value]
Definition = Callable[[str, int], tuple[str, set[str]]]  # LLVM text for a symbol and lanes, and its declarations

_PREFIX: Final = "smelt."
_PURE, _OPAQUE = 1, 3  # tirx.CallEffectKind.Pure and .Opaque, as the numbers that an operator's attribute holds
_DEFINITIONS: Final[dict[str, Definition]] = {}
# What the module being built calls: operators with their lanes.
_called: ContextVar[set[tuple[str, int]] | None] = ContextVar("called", default=None)
# What it is built for, where that is known.
_target: ContextVar[Any] = ContextVar("target", default=None)


def intrinsic(float64: Function) -> Callable[[Body], Function]:
    """Make the body of a float32 function an operator, ``smelt.NAME``; ``float64`` is the function for that dtype."""

    def decorate(body: Body) -> Function:
        operator = register(body.__name__, body.__doc__ or "", lambda symbol, lanes: llvm.define(symbol, lanes, body))

        def function(*arguments: Expr) -> Expr:
            dtypes = {str(argument.ty.dtype) for argument in arguments}
            if dtypes == {"float64"}:
                return float64(*arguments)
            if dtypes != {"float32"}:
                raise TypeError(f"{body.__name__} takes float32 or float64, not {sorted(dtypes)}: cast first")
            return tirx.call_intrin("float32", operator, *arguments)

        function.__name__, function.__doc__ = body.__name__, body.__doc__
        return function

    return decorate


def register(name: str, description: str, definition: Definition, *, pure: bool = True) -> Any:
    """The operator ``smelt.NAME``, vectorisable, which LLVM text of ours computes; ``pure`` if that is all it does."""
    name = _PREFIX + name
    if name not in Op.list_op_names():
        tvm.get_global_func("ir.RegisterOp")(name, description)
        register_op_attr(name, "TCallEffectKind", _PURE if pure else _OPAQUE)
        register_op_attr(name, "TVectorizable", True)
        register_op_attr(name, "TScriptPrinterName", name)
        register_op_attr(name, "llvm.FLowerIntrinsic", _lower)
    _DEFINITIONS[name] = definition
    return Op.get(name)


@contextmanager
def building_for(target: Any) -> Iterator[None]:
    """Let definitions know the target that a module is compiled for."""
    token = _target.set(target)
    try:
        yield
    finally:
        _target.reset(token)


def target_has(feature: str) -> bool:
    """Whether the processor that a module is compiled for has a feature, by LLVM's name; False where none is known."""
    target = _target.get()
    return target is not None and bool(tvm.get_global_func("target.llvm_cpu_has_feature")(feature, target))


def _lower(call: Expr) -> Expr:
    operator, dtype, called = call.op.name, call.ty.dtype, _called.get()
    if called is None:
        raise RuntimeError(f"{operator} needs a pipeline that ends with intrinsic.finalize_host_passes")
    called.add((operator, dtype.lanes))
    return tirx.call_pure_extern(dtype, _symbol(operator, dtype.lanes), *call.args)


def _symbol(operator: str, lanes: int) -> str:
    return f"{operator}.v{lanes}"


def library(calls: set[tuple[str, int]]) -> str:
    """The LLVM text that defines operators, each for a number of lanes."""
    definitions, declarations = [], set()
    for operator, lanes in sorted(calls):
        text, needed = _DEFINITIONS[operator](_symbol(operator, lanes), lanes)
        definitions.append(text)
        declarations |= needed
    return "\n\n".join([*definitions, *sorted(declarations)])


@contextmanager
def _collected_calls() -> Iterator[set[tuple[str, int]]]:
    called: set[tuple[str, int]] = set()
    token = _called.set(called)
    try:
        yield called
    finally:
        _called.reset(token)


def _with_library(module: Any, text: str) -> Any:
    """The module with LLVM text beside it. Its functions share one LLVM module, so one of them imports the text."""
    variable, function = next(iter(module.functions.items()))
    body = tirx.AttrStmt(tirx.IntImm("int32", 0), "pragma_import_llvm", tvm.ir.StringImm(text), function.body)
    module = module.clone()
    module[variable] = function.with_body(body)
    return module


def finalize_host_passes() -> Any:
    """TVM's passes of that name, after which the module has the LLVM functions that it calls."""

    def finalize(module: Any, _: Any) -> Any:
        with _collected_calls() as calls:
            module = compilation_pipeline.finalize_host_passes()(module)
        return _with_library(module, library(calls)) if calls else module

    return tvm.transform.module_pass(finalize, opt_level=0)
