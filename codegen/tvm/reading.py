"""Generated TVMScript read fast: as Python that drives TVM's IR builder.

TVM's parser copies the syntax tree into one of its own, and evaluates every expression with a call of ``compile`` and a
look at the stack. The text that our emitters write needs little of that: here each statement becomes the calls of the
builder that TVM's parser makes for it, the whole kernel is compiled once, and its expressions run as they stand. What
is not written here raises :class:`Unread`, and TVM's parser reads the text.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder.base import IRBuilder, IRBuilderFrame
from tvm.tirx import is_buffer_var
from tvm.tirx.script import builder


class Unread(Exception):
    """The text holds what only TVM's parser reads."""


def read_kernels(texts: Sequence[str], names: Mapping[str, Any]) -> dict[str, Any]:
    """The kernels as PrimFuncs by name. ``names`` are what the text may use.

    Raises:
        Unread: a kernel holds a statement or an operand that is not known here.
    """
    tree = ast.Module([part for text in texts for part in ast.parse(text).body], [])
    kernels = [part for part in tree.body if isinstance(part, ast.FunctionDef)]
    if len(kernels) != len(tree.body):
        raise Unread("something other than a kernel")
    program = ast.fix_missing_locations(ast.Module([_kernel(kernel) for kernel in kernels], []))
    space = {**names, **_RUNTIME}
    exec(compile(program, "<kernels>", "exec"), space)  # our own text, which TVM's parser evaluates too
    found = {}
    for kernel in kernels:
        with IRBuilder() as made:
            space[kernel.name]()
        found[kernel.name] = made.get()
    return found


# --- statements -------------------------------------------------------------------------------------------------------


def _kernel(kernel: ast.FunctionDef) -> ast.FunctionDef:
    """A function without arguments that builds the kernel."""
    (decorator,) = kernel.decorator_list
    if not isinstance(decorator, ast.Call) or decorator.args or kernel.returns is None:
        raise Unread("a kernel of another kind")
    asked = {str(k.arg): ast.literal_eval(k.value) for k in decorator.keywords}
    if asked != {"private": True, "s_tir": True}:
        raise Unread("a kernel of another kind")
    body: list[ast.stmt] = [_do("_begin", ast.Constant(kernel.name))]
    for arg in kernel.args.args:
        if arg.annotation is None:
            raise Unread("an argument without a type")
        body.append(_let(arg.arg, _call("_argument", ast.Constant(arg.arg), arg.annotation)))
    body.append(_do("_result", kernel.returns))
    frame = _with(_call("_function"), [*body, *_block(kernel.body)])
    return ast.FunctionDef(kernel.name, _NO_ARGUMENTS, [frame], [], None)


def _block(body: Sequence[ast.stmt]) -> list[ast.stmt]:
    return [made for statement in body for made in _statement(statement)]


def _statement(node: ast.stmt) -> list[ast.stmt]:
    match node:
        case ast.Assign(targets=[ast.Subscript(value=buffer, slice=index)], value=value):
            return [_do("_store", _expression(buffer), _expression(value), _expression(index))]
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return [_let(name, _call("_buffer", ast.Constant(name), _expression(value)))]
        case ast.AnnAssign(
            target=ast.Name(id=name),
            annotation=ast.Attribute(value=ast.Name(id="T"), attr="let"),
            value=ast.expr() as value,
        ):
            return [_let(name, _call("_bind", ast.Constant(name), _expression(value)))]
        case ast.For(target=ast.Name(id=name), iter=loop, body=body, orelse=[]):
            enter = _call("_name", ast.Constant(name), ast.Name(name, ast.Load()))
            inside = [ast.Expr(enter), *_block(body)]
            return [_with(_call("_loop", _expression(_without_range(loop))), inside, name)]
        case ast.If(test=test, body=body, orelse=orelse):
            branches = [_with(_call("_then"), _block(body))]
            branches += [_with(_call("_else"), _block(orelse))] if orelse else []
            return [_with(_call("_if", _expression(test)), branches)]
        case ast.With(items=[ast.withitem(context_expr=frame, optional_vars=None)], body=body):
            return [_with(_call("_frame", _expression(frame)), _block(body))]
        case ast.Return(value=ast.expr() as value):
            return [_do("_return", _expression(value))]
        case ast.Expr(value=value):
            return [_do("_evaluate", _expression(value))]
    raise Unread(f"a statement {type(node).__name__}")


class _Expressions(ast.NodeTransformer):
    """Comparisons as TVM's parser reads them; the operators of Python are those of TVM's expressions."""

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        """One comparison."""
        kind = type(node.ops[0]).__name__
        if len(node.ops) != 1 or kind not in _COMPARISONS:
            raise Unread("a comparison")
        left, right = (self.visit(operand) for operand in (node.left, node.comparators[0]))
        return _call("_compare", ast.Constant(kind), left, right)

    def _refuse(self, node: ast.expr) -> ast.expr:
        raise Unread(f"an expression {type(node).__name__}")

    visit_BoolOp = visit_Lambda = visit_IfExp = visit_NamedExpr = visit_Starred = visit_Slice = _refuse
    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_JoinedStr = _refuse

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        """A minus, or ``~``."""
        return self._refuse(node) if isinstance(node.op, ast.Not) else _visited(self.generic_visit(node))


