"""Straight-line LLVM functions over vectors, written in Python.

A function is traced: its arguments are ``Value``, whose operators append one instruction each, so a value that is used
twice is computed once. No instruction carries fast-math flags, and integer arithmetic wraps.
"""

from __future__ import annotations

import inspect
import struct
from collections.abc import Callable
from typing import Final

_FLOATS: Final = {"float": "f32", "double": "f64"}


class Code:
    """The instructions of one function on ``lanes`` elements at a time; one lane means scalars."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.instructions: list[str] = []
        self.declarations: set[str] = set()

    def type(self, kind: str) -> str:
        """The LLVM type of ``lanes`` elements of a kind."""
        return kind if self.lanes == 1 else f"<{self.lanes} x {kind}>"

    def emit(self, kind: str, instruction: str) -> Value:
        """The result of an instruction."""
        name = f"%v{len(self.instructions)}"
        self.instructions.append(f"  {name} = {instruction}")
        return Value(self, kind, name)

    def constant(self, kind: str, value: float) -> Value:
        """The same number in every lane."""
        literal = _literal(kind, value)
        return Value(self, kind, literal if self.lanes == 1 else f"splat ({kind} {literal})")

    def intrinsic(self, name: str, *operands: Value) -> Value:
        """A call of an LLVM intrinsic whose result and operands are floats of one type."""
        kind = operands[0].kind
        of = _FLOATS[kind] if self.lanes == 1 else f"v{self.lanes}{_FLOATS[kind]}"
        head = f"{self.type(kind)} @llvm.{name}.{of}"
        self.declarations.add(f"declare {head}({', '.join(self.type(kind) for _ in operands)})")
        return self.emit(kind, f"call {head}({', '.join(map(str, operands))})")


class Value:
    """A float, double, i32, i64 or i1 per lane. A Python number beside one is a constant of its kind."""

    def __init__(self, code: Code, kind: str, name: str) -> None:
        self.code, self.kind, self.name = code, kind, name

    def __str__(self) -> str:
        return f"{self.code.type(self.kind)} {self.name}"

    def lift(self, other: Operand) -> Value:
        """``other`` as a value of this one's kind."""
        return other if isinstance(other, Value) else self.code.constant(self.kind, other)

    def _arithmetic(self, opcode: str, other: Operand) -> Value:
        prefix = "f" if self.kind in _FLOATS else ""
        return self.code.emit(self.kind, f"{prefix}{opcode} {self}, {self.lift(other).name}")

    def _integer(self, opcode: str, other: Operand) -> Value:
        return self.code.emit(self.kind, f"{opcode} {self}, {self.lift(other).name}")

    def _compare(self, predicate: str, other: Operand) -> Value:
        opcode = f"fcmp o{predicate}" if self.kind in _FLOATS else f"icmp {predicate}"
        return self.code.emit("i1", f"{opcode} {self}, {self.lift(other).name}")

    def __add__(self, other: Operand) -> Value:
        return self._arithmetic("add", other)

    def __sub__(self, other: Operand) -> Value:
        return self._arithmetic("sub", other)

    def __rsub__(self, other: float) -> Value:
        return self.lift(other) - self

    def __mul__(self, other: Operand) -> Value:
        return self._arithmetic("mul", other)

    def __rmul__(self, other: float) -> Value:
        return self.lift(other) * self

    def __truediv__(self, other: Operand) -> Value:
        return self._arithmetic("div", other)

    def __rtruediv__(self, other: float) -> Value:
        return self.lift(other) / self

    def __neg__(self) -> Value:
        return self.code.emit(self.kind, f"fneg {self}")

    def __and__(self, other: Operand) -> Value:
        return self._integer("and", other)

    def __or__(self, other: Operand) -> Value:
        return self._integer("or", other)

    def __xor__(self, other: Operand) -> Value:
        return self._integer("xor", other)

    def __lshift__(self, places: int) -> Value:
        return self._integer("shl", places)

    def __rshift__(self, places: int) -> Value:
        return self._integer("ashr", places)

    def __lt__(self, other: Operand) -> Value:
        return self._compare("lt" if self.kind in _FLOATS else "slt", other)

    def __gt__(self, other: Operand) -> Value:
        return self._compare("gt" if self.kind in _FLOATS else "sgt", other)

    def __ge__(self, other: Operand) -> Value:
        return self._compare("ge" if self.kind in _FLOATS else "sge", other)

    def equals(self, other: Operand) -> Value:
        """Whether both are the same number; false for NaN."""
        return self._compare("eq", other)

    def convert(self, opcode: str, kind: str) -> Value:
        """The result of an LLVM conversion: bitcast, fpext, fptrunc, sitofp, trunc and the like."""
        return self.code.emit(kind, f"{opcode} {self} to {self.code.type(kind)}")


Operand = Value | float


def select(condition: Value, then: Operand, otherwise: Operand) -> Value:
    """``then`` where the condition holds; at least one of the two is a value."""
    like = then if isinstance(then, Value) else otherwise
    assert isinstance(like, Value)
    return condition.code.emit(like.kind, f"select {condition}, {like.lift(then)}, {like.lift(otherwise)}")


def fma(a: Value, b: Operand, c: Operand) -> Value:
    """a * b + c with one rounding: one instruction on AVX2, AVX-512 and NEON, else a slow library call."""
    return a.code.intrinsic("fma", a, a.lift(b), a.lift(c))


def square_root(x: Value) -> Value:
    """The square root, correctly rounded."""
    return x.code.intrinsic("sqrt", x)


def truncate(x: Value) -> Value:
    """x without its fraction."""
    return x.code.intrinsic("trunc", x)


def define(symbol: str, lanes: int, body: Callable[..., Value]) -> tuple[str, set[str]]:
    """The text of a float32 function with a traced body, and the declarations that it needs."""
    code = Code(lanes)
    arguments = [Value(code, "float", f"%{name}") for name in inspect.signature(body).parameters]
    result = body(*arguments)
    head = f"define {code.type('float')} @{symbol}({', '.join(map(str, arguments))}) {{"
    return "\n".join([head, *code.instructions, f"  ret {result}", "}"]), code.declarations


def _literal(kind: str, value: float) -> str:
    """LLVM writes a float32 too with the bits of the float64 that equals it."""
    if kind not in _FLOATS:
        return str(int(value))
    if kind == "float":
        (value,) = struct.unpack("<f", struct.pack("<f", value))
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
