"""The text of a graph: a format that is read back, not a log.

::

    graph(s0 in [1, 512]) {
      %x = input "x" : f32[s0, 128]
      %fc1.weight = weight "fc1.weight" : f32[128, 128]
      %0 = linear(%x, %fc1.weight) : f32[s0, 128]
      mutate %x = %0
      return %0
    }

Attributes follow the operands as ``name=value`` and are left out where they equal their default; tuples are written
``[1, 2]``, several results ``(f32[2], i64[2])``, a region as a graph of its own. Names of values begin with ``%`` and
mean nothing: equal graphs are one object whatever their values were called. ``parse_graph(print_graph(g)) is g``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import sympy
import torch

from .dims import print_dim
from .errors import GraphError
from .graph import Graph
from .node import WILDCARD, Node, Trait, Var, attr_key
from .parse import parse_graph, parse_type
from .parse_values import MAX_DEPTH
from .types import DTYPE_NAMES, TensorType, TupleType, Type

__all__ = ["parse_graph", "parse_type", "print_graph", "print_node", "print_type", "value_names"]


@dataclass(frozen=True)
class _Style:
    """How far in a line stands, how deep values are nested, whether origins are written."""

    origins: bool = False
    regions: bool = True
    indent: str = ""
    depth: int = 0

    def inside(self, indent: str = "") -> _Style:
        if self.depth >= MAX_DEPTH:
            raise GraphError(f"attributes nested more than {MAX_DEPTH} deep have no text")
        return _Style(self.origins, self.regions, self.indent + indent, self.depth + 1)


def print_graph(graph: Graph, *, origins: bool = False) -> str:
    """The text of a graph, one line a node; with ``origins``, each followed by where it came from, as a comment.

    Raises:
        GraphError: a value has no text: a dtype that is not in ``types.DTYPES``, or attributes nested too deep.
    """
    return _graph(graph, _Style(origins)) + "\n"


def print_type(type_: Type) -> str:
    """The text of a type: ``f32[s0, 128]``."""
    return _type(type_)


def print_node(graph: Graph, node: Node) -> str:
    """The line of one node of a graph, for messages: a region is written as ``graph {...}``."""
    return _node(node, value_names(graph), _Style(regions=False))


def value_names(graph: Graph) -> dict[Node, str]:
    """What each node is called in text: inputs, weights and variables after themselves, all others by number."""
    names: dict[Node, str] = {}
    taken: dict[str, int] = {}
    numbered = 0
    for node in graph.nodes:
        if Trait.SOURCE in node.op.traits:
            names[node] = "%" + _free(_readable(node), taken)
        elif node.op is WILDCARD:
            names[node] = f"?{node.attrs['name']}"
        else:
            names[node] = f"%{numbered}"
            numbered += 1
    return names


def _readable(node: Node) -> str:
    """A source's own name as far as the text allows, never beginning with a digit, as numbered values do."""
    name = re.sub(r"[^A-Za-z0-9_.]", "_", str(node.attrs["name"]))
    return name if name and not name[0].isdigit() else f"{'arg' if node.op.name == 'input' else 'w'}{name}"


def _free(base: str, taken: dict[str, int]) -> str:
    name = base
    while name in taken:
        taken[base] += 1
        name = f"{base}.{taken[base]}"
    taken[name] = 1
    return name


# --- lines ------------------------------------------------------------------------------------------------------------


def _graph(graph: Graph, style: _Style) -> str:
    if not style.regions:
        return "graph {...}"
    names = value_names(graph)
    ranges = f"({', '.join(map(str, graph.symbols))})" if graph.symbols else ""
    body = "\n".join(f"{style.indent}  {line}" for line in _body(graph, names, style.inside("  ")))
    return f"graph{ranges} {{\n{body}\n{style.indent}}}"


def _body(graph: Graph, names: dict[Node, str], style: _Style) -> Iterator[str]:
    for node in graph.nodes:
        if node.op is WILDCARD:
            continue
        yield _node(node, names, style) + (_origin(node) if style.origins else "")
    for mutation in graph.mutations:
        yield f"mutate {names[mutation.target]} = {names[mutation.value]}"
    yield f"return {', '.join(names[node] for node in graph.outputs)}".rstrip()


def _node(node: Node, names: dict[Node, str], style: _Style) -> str:
    if node.op is WILDCARD:
        return names[node]
    if Trait.SOURCE in node.op.traits:
        right = f"{node.op.name} {json.dumps(node.attrs['name'])}"
    else:
        right = f"{node.op.name}({', '.join([*(names[x] for x in node.inputs), *_attributes(node, style)])})"
    return f"{names[node]} = {right} : {_type(node.type)}"


def _attributes(node: Node, style: _Style) -> Iterator[str]:
    """``name=value`` of what differs from its default; regions last, since they take many lines."""
    given = [(k, v) for k, v in node.attrs.items() if attr_key(v) != attr_key(node.op.attrs.get(k))]
    for name, value in sorted(given, key=lambda pair: isinstance(pair[1], Graph)):
        yield f"{name}={_value(value, style)}"


def _origin(node: Node) -> str:
    parts = (node.origin.module, node.origin.source, node.origin.made_by and f"by {node.origin.made_by}")
    # on one line whatever the model's names hold
    words = [" ".join(part.split()) for part in parts if part]
    return f"  # {', '.join(words)}" if words else ""


# --- values -----------------------------------------------------------------------------------------------------------


def _value(value: Any, style: _Style) -> str:
    if isinstance(value, tuple):
        inside = style.inside()
        return f"[{', '.join(_value(v, inside) for v in value)}]"
    if isinstance(value, Graph):
        return _graph(value, style)
    if isinstance(value, TensorType | TupleType):
        return _type(value)
    return _scalar(value)


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | sympy.Expr):
        return print_dim(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    return f"?{value.name}" if isinstance(value, Var) else _constant(value)


def _constant(value: Any) -> str:
    if isinstance(value, torch.dtype):
        return _dtype(value)
    kind = {torch.device: "device", torch.layout: "layout", torch.memory_format: "memory_format"}[type(value)]
    return f"{kind} {json.dumps(str(value).removeprefix('torch.'))}"


def _dtype(dtype: torch.dtype) -> str:
    if dtype not in DTYPE_NAMES:
        raise GraphError(f"{dtype} has no text: it is not in types.DTYPES")
    return DTYPE_NAMES[dtype]


def _type(type_: Type) -> str:
    if isinstance(type_, TupleType):
        return f"({', '.join(map(_type, type_.items))})"
    if isinstance(type_, TensorType):
        return f"{_dtype(type_.dtype)}[{', '.join(map(print_dim, type_.shape))}]"
    return "?"
