"""What a graph means: the slow, obvious evaluation that everything else is compared with.

One node after another is given to its operator's ``evaluate``, in PyTorch, and its result is checked against the node's
type. With ``dtype=torch.float64`` every floating input, weight and attribute is widened first: the reference by which
the numeric contract judges.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import sympy
import torch

from . import ops
from .binding import Sizes, bind_symbols
from .errors import GraphError, InputError
from .graph import Graph, Weights
from .node import Node, Trait, result_types, topological
from .types import DTYPE_NAMES, TensorType, concrete

__all__ = ["Results", "bind_symbols", "evaluate", "interpret"]


class Results(NamedTuple):
    """What a graph returned, and what its mutation targets became, each in the graph's order."""

    outputs: tuple[torch.Tensor, ...]
    mutations: tuple[torch.Tensor, ...]


def interpret(
    graph: Graph,
    inputs: Sequence[torch.Tensor],
    weights: Weights,
    *,
    sizes: Mapping[sympy.Symbol, int] | None = None,
    dtype: torch.dtype | None = None,
    rounded: Collection[torch.dtype] = (),
) -> Results:
    """Evaluate a graph. The arguments are not changed, and the results share no memory with them.

    Args:
        graph: what to evaluate.
        inputs: one tensor for each of the graph's inputs, of its shape and dtype.
        weights: tensors by the names of the graph's weights; others may be there too.
        sizes: sizes of symbols that the inputs' shapes do not tell.
        dtype: compute in this floating-point dtype throughout, whatever the graph says: ``torch.float64`` for the
            reference. Complex values become complex numbers of it.
        rounded: dtypes whose values are rounded to them all the same, and then held in ``dtype``.

    Raises:
        InputError: an input or weight is missing or has another shape or dtype than the graph says, or a size is out of
            its symbol's range.
        GraphError: an operator's result is not of its node's type.
    """
    bound = bind_symbols(graph, [x.shape for x in inputs], sizes)
    run = _Run(bound, weights, dtype, rounded)
    for node, tensor in zip(graph.inputs, inputs, strict=True):
        run.known[node] = run.source(node, tensor)
    own = run.results(graph.nodes, graph.roots)
    return Results(own[: len(graph.outputs)], own[len(graph.outputs) :])


