"""Scalar TIR expressions whose floating-point meaning TVM keeps.

TVM simplifies floats as if they were real numbers: ``x + c - c`` becomes ``x``, ``x - x`` and ``0 * x`` become 0,
``x != x`` becomes false and ``not x < c`` becomes ``c <= x``. Sums that rely on rounding are therefore written with
``llvm.fma``, which TVM's simplifier leaves alone, and a ``Select`` so that NaN takes the branch that keeps it.
"""

from typing import Any

from tvm import tirx
from tvm.script import tirx as script
from tvm.script.ir_builder import IRBuilder

Expr = Any  # a tvm.ir.Expr of primitive type: tvm has no type stubs


class Bindings:
    """Names for shared subexpressions: ``bind`` each, then ``close`` over the result.

    A TIR expression is a tree, so one that is used twice is written, simplified and compiled twice.
    """

    def __init__(self) -> None:
        self._bound: list[tuple[Expr, Expr]] = []

    def bind(self, value: Expr) -> Expr:
        """A variable that stands for ``value``, which is then evaluated once.

        While a kernel's text is parsed this is a statement before the one being built: TVM's vectoriser and its
        common-subexpression pass both fail on a ``Let`` that stands inside a larger expression.
        """
        if IRBuilder.is_in_scope():
            return script.Bind(value)
        var = tirx.Var(f"t{len(self._bound)}", value.ty.dtype)
        self._bound.append((var, value))
        return var

    def close(self, result: Expr) -> Expr:
        """``result`` inside one ``Let`` per bound value, the first outermost."""
        for var, value in reversed(self._bound):
            result = tirx.Let(var, value, result)
        return result


def fma(a: Expr, b: Expr, c: Expr) -> Expr:
    """a * b + c with one rounding: one instruction on AVX2, AVX-512 and NEON.

    Hardware without it gets a library call: right, but slow.
    """
    return tirx.call_llvm_pure_intrin(a.ty.dtype, "llvm.fma", a, b, c)
