"""Random pointwise steps: arithmetic, comparisons, casts, conditions."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .builder import FLOATS, INTEGERS, Builder

UNARY = (
    *(
        [
            "relu",
            "sigmoid",
            "tanh",
            "exp",
            "neg",
            "abs",
            "erf",
            "sin",
            "cos",
            "sqrt",
            "rsqrt",
            "log",
            "log1p",
            "expm1",
            "exp2",
            "log2",
            "square",
            "sign",
        ]
    ),
    *(
        [
            "reciprocal",
            "floor",
            "ceil",
            "round",
            "trunc",
            "frac",
            "atan",
            "tan",
            "nan_to_num",
            "isnan",
            "isinf",
            "isfinite",
        ]
    ),
)
ACTIVATIONS = (
    *(
        [
            "gelu",
            "silu",
            "softplus",
            "elu",
            "leaky_relu",
            "hardtanh",
            "mish",
            "hardswish",
            "hardsigmoid",
            "logsigmoid",
            "relu6",
            "selu",
            "celu",
        ]
    ),
    *(["softsign", "tanhshrink"]),
)
BINARY = ["add", "sub", "mul", "div", "maximum", "minimum", "atan2", "fmod", "remainder", "hypot", "floor_divide"]
COMPARE = ["lt", "le", "gt", "ge", "eq", "ne"]
SIGNS = ["+", "-", "*", "/"]


def unary(b: Builder) -> None:
    """A function of one floating value."""
    name = b.rng.choice(UNARY)
    b.add(name, f"torch.{name}({b.float()})")


def activation(b: Builder) -> None:
    """An activation of torch.nn.functional."""
    name = b.rng.choice(ACTIVATIONS)
    x = b.float()
    b.add(name, f"F.gelu({x}, approximate='tanh')" if name == "gelu" and b.rng.random() < 0.5 else f"F.{name}({x})")


def binary(b: Builder) -> None:
    """A function of two values that broadcast."""
    x = b.pick(*FLOATS, *INTEGERS)
    y = b.partner(x, *(FLOATS if b.rng.random() < 0.1 else ()))
    name = b.rng.choice(BINARY[:6] if b.rng.random() < 0.8 else BINARY)
    b.add(name, f"torch.{name}({x}, {y})")


def sign(b: Builder) -> None:
    """Arithmetic between values, and with numbers, as Python writes it."""
    x = b.pick(*FLOATS, *INTEGERS)
    y = b.partner(x) if b.rng.random() < 0.4 else b.number()
    op = b.rng.choice(SIGNS)
    left, right = (x, y) if b.rng.random() < 0.7 else (y, x)
    b.add({"+": "add", "-": "sub", "*": "mul", "/": "div"}[op], f"{left} {op} {right}")


def power(b: Builder) -> None:
    """A power with a fixed exponent."""
    b.add("pow", f"{b.float()} ** {b.rng.choice(('2', '3', '0.5', '-0.5', '-1', '1.5', '4'))}")


def with_alpha(b: Builder) -> None:
    """Sums that PyTorch scales."""
    x = b.float()
    y, z = b.partner(x), b.partner(x)
    b.add(*b.rng.choice((
        ("add", f"torch.add({x}, {y}, alpha={b.number()})"),
        ("sub", f"torch.sub({x}, {y}, alpha={b.number()})"),
        ("rsub", f"torch.rsub({x}, {y})"),
        ("lerp", f"torch.lerp({x}, {y}, 0.25)"),
        ("addcmul", f"torch.addcmul({x}, {y}, {z}, value=0.5)"),
        ("addcdiv", f"torch.addcdiv({x}, {y}, {z}, value=2)"),
    )))  # fmt: skip


def clamp(b: Builder) -> None:
    """Limits that are numbers or tensors."""
    x = b.pick(*FLOATS, *INTEGERS)
    y = b.partner(x)
    ways = (f"{x}.clamp(-1, 2)", f"{x}.clamp(min=0)", f"{x}.clamp(max=1)", f"torch.clamp({x}, min={y})")
    b.add("clamp", b.rng.choice(ways))


def compare(b: Builder) -> None:
    """A comparison of two values, or with a number."""
    x = b.pick(*FLOATS, *INTEGERS)
    name = b.rng.choice(COMPARE)
    b.add(name, f"torch.{name}({x}, {b.partner(x) if b.rng.random() < 0.6 else b.rng.choice(('0', '1', '-1'))})")


def logic(b: Builder) -> None:
    """Logic of truth values, and bits of integers."""
    if b.rng.random() < 0.7:
        x = b.pick(torch.bool)
        y = b.partner(x)
        name = b.rng.choice(("logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or"))
        b.add(*(("logical_not", f"~{x}") if b.rng.random() < 0.3 else (name, f"torch.{name}({x}, {y})")))
        return
    x = b.pick(*INTEGERS)
    op = b.rng.choice(("&", "|", "^", "//", "%", "<<", ">>"))
    right = b.rng.choice(("1", "3", "2")) if op in ("//", "%", "<<", ">>") else b.partner(x)
    b.add({"//": "floor_divide", "%": "remainder"}.get(op, "bitwise"), f"{x} {op} {right}")


def choose(b: Builder) -> None:
    """One value or another, by a mask."""
    mask = b.pick(torch.bool)
    if b.rng.random() < 0.5:
        x = b.partner(mask, *FLOATS, *INTEGERS)
        value = b.rng.choice(("0", "-1", "1")) if b.dtype(x) in INTEGERS else b.rng.choice(("0.0", "-inf", "-1e4", "1"))
        b.add("masked_fill", f"{x}.masked_fill({mask}, {value})")
        return
    x = b.partner(mask, *FLOATS, *INTEGERS)
    y = b.partner(x) if b.rng.random() < 0.6 else b.rng.choice(("0.0", "1", "-2.5"))
    left, right = (x, y) if b.rng.random() < 0.7 else (y, x)
    b.add("where", f"torch.where({mask}, {left}, {right})")


def cast(b: Builder) -> None:
    """Another dtype. Integers are made of floats that they can hold: the rest is undefined."""
    x = b.pick()
    to = b.rng.choice(("f32", "f32", "f64", "f16", "bf16", "i64", "i32", "boolean"))
    whole = to in ("i64", "i32") and b.dtype(x) in FLOATS
    b.add("to", f"{x}.nan_to_num(0, 9, -9).clamp(-99, 99).to({to})" if whole else f"{x}.to({to})")


POINTWISE: tuple[tuple[int, Callable[[Builder], None]], ...] = (
    (6, unary),
    (3, activation),
    (6, binary),
    (8, sign),
    (2, power),
    (2, with_alpha),
    (2, clamp),
    (4, compare),
    (3, logic),
    (4, choose),
    (3, cast),
)
