"""Graphs of artifacts: weights under the names that the file has them by, and nothing in them that could be run.

Text that is read back has passed the type rules of ``ir``. What those leave open is held here: names, and which of
PyTorch's operators a graph may call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...ir import ops
from ...ir.errors import ArtifactError, TypeRuleError
from ...ir.graph import Graph, Mutation
from ...ir.node import Node, Trait
from ...ir.parse import parse_graph
from .names import identifier, is_tensor_name, tensor_name

MOST_TEXT = 256 << 20  # characters
_TARGET = re.compile(r"aten\.[A-Za-z0-9_]{1,100}\.[A-Za-z0-9_]{1,100}")
_OUTSIDE = {"filename"}  # arguments of the operators that read or write files
_TEMPLATES = ("operand", "value", "list")


def renamed(graph: Graph, weights: Mapping[str, str]) -> Graph:
    """The graph with its weights under other names, and those of inputs replaced that an artifact may not hold."""
    new: dict[Node, Node] = {}
    for node in graph.nodes:
        new[node] = (
            _renamed(node, weights, len(new))
            if node.has(Trait.SOURCE)
            else node.with_inputs(tuple(new[x] for x in node.inputs))
        )
        new[node].keep_origin(node.origin)
    mutations = [Mutation(new[m.target], new[m.value]) for m in graph.mutations]
    return Graph((new[x] for x in graph.inputs), (new[x] for x in graph.outputs), mutations, graph.symbols)


def _renamed(node: Node, weights: Mapping[str, str], number: int) -> Node:
    name, type_ = str(node.attrs["name"]), node.tensor_type
    if node.is_a(ops.weight):
        return ops.weight(name=weights[name], shape=type_.shape, dtype=type_.dtype)
    return node if is_tensor_name(name) else ops.input(name=f"input.{number}", shape=type_.shape, dtype=type_.dtype)


def read_graph(text: object) -> Graph:
    """A graph from its text, with nothing in it that an artifact may not hold.

    Raises:
        ArtifactError: it holds a name, or calls an operator, that it may not.
        ParseError: the text is not that of a graph.
    """
    if not isinstance(text, str) or len(text) > MOST_TEXT:
        raise ArtifactError("the text of a graph is missing or too long")
    graph = parse_graph(text)
    check_graph(graph)
    return graph


def check_graph(graph: Graph) -> None:
    """Raise ArtifactError for a name, or an operator of PyTorch's, that an artifact may not hold."""
    for range_ in graph.symbols:
        identifier(str(range_.symbol), "the name of a size")
    for node in graph.nodes:
        if node.has(Trait.SOURCE):
            tensor_name(node.attrs["name"])
        if node.is_a(ops.aten_call):
            _check_call(node)
        for value in node.attrs.values():
            if isinstance(value, Graph):
                check_graph(value)


def _check_call(node: Node) -> None:
    target = node.attrs["target"]
    if not isinstance(target, str) or not _TARGET.fullmatch(target):
        raise ArtifactError(f"a graph calls {ascii(target)[:80]}, which is no operator of PyTorch's own")
    try:
        schema = ops.resolve(target)._schema
    except TypeRuleError as error:
        raise ArtifactError(f"a graph calls an operator that is not there: {error}") from None
    names = [argument.name for argument in schema.arguments]
    if _OUTSIDE & set(names):
        raise ArtifactError(f"a graph calls {target}, which reads or writes files")
    args, kwargs = node.attrs["args"], node.attrs["kwargs"]
    several = isinstance(args, tuple) and isinstance(kwargs, tuple) and len(args) <= len(names)
    if not several or not all(_is_template(x, node) for x in args):  # type: ignore[union-attr]
        raise ArtifactError(f"a graph calls {target} with arguments that it does not have")
    for pair in kwargs:  # type: ignore[union-attr]
        if not isinstance(pair, tuple) or len(pair) != 2 or pair[0] not in names or not _is_template(pair[1], node):
            raise ArtifactError(f"a graph calls {target} with arguments that it does not have")


def _is_template(template: Any, node: Node) -> bool:
    """Whether it is how an argument is written: an operand by number, a value, or a list of such."""
    if not isinstance(template, tuple) or not template or template[0] not in _TEMPLATES:
        return False
    kind, *rest = template
    if kind == "list":
        return all(_is_template(x, node) for x in rest)
    if len(rest) != 1:
        return False
    return kind == "value" or (type(rest[0]) is int and 0 <= rest[0] < len(node.inputs))
