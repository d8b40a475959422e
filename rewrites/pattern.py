"""Patterns: nodes with variables, matched against nodes.

A pattern is written with the IR's own constructors: an operator called on variables is a pattern. What a pattern may
hold beside operators:

- a variable where an operand is expected stands for any node, where an attribute is expected for any value; used
  twice, it stands for the same node or value both times; ``ANY`` is bound to nothing and stands for anything;
- :func:`rest` stands for the operands that are left, none included;
- :func:`constant` stands for a scalar constant, however it is shaped, as long as it does not widen the result;
- :func:`near` stands for a number that was written with few digits.

Operands of a commutative operator match in either order. A pattern may be matched through casts: those between a half
type and float32 are then passed over, as models in half types compute one step or another in float32. Matching is
bounded by the size of the pattern: it never walks the graph below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..ir import ops
from ..ir.errors import TypeRuleError
from ..ir.node import REQUIRED, WILDCARD, Node, OpDef, Trait, Var, attr_key
from ..ir.types import UNKNOWN, broadcast_shapes

Bindings = Mapping[str, Any]  # a variable's node, or attribute value; the tuple of nodes that `rest` stands for

ANY = Var("_")

# Matched in both orders of their operands. NaN is NaN on either side of maximum and minimum.
COMMUTATIVE = frozenset(
    {ops.add, ops.mul, ops.maximum, ops.minimum, ops.eq, ops.ne, ops.bit_and, ops.bit_or, ops.bit_xor}
)


def _pattern_only(*_: Any, **__: Any) -> Any:
    raise TypeRuleError("a pattern has no value")


REST = OpDef("rest", infer=lambda name: UNKNOWN, evaluate=_pattern_only, arity=(0, 0), attrs={"name": REQUIRED})


def rest(name: str) -> Node:
    """The pattern of all operands from here on, none included. It is the last operand of its operator."""
    return REST(name=name)


def constant(value: Any) -> Node:
    """The pattern of a scalar constant of any dtype: ``value`` is a number, a ``Var`` or :func:`near`."""
    return ops.full(shape=(), value=value, dtype=ANY)


@dataclass(frozen=True)
class Near(Var):
    """Stands for numbers within a relative ``tolerance`` of ``value``; bound to nothing."""

    value: float
    tolerance: float


def near(value: float, tolerance: float = 1e-6) -> Near:
    """The attribute pattern of a number that models write with more or fewer digits, such as sqrt(2 / pi)."""
    return Near("_", value, tolerance)


@dataclass(frozen=True)
class Match:
    """A node that a pattern fits, and what its variables stand for."""

    node: Node
    bindings: Bindings

    def __bool__(self) -> bool:
        return True


@dataclass(frozen=True)
class Mismatch:
    """A node where a pattern failed, and why: the attempt that got furthest.

    ``agreed`` is how many operators of the pattern had matched by then.
    """

    node: Node
    reason: str
    agreed: int = 0

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return f"{self.reason}, at {brief(self.node)}"


class Furthest:
    """Collects mismatches and keeps the one that was reached after the most agreement."""

    def __init__(self) -> None:
        self._agreed = -1
        self._node: Node | None = None
        self._reason: Callable[[], str] = str

    def note(self, agreed: int, node: Node, reason: Callable[[], str]) -> None:
        """A mismatch found after ``agreed`` nodes of the pattern had matched."""
        if agreed > self._agreed:
            self._agreed, self._node, self._reason = agreed, node, reason

    def mismatch(self, default: Node) -> Mismatch:
        """The furthest mismatch, in words."""
        return Mismatch(self._node or default, self._reason(), max(self._agreed, 0))


def match(pattern: Node, node: Node) -> Match | Mismatch:
    """The first way in which the pattern fits the node, or why there is none."""
    furthest = Furthest()
    for bindings in matches(pattern, node, furthest):
        return Match(node, bindings)
    return furthest.mismatch(node)


def matches(
    pattern: Node, node: Node, furthest: Furthest | None = None, through_casts: bool = False
) -> Iterator[dict[str, Any]]:
    """The bindings of every way in which the pattern fits the node; operands in the order written come first."""
    states: list[_State] = [_State([(pattern, node)], {}, furthest, through_casts)]
    while states:
        state = states.pop()
        while state.todo:
            want, have = state.todo.pop()
            orders = state.step(want, have)
            if not orders:
                break
            states.extend(state.branch(order) for order in orders[1:])
            state.todo.extend(reversed(orders[0]))
        else:
            yield state.bound


_Pair = tuple[Node, Any]  # of a pattern and the node, or the tuple of nodes, that it has to fit


class _State:
    """One attempt: the pairs still to compare and the variables bound so far."""

    __slots__ = ("agreed", "bound", "furthest", "through_casts", "todo")

    def __init__(
        self, todo: list[_Pair], bound: dict[str, Any], furthest: Furthest | None, through_casts: bool, agreed: int = 0
    ) -> None:
        self.todo, self.bound, self.furthest, self.agreed = todo, bound, furthest, agreed
        self.through_casts = through_casts

    def branch(self, order: list[_Pair]) -> _State:
        todo = [*self.todo, *reversed(order)]
        return _State(todo, dict(self.bound), self.furthest, self.through_casts, self.agreed)

    def step(self, want: Node, have: Any) -> list[list[_Pair]]:
        """The orders in which the operands may be compared next; none where the two do not fit."""
        if self.through_casts and want.op is not ops.cast and want.op is not REST:
            have = without_casts(have, narrowing=want.op is not WILDCARD)
        if want.op is WILDCARD or want.op is REST:
            fits = self.bind(str(want.attrs["name"]), have, have)
            return [[]] if fits else []
        if want.op is not have.op:
            return self.fail(have, lambda: f"expected {want.op.name}, found {have.op.name}")
        if not self._attrs_fit(want, have):
            return []
        self.agreed += 1
        return self._orders(want, have)

    def fail(self, node: Any, reason: Callable[[], str]) -> list[list[_Pair]]:
        if self.furthest is not None and isinstance(node, Node):
            self.furthest.note(self.agreed, node, reason)
        return []

    def bind(self, name: str, value: Any, at: Any) -> bool:
        """Let a variable stand for a value, which must be the one that it stands for already, if any."""
        if name == ANY.name:
            return True
        if name not in self.bound:
            self.bound[name] = value
            return True
        held = self.bound[name]
        if attr_key(held) == attr_key(value):
            return True
        self.fail(at, lambda: f"{name} stands for {_shown(held)} and cannot be {_shown(value)} too")
        return False

    def _attrs_fit(self, want: Node, have: Node) -> bool:
        scalar = _is_scalar(want)
        for name, pattern in want.attrs.items():
            if scalar and name == "shape":
                continue  # compared with what the user of the constant needs
            value = have.attrs[name]
            if not self._attr_fits(pattern, value, have) and not self._fits_normalised(want, have, name):
                self._fail_attr(have, name, value, pattern)
                return False
        return True

    def _fail_attr(self, node: Node, name: str, value: Any, pattern: Any) -> None:
        self.fail(node, lambda: f"{name} is {value}, not {_shown(pattern)}")

    def _attr_fits(self, pattern: Any, value: Any, at: Node) -> bool:
        if isinstance(pattern, Near):
            return is_number(value) and math.isclose(pattern.value, value, rel_tol=pattern.tolerance)
        if isinstance(pattern, Var):
            return self.bind(pattern.name, value, at)
        if isinstance(pattern, tuple) and isinstance(value, tuple):
            return len(pattern) == len(value) and all(
                self._attr_fits(p, v, at) for p, v in zip(pattern, value, strict=True)
            )
        return _same_literal(pattern, value)

    def _fits_normalised(self, want: Node, have: Node, name: str) -> bool:
        """Whether a literal such as dim=-1 means what the node says, once normalised as the node's own was."""
        normalise, pattern = have.op.normalise, want.attrs[name]
        if normalise is None or isinstance(pattern, Var):
            return False
        try:
            normal = normalise(*(x.type for x in have.inputs), **{**have.attrs, name: pattern})
        except (TypeRuleError, TypeError):
            return False  # an axis that the node does not have, or a variable inside the literal
        return bool(name in normal and attr_key(normal[name]) == attr_key(have.attrs[name]))

    def _orders(self, want: Node, have: Node) -> list[list[_Pair]]:
        patterns, operands = want.inputs, have.inputs
        tail: list[_Pair] = []
        if patterns and patterns[-1].op is REST:
            patterns = patterns[:-1]
            tail = [(want.inputs[-1], operands[len(patterns) :])]
            operands = operands[: len(patterns)]
        if len(patterns) != len(operands):
            least = "at least " if tail else ""
            return self.fail(have, lambda: f"expected {least}{len(patterns)} operands, found {len(have.inputs)}")
        orders = [operands]
        if want.op in COMMUTATIVE and operands[0] is not operands[1]:
            orders.append(operands[::-1])
        narrow = [order for order in orders if _no_scalar_widens(patterns, order, have)]
        if len(narrow) < len(orders):
            self.agreed += 1  # the operand that is a constant does agree
            self.fail(have, lambda: "a constant widens the result")
        return [[*zip(patterns, order, strict=True), *tail] for order in narrow]


