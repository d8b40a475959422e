"""Patterns read as data: their variables, and the node that one describes for given values of these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..ir import ops
from ..ir.errors import SmeltError, TypeRuleError
from ..ir.node import WILDCARD, Node, OpDef, Var, topological
from ..ir.types import UnknownType
from .pattern import ANY, REST, Bindings, Near, is_number


def variables(pattern: Node) -> dict[str, OpDef | None]:
    """The variables of a pattern in order of appearance: ``WILDCARD`` for an operand, ``REST``, None for an attribute.

    Raises:
        SmeltError: a variable is used as two of these.
    """
    found: dict[str, OpDef | None] = {}
    for node in topological((pattern,)):
        kind = node.op if node.op in (WILDCARD, REST) else None
        names = [v.name for v in _attr_variables(tuple(node.attrs.values()))]
        for name in [str(node.attrs["name"])] if kind else names:
            if name != ANY.name and found.setdefault(name, kind) is not kind:
                raise SmeltError(f"the variable {name} is used as an operand and as something else")
    return found


def _attr_variables(value: Any) -> Iterator[Var]:
    if isinstance(value, Var):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _attr_variables(item)


def instantiate(pattern: Node, bindings: Bindings) -> Node:
    """The node that a pattern describes for given nodes and values of its variables.

    A scalar constant takes the dtype of its neighbours.

    Raises:
        TypeRuleError: the operators refuse these operands, or the pattern leaves an attribute open.
    """
    made: dict[Node, Any] = {}
    for node in topological((pattern,)):
        made[node] = _instance(node, made, bindings)
    found = made[pattern]
    if not isinstance(found, Node):
        raise TypeRuleError("the dtype of a constant follows from nothing")
    return found


def _instance(pattern: Node, made: dict[Node, Any], bindings: Bindings) -> Any:
    if pattern.op in (WILDCARD, REST):
        return bindings[str(pattern.attrs["name"])]
    if not isinstance(pattern.type, UnknownType):
        return pattern
    if pattern.op is ops.full and pattern.attrs["dtype"] == ANY:
        return _Untyped(_filled(pattern.attrs["value"], bindings))
    operands: list[Any] = []
    for x in pattern.inputs:
        operands.extend(made[x] if x.op is REST else [made[x]])
    typed = [x for x in operands if isinstance(x, Node)]
    nodes = (x.like(typed) if isinstance(x, _Untyped) else x for x in operands)
    return pattern.op(*nodes, **{name: _filled(value, bindings) for name, value in pattern.attrs.items()})


@dataclass(frozen=True)
class _Untyped:
    """A scalar constant whose dtype its neighbours will say."""

    value: Any

    def like(self, neighbours: list[Node]) -> Node:
        if not neighbours:
            raise TypeRuleError("the dtype of a constant follows from nothing")
        dtype = neighbours[-1].dtype  # the last: the first operand of `where` is its condition
        number = is_number(self.value)
        return ops.scalar(float(self.value) if number and dtype.is_floating_point else self.value, dtype)


def _filled(value: Any, bindings: Bindings) -> Any:
    if isinstance(value, Near):
        return value.value
    if isinstance(value, Var):
        if value == ANY:
            raise TypeRuleError("the pattern leaves an attribute open")
        return bindings[value.name]
    return tuple(_filled(v, bindings) for v in value) if isinstance(value, tuple) else value
