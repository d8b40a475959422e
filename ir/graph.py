"""A graph: named inputs, outputs, and the mutations owed to the caller. A value, interned like its nodes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from .node import Interned, Node, keep_first, topological
from .types import SymbolRange

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Mutation:
    """A tensor of the caller's that the graph changes: ``target`` (an input or weight node) becomes ``value``."""

    target: Node
    value: Node


class Graph(Interned):
    """A graph of nodes. Equal graphs are one object.

    Attributes:
        inputs: ``input`` nodes, in the order in which they are passed.
        outputs: the nodes returned, in order.
        mutations: what the caller's tensors become.
        symbols: the size symbols and their ranges.
    """

    __slots__ = ("__dict__", "__weakref__", "inputs", "mutations", "outputs", "symbols")

    inputs: tuple[Node, ...]
    outputs: tuple[Node, ...]
    mutations: tuple[Mutation, ...]
    symbols: tuple[SymbolRange, ...]

    def __new__(
        cls,
        inputs: Iterable[Node],
        outputs: Iterable[Node],
        mutations: Iterable[Mutation] = (),
        symbols: Iterable[SymbolRange] = (),
    ) -> Graph:
        """The graph of these parts; one object for equal parts."""
        key = (tuple(inputs), tuple(outputs), tuple(mutations), tuple(sorted(symbols, key=lambda s: str(s.symbol))))
        found = _INTERNED.get(key)
        if found is not None:
            return found
        graph = object.__new__(cls)
        for name, value in zip(("inputs", "outputs", "mutations", "symbols"), key, strict=True):
            object.__setattr__(graph, name, value)
        return keep_first(_INTERNED, key, graph)

    @cached_property
    def roots(self) -> tuple[Node, ...]:
        """Every node the graph must compute: outputs, then mutation values."""
        return self.outputs + tuple(m.value for m in self.mutations)

    @cached_property
    def root_set(self) -> frozenset[Node]:
        """:attr:`roots`, to ask whether a node is one of them."""
        return frozenset(self.roots)

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes, operands before users: inputs first, used or not; weights that are only written to last."""
        return tuple(topological(self.inputs + self.roots + tuple(m.target for m in self.mutations)))

    @cached_property
    def users(self) -> Mapping[Node, tuple[Node, ...]]:
        """The nodes that read each node, without repeats, in order."""
        found: dict[Node, dict[Node, None]] = {node: {} for node in self.nodes}
        for node in self.nodes:
            for operand in node.inputs:
                found[operand][node] = None
        return {node: tuple(readers) for node, readers in found.items()}

    def weights(self) -> tuple[Node, ...]:
        """The ``weight`` nodes, in order of use."""
        return tuple(node for node in self.nodes if node.op.name == "weight")

    def with_roots(self, replace: Callable[[Node], Node]) -> Graph:
        """The graph with every root passed through ``replace``."""
        return Graph(
            self.inputs,
            (replace(node) for node in self.outputs),
            (Mutation(m.target, replace(m.value)) for m in self.mutations),
            self.symbols,
        )

    def rebuild(self, transform: Callable[[Node, tuple[Node, ...]], Node]) -> Graph:
        """The graph with each node replaced by ``transform(node, new operands)``, operands first."""
        new: dict[Node, Node] = {}
        for node in self.nodes:
            new[node] = transform(node, tuple(new[x] for x in node.inputs))
        return self.with_roots(new.__getitem__)

    def __repr__(self) -> str:
        return f"<graph of {len(self.nodes)} nodes>"


_INTERNED: weakref.WeakValueDictionary[tuple[Any, ...], Graph] = weakref.WeakValueDictionary()
