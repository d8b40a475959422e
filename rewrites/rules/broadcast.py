"""Work on elements done before they are repeated: operators on what an ``expand`` or a wide constant stands for."""

from __future__ import annotations

import torch

from ...ir import ops
from ...ir.node import Node, OpDef
from ...ir.ops import cast, expand, full, scalar, where
from ...ir.types import DTYPE_NAMES
from ..pattern import COMMUTATIVE
from ..rule import EXACT, ROUNDING, Rule
from ..sample import shapes
from .common import broadcast_to

# Operators on elements that are worth doing before their operands are expanded.
UNARY = (ops.neg, ops.bit_not, ops.exp, ops.cos, ops.sin, ops.sqrt, ops.rsqrt)
BINARY = (
    *(ops.add, ops.sub, ops.mul, ops.div, ops.maximum, ops.minimum, ops.pow, ops.floor_div),
    *(ops.eq, ops.ne, ops.lt, ops.le, ops.bit_and, ops.bit_or),
)


def _dtype_of(op: OpDef) -> str:
    return "int: " if op.name.startswith("bit") else ""


def _unary_of_expand(op: OpDef) -> Rule:
    # op(expand(x)) -> expand(op(x))
    return Rule(
        name=f"{op.name}-of-expanded".replace("_", "-"),
        before=lambda x, s: op(expand(x, shape=s)),
        after=lambda x, s: expand(op(x), shape=s),
        samples=[shapes(_dtype_of(op) + "1 n", s=lambda m, n: (2, m, n))],
        near_misses=[lambda x: op(x)],
        tolerance=ROUNDING,
    )


def _binary_of_expand(op: OpDef, swapped: bool) -> Rule:
    # x op expand(y) -> expand(x op y), which is x op y where x is as large
    def applied(x: Node, y: Node) -> Node:
        return op(y, x) if swapped else op(x, y)

    dtype = _dtype_of(op)
    return Rule(
        name=f"{op.name}-of-expanded{'-left' if swapped else ''}".replace("_", "-"),
        before=lambda x, y, s: applied(x, expand(y, shape=s)),
        after=lambda root, x, y: broadcast_to(applied(x, y), root.shape),
        samples=[
            shapes(dtype + "m n", dtype + "n", s=lambda m, n: (m, n)),
            shapes(dtype + "m 1", dtype + "1 n", s=lambda m, n: (m, n)),
            shapes(dtype + "n", dtype + "1 n", s=lambda m, n: (m, n)),
        ],
        near_misses=[lambda x, y: applied(x, y)],
        tolerance=ROUNDING if op is ops.pow else EXACT,
    )


def _binary_of_wide_constant(op: OpDef, swapped: bool) -> Rule:
    # x op [c, c, ...] -> expand(x op c), which is x op c where x is as large
    def applied(x: Node, c: Node) -> Node:
        return op(c, x) if swapped else op(x, c)

    dtype = torch.int64 if op.name.startswith("bit") else torch.float32
    operand = f"{DTYPE_NAMES[dtype]}: "
    return Rule(
        name=f"{op.name}-of-wide-constant{'-left' if swapped else ''}".replace("_", "-"),
        before=lambda x, c, s, t: applied(x, full(shape=s, value=c, dtype=t)),
        when=lambda root, x, s: s != () and x.op is not full,
        after=lambda root, x, c, t: broadcast_to(applied(x, scalar(c, t)), root.shape),
        samples=[
            shapes(operand + "m n", c=3, s=lambda n: (n,), t=dtype),
            shapes(operand + "n", c=3, s=lambda m: (m, 1), t=dtype),
        ],
        near_misses=[shapes(operand + "m n", c=3, s=(), t=dtype)],
        tolerance=ROUNDING if op is ops.pow else EXACT,
    )


RULES = (
    *(_binary_of_wide_constant(op, swapped=False) for op in BINARY),
    *(_binary_of_wide_constant(op, swapped=True) for op in BINARY if op not in COMMUTATIVE),
    *map(_unary_of_expand, UNARY),
    *(_binary_of_expand(op, swapped=False) for op in BINARY),
    *(_binary_of_expand(op, swapped=True) for op in BINARY if op not in COMMUTATIVE),
    # cast(expand(x)) -> expand(cast(x))
    Rule(
        name="cast-of-expanded",
        before=lambda x, s, t: cast(expand(x, shape=s), dtype=t),
        after=lambda x, s, t: expand(cast(x, dtype=t), shape=s),
        samples=[shapes("int: 1 n", s=lambda m, n: (m, n), t=torch.float32)],
        near_misses=[lambda x: cast(x, dtype=torch.float32)],
    ),
    # where(expand(p), x, y) -> expand(where(p, x, y))
    Rule(
        name="where-of-expanded-condition",
        before=lambda p, x, y, s: where(expand(p, shape=s), x, y),
        after=lambda root, p, x, y: broadcast_to(where(p, x, y), root.shape),
        samples=[shapes("bool: 1 n", "m n", "n", s=lambda m, n: (m, n)), shapes("bool: 1", "1", "1", s=lambda m: (m,))],
        near_misses=[lambda p, x, y: where(p, x, y)],
    ),
    # where(p, expand(x), y) -> expand(where(p, x, y))
    Rule(
        name="where-of-expanded-left",
        before=lambda p, x, y, s: where(p, expand(x, shape=s), y),
        after=lambda root, p, x, y: broadcast_to(where(p, x, y), root.shape),
        samples=[shapes("bool: m n", "1 n", "n", s=lambda m, n: (m, n)), shapes("bool: 1", "1", "1", s=lambda m: (m,))],
        near_misses=[lambda p, x, y: where(p, x, y)],
    ),
    # where(p, [c, c, ...], y) -> expand(where(p, c, y))
    Rule(
        name="where-of-wide-constant-left",
        before=lambda p, y, c, s, t: where(p, full(shape=s, value=c, dtype=t), y),
        when=lambda s: s != (),
        after=lambda root, p, y, c, t: broadcast_to(where(p, scalar(c, t), y), root.shape),
        samples=[shapes("bool: m 1", "f32: 1", c=0.5, s=lambda n: (n,), t=torch.float32)],
        near_misses=[shapes("bool: m n", "f32: n", c=0.5, s=(), t=torch.float32)],
    ),
    # where(p, x, [c, c, ...]) -> expand(where(p, x, c))
    Rule(
        name="where-of-wide-constant-right",
        before=lambda p, x, c, s, t: where(p, x, full(shape=s, value=c, dtype=t)),
        when=lambda s: s != (),
        after=lambda root, p, x, c, t: broadcast_to(where(p, x, scalar(c, t)), root.shape),
        samples=[shapes("bool: m 1", "f32: 1", c=0.5, s=lambda n: (n,), t=torch.float32)],
        near_misses=[shapes("bool: m n", "f32: n", c=0.5, s=(), t=torch.float32)],
    ),
    # where(p, x, expand(y)) -> expand(where(p, x, y))
    Rule(
        name="where-of-expanded-right",
        before=lambda p, x, y, s: where(p, x, expand(y, shape=s)),
        after=lambda root, p, x, y: broadcast_to(where(p, x, y), root.shape),
        samples=[shapes("bool: m n", "n", "1 n", s=lambda m, n: (m, n)), shapes("bool: 1", "1", "1", s=lambda m: (m,))],
        near_misses=[lambda p, x, y: where(p, x, y)],
    ),
)