def _without_range(loop: ast.expr) -> ast.expr:
    """``range`` as a loop of the kernel; elsewhere it is Python's."""
    match loop:
        case ast.Call(func=ast.Name(id="range"), args=[stop], keywords=[]):
            return _call("_serial", ast.Constant(0), stop)
        case ast.Call(func=ast.Name(id="range"), args=[start, stop], keywords=[]):
            return _call("_serial", start, stop)
    return loop


def _visited(node: Any) -> ast.expr:
    assert isinstance(node, ast.expr)
    return node


def _expression(node: ast.expr) -> ast.expr:
    return _visited(_Expressions().visit(node))


_NO_ARGUMENTS = ast.arguments([], [], None, [], [], None, [])


def _call(name: str, *args: ast.expr) -> ast.expr:
    return ast.Call(ast.Name(name, ast.Load()), list(args), [])


def _do(name: str, *args: ast.expr) -> ast.stmt:
    return ast.Expr(_call(name, *args))


def _let(name: str, value: ast.expr) -> ast.stmt:
    return ast.Assign([ast.Name(name, ast.Store())], value)


def _with(frame: ast.expr, body: Sequence[ast.stmt], name: str = "") -> ast.stmt:
    target = ast.Name(name, ast.Store()) if name else None
    return ast.With([ast.withitem(frame, target)], list(body) or [ast.Pass()])


# --- what the compiled text calls -------------------------------------------------------------------------------------

_COMPARISONS = {
    "Eq": tirx.EQ,
    "NotEq": tirx.NE,
    "Lt": tirx.LT,
    "LtE": tirx.LE,
    "Gt": tirx.GT,
    "GtE": tirx.GE,
}


def _argument(name: str, annotation: Any) -> Any:
    made = annotation if isinstance(annotation, Expr) else annotation()
    return builder.arg(name, made)


def _result(annotation: Any) -> None:
    builder.func_ret((annotation if isinstance(annotation, Expr) else annotation()).ty)


def _compare(kind: str, left: Any, right: Any) -> Any:
    """A comparison of two expressions of as many lanes; a number takes the type of the other side."""
    left, right = (_number(a, b) for a, b in ((left, right), (right, left)))
    if left.ty.dtype.lanes != right.ty.dtype.lanes:
        raise Unread("a comparison of vectors with numbers")
    return _COMPARISONS[kind](left, right)


def _number(value: Any, other: Any) -> Any:
    if isinstance(value, Expr) and tvm.ir.is_prim_expr(value):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not isinstance(other, Expr):
        raise Unread("a comparison of something else")
    return tirx.const(value, str(other.ty.dtype))


def _buffer(name: str, value: Any) -> Any:
    if not is_buffer_var(value):
        raise Unread(f"{name}, which is no buffer")
    IRBuilder.name(name, value)
    return value


def _bind(name: str, value: Any) -> Any:
    if not isinstance(value, Expr):
        raise Unread(f"{name}, which is no expression")
    variable = builder.let.as_var(rhs_dtype=value.ty)
    IRBuilder.name(name, variable)
    builder.Bind(value, var=variable)
    return variable


def _loop(frame: Any) -> Any:
    if not isinstance(frame, builder.frame.ForFrame):
        raise Unread("a loop of another kind")
    return frame


def _name(name: str, variable: Any) -> None:
    if not isinstance(variable, tvm.ir.Var):
        raise Unread("a loop over several variables")
    IRBuilder.name(name, variable)


def _if(test: Any) -> Any:
    if not isinstance(test, Expr) or not tvm.ir.is_prim_expr(test):
        raise Unread("a condition that is known")
    return builder.If(test)


def _frame(frame: Any) -> Any:
    if not isinstance(frame, IRBuilderFrame):
        raise Unread("a scope of another kind")
    return frame


def _evaluate(value: Any) -> None:
    """A call that stands for itself; a scope lasts to the end of the one around it."""
    if isinstance(value, IRBuilderFrame):
        value.add_callback(partial(value.__exit__, None, None, None))
        value.__enter__()
    elif isinstance(value, Expr) and not isinstance(value, tvm.ir.Var) and not is_buffer_var(value):
        builder.evaluate(value)
    elif value is not None:
        raise Unread("a statement of another kind")


_RUNTIME = {
    "_function": lambda: builder.prim_func(is_private=True, s_tir=True),
    "_begin": builder.func_name,
    "_argument": _argument,
    "_result": _result,
    "_compare": _compare,
    "_store": builder.buffer_store,
    "_buffer": _buffer,
    "_bind": _bind,
    "_loop": _loop,
    "_name": _name,
    "_serial": builder.serial,
    "_if": _if,
    "_then": builder.Then,
    "_else": builder.Else,
    "_frame": _frame,
    "_return": builder.Return,
    "_evaluate": _evaluate,
}