def evaluate(nodes: Sequence[Node], weights: Weights, *, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """The values of nodes that depend on no input and no size: constants, and what is derived from weights alone.

    Raises:
        InputError: a weight is missing or has another shape or dtype than its node says.
        GraphError: a node depends on an input.
    """
    return list(_Run({}, weights, dtype).results(tuple(topological(list(nodes))), tuple(nodes)))


class _Run:
    """One evaluation: the sizes and weights it is for, the values known so far."""

    def __init__(
        self, sizes: Sizes, weights: Weights, dtype: torch.dtype | None, rounded: Collection[torch.dtype] = ()
    ) -> None:
        self.sizes = sizes
        self.weights = weights
        self.dtype = dtype
        self.rounded = rounded
        self.known: dict[Node, Any] = {}
        self.arguments: list[torch.Tensor] = []

    def results(self, nodes: Sequence[Node], roots: Sequence[Node]) -> tuple[torch.Tensor, ...]:
        """:meth:`roots`, sharing no memory with the arguments: a caller may write to an output, or apply a mutation."""
        for node in nodes:
            if node.op is ops.weight:
                self.known[node] = self.source(node, self._weight(str(node.attrs["name"])))
        with torch.no_grad(), self._beside_arguments():
            values = self.roots(nodes, roots)
        taken = {x.untyped_storage().data_ptr() for x in self.arguments}
        return tuple(x.clone() if x.untyped_storage().data_ptr() in taken else x for x in values)

    def _weight(self, name: str) -> torch.Tensor:
        if name not in self.weights:
            raise InputError(f"there is no weight {name!r}")
        return self.weights[name]

    def _beside_arguments(self) -> AbstractContextManager[Any]:
        """Operators create their tensors on the device of the arguments."""
        device = self.arguments[0].device if self.arguments else torch.device("cpu")
        return nullcontext() if device.type == "cpu" else device

    def roots(self, nodes: Sequence[Node], roots: Sequence[Node]) -> list[torch.Tensor]:
        """The values of the roots, of ``nodes`` that are all they need, operands first; each is freed once unused."""
        uses = dict.fromkeys(nodes, 0)
        for x in (*(x for node in nodes for x in node.inputs), *roots):
            uses[x] += 1
        for node in nodes:
            if node not in self.known:
                self.known[node] = self._evaluate(node)
            for x in node.inputs:
                uses[x] -= 1
                if not uses[x]:
                    del self.known[x]
        return [self.known[root] for root in roots]

    def source(self, node: Node, tensor: torch.Tensor) -> torch.Tensor:
        """An input's or weight's tensor, checked, in the dtype of this run.

        Raises:
            InputError: its dtype or shape is another than the node's.
        """
        what = f"{node.op.name} {node.attrs['name']!r}"
        shape = tuple(concrete(d, self.sizes) for d in node.shape)
        if tuple(tensor.shape) != shape:
            raise InputError(f"{what} is {list(tensor.shape)}, the graph takes {node.type}")
        # where the dtype is replaced, values that were widened before are welcome
        if tensor.dtype != node.dtype and self._wide(tensor.dtype) != self._wide(node.dtype):
            raise InputError(f"{what} is {tensor.dtype}, the graph takes {DTYPE_NAMES[node.dtype]}")
        self.arguments.append(tensor)
        return tensor.to(self._wide(node.dtype))

    def _evaluate(self, node: Node) -> Any:
        if node.op is ops.input:
            raise GraphError(f"the input {node.attrs['name']!r} has no value: it is not an input of the graph")
        operands = [self.known[x] for x in node.inputs]
        value = self._region(node, operands) if node.has(Trait.REGION) else self._apply(node, operands)
        self._check(node, value)
        return self._round(node, value) if self.rounded else value

    def _round(self, node: Node, value: Any) -> Any:
        """A node's value, or values, with those of dtypes that are rounded no finer than these."""
        values = value if isinstance(value, tuple) else (value,)
        pairs = zip(values, result_types(node.type), strict=True)
        found = tuple(x.to(t.dtype).to(x.dtype) if t.dtype in self.rounded else x for x, t in pairs)
        return found if isinstance(value, tuple) else found[0]

    def _apply(self, node: Node, operands: Sequence[torch.Tensor]) -> Any:
        attrs = {name: self._concrete(value) for name, value in node.attrs.items()}
        value = node.op.evaluate(*operands, **attrs)
        if self.dtype is not None and node.has(Trait.OPAQUE):
            # PyTorch may have chosen a dtype by itself
            values = [x.to(self._wide(x.dtype)) for x in (value if isinstance(value, tuple) else (value,))]
            return tuple(values) if isinstance(value, tuple) else values[0]
        return value

    def _region(self, node: Node, operands: Sequence[torch.Tensor]) -> Any:
        region = node.attrs["region"]
        assert isinstance(region, Graph)
        inner = _Run(self.sizes, {}, self.dtype, self.rounded)
        inner.known = dict(zip(region.inputs, operands, strict=True))
        values = inner.roots(region.nodes, region.outputs)
        return values[0] if isinstance(node.type, TensorType) else tuple(values)

    def _concrete(self, value: Any) -> Any:
        """An attribute for this run: numbers for dims, and its floating-point dtype for all others."""
        if isinstance(value, tuple):
            return tuple(map(self._concrete, value))
        if isinstance(value, sympy.Expr):
            return concrete(value, self.sizes)
        return self._wide(value) if isinstance(value, torch.dtype) else value

    def _wide(self, dtype: torch.dtype) -> torch.dtype:
        if self.dtype is None or not (dtype.is_floating_point or dtype.is_complex):
            return dtype
        return self.dtype if dtype.is_floating_point else self.dtype.to_complex()

    def _check(self, node: Node, value: Any) -> None:
        values = value if isinstance(value, tuple) else (value,)
        expected = [
            (tuple(concrete(d, self.sizes) for d in t.shape), self._wide(t.dtype)) for t in result_types(node.type)
        ]
        found = [(tuple(x.shape), x.dtype) for x in values]
        if found != expected:
            raise GraphError(f"{node.op.name} of type {node.type} gave {found}, expected {expected}")