def without_casts(node: Node, narrowing: bool = True) -> Node:
    """A node without casts between a half type and float32 around it; ``narrowing`` ones may have to stay."""
    while node.op is ops.cast:
        types = (node.inputs[0].dtype, node.dtype)
        widens = types[0] in ops.HALF and types[1] == torch.float32
        narrows = types[1] in ops.HALF and types[0] == torch.float32
        if not (widens or (narrows and narrowing)):
            return node
        node = node.inputs[0]
    return node


def _is_scalar(pattern: Node) -> bool:
    """Whether a pattern is that of a scalar constant: ``full`` of shape ()."""
    return pattern.op is ops.full and pattern.attrs["shape"] == ()


def _no_scalar_widens(patterns: tuple[Node, ...], operands: tuple[Node, ...], user: Node) -> bool:
    """Whether the user has its shape without the operands that the pattern calls scalars."""
    for i, (pattern, operand) in enumerate(zip(patterns, operands, strict=True)):
        if not _is_scalar(pattern) or operand.op is not ops.full or operand.type.shape == ():
            continue
        others = [x.type.shape for j, x in enumerate(operands) if j != i]
        if not user.has(Trait.POINTWISE) or broadcast_shapes(*others) != user.type.shape:
            return False
    return True


def is_number(value: Any) -> bool:
    """Whether an attribute value is an integer or a float."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same_literal(pattern: Any, value: Any) -> bool:
    """Equality of literals: 1 fits 1.0, for a constant of any dtype is meant, but 0.0 does not fit -0.0."""
    if isinstance(pattern, int | float) and isinstance(value, int | float):
        return pattern == value and math.copysign(1.0, pattern) == math.copysign(1.0, value)
    return bool(attr_key(pattern) == attr_key(value))


def _shown(value: Any) -> str:
    if isinstance(value, Node):
        return brief(value)
    if isinstance(value, Near):
        return f"near {value.value}"
    return value.name if isinstance(value, Var) else str(value)


def brief(node: Node, depth: int = 2) -> str:
    """A node in half a line, for messages: operators down to a depth, and the type."""
    return f"{_brief(node, depth)} : {node.type}"


def _brief(node: Node, depth: int) -> str:
    if node.op in (ops.input, ops.weight, WILDCARD, REST):
        return str(node.attrs["name"])
    if node.op is ops.full:
        return str(node.attrs["value"])
    if not node.inputs:
        return node.op.name
    inner = ", ".join(_brief(x, depth - 1) for x in node.inputs) if depth else "…"
    return f"{node.op.name}({inner})"
