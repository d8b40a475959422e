"""Values of nodes on random inputs: what certificates compare."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import sympy
import torch

from ..ir import ops
from ..ir.graph import Graph
from ..ir.interpret import interpret
from ..ir.node import Node, topological
from ..ir.types import concrete
from .rule import EXACT, Domain

EMPTY = 0.05  # how often a size that is a symbol is 0
EDGES = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0)


class Inputs:
    """Random inputs, weights and sizes for some nodes, drawn from a domain.

    With ``widen`` they are float64 whatever the nodes say, and so is everything computed from them.
    """

    def __init__(self, roots: Sequence[Node], domain: Domain, widen: bool, draw: random.Random) -> None:
        self.domain, self.widen = domain, widen
        symbols = sorted(set(_symbols(roots)), key=str)
        self.sizes = {s: 0 if draw.random() < EMPTY else draw.randint(1, 6) for s in symbols}
        self.generator = torch.Generator().manual_seed(draw.randrange(2**31))
        sources = [x for x in topological(tuple(roots)) if x.op in (ops.input, ops.weight)]
        self.tensors = {x: self._random(x) for x in sources}

    def evaluate(self, node: Node) -> torch.Tensor:
        """The value of a node.

        Raises:
            RuntimeError, IndexError: PyTorch has no value for it, such as the largest of no elements.
        """
        inputs = [x for x in self.tensors if x.op is ops.input]
        weights = {str(x.attrs["name"]): tensor for x, tensor in self.tensors.items() if x.op is ops.weight}
        tensors = [self.tensors[x] for x in inputs]
        dtype = torch.float64 if self.widen else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a variance of no elements, which is part of its meaning
            return interpret(Graph(inputs, (node,)), tensors, weights, sizes=self.sizes, dtype=dtype).outputs[0]

    def _random(self, x: Node) -> torch.Tensor:
        shape = [concrete(dim, self.sizes) for dim in x.shape]
        if x.dtype == torch.bool:
            return torch.randint(0, 2, shape, generator=self.generator).bool()
        if not x.dtype.is_floating_point:
            info = torch.iinfo(x.dtype)
            value = torch.randint(-4 if info.min else 0, 5, shape, generator=self.generator)
            return self._with_edges(value, [info.min, info.max]).to(x.dtype)
        dtype = torch.float64 if self.widen else x.dtype
        value = torch.randn(shape, dtype=torch.float64, generator=self.generator) * 2
        if self.domain is Domain.POSITIVE:
            value = value.abs() + 0.01
        limits = torch.finfo(dtype)
        return self._with_edges(
            value, [*EDGES, limits.max, limits.min, limits.tiny / 4, -limits.tiny / 4, limits.tiny]
        ).to(dtype)

    def _with_edges(self, value: torch.Tensor, edges: Sequence[float]) -> torch.Tensor:
        """``value`` with one element in five replaced by an edge value, where the domain has any."""
        if self.domain is not Domain.ANY:
            return value
        choice = torch.randint(0, len(edges), value.shape, generator=self.generator)
        chosen = torch.tensor(edges, dtype=value.dtype)[choice]
        return torch.where(torch.rand(value.shape, generator=self.generator) < 0.2, chosen, value)


def _symbols(roots: Sequence[Node]) -> Iterator[sympy.Symbol]:
    """The size symbols in the attributes of the roots and of everything below."""
    for node in topological(tuple(roots)):
        waiting: list[Any] = list(node.attrs.values())
        while waiting:
            value = waiting.pop()
            if isinstance(value, tuple):
                waiting.extend(value)
            elif isinstance(value, sympy.Expr):
                yield from value.free_symbols


def difference(expected: torch.Tensor, found: torch.Tensor, tolerance: float) -> str:
    """How two tensors of one type differ beyond the tolerance; empty where they do not. NaN equals NaN."""
    if tolerance == EXACT:
        equal = (expected == found) | ((expected != expected) & (found != found))
        equal &= (expected != 0) | (torch.signbit(expected) == torch.signbit(found))
    else:
        equal = _close(expected, found, tolerance)
    if bool(equal.all()):
        return ""
    return f"{found[~equal][0].item()} instead of {expected[~equal][0].item()} in {int((~equal).sum())} elements"


def _close(expected: torch.Tensor, found: torch.Tensor, tolerance: float) -> torch.Tensor:
    if not expected.dtype.is_floating_point:
        return expected == found
    finite = expected[expected.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return torch.isclose(found, expected, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
