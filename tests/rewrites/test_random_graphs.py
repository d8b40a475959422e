"""Random graphs mean the same before and after the pipeline."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from smelt.ir import ops
from smelt.ir.errors import TypeRuleError
from smelt.ir.graph import Graph
from smelt.ir.interpret import evaluate, interpret
from smelt.ir.node import Node
from smelt.ir.text import print_graph
from smelt.ir.types import Dim, SymbolRange, symbol
from smelt.rewrites.context import Context
from smelt.rewrites.pipeline import run_pipeline

F32, I64, BOOL = torch.float32, torch.int64, torch.bool
S, T = symbol("s"), symbol("t")
SIZES = {S: 3, T: 2}
SHAPES: tuple[tuple[Dim, ...], ...] = (
    (S, 4),
    (4, 4),
    (S, 1),
    (1, 4),
    (4,),
    (2, S, 4),
    (2, 1, 4),
    (S, T),
    (),
    (T, 4, S),
)
NUMBERS = (0.0, 1.0, -1.0, 2.0, 0.5, -0.0, 3.0, 0.25)


class Builder:
    """Grows a graph by one random node at a time."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.inputs = [self.source(ops.input, i) for i in range(3)]
        self.nodes = [*self.inputs, *(self.source(ops.weight, i) for i in range(3)), self.square_weight()]

    def source(self, op: Any, number: int) -> Node:
        shape = self.random.choice(SHAPES[:4] if op is ops.input else ((4,), (4, 4), (1, 4)))
        dtype = self.random.choice((F32, F32, F32, I64, BOOL)) if op is ops.input else F32
        node: Node = op(name=f"{op.name}{number}", shape=shape, dtype=dtype)
        return node

    def square_weight(self) -> Node:
        return ops.weight(name="square", shape=(4, 4), dtype=F32)

    def pick(self, *dtypes: torch.dtype) -> Node:
        fitting = [n for n in self.nodes if not dtypes or n.dtype in dtypes]
        return self.random.choice(fitting[-8:] if self.random.random() < 0.7 else fitting)

    def grow(self, count: int) -> None:
        steps: list[Callable[[], Node]] = [
            *(self.unary, self.binary, self.binary, self.with_number, self.with_number, self.compare),
            *(self.logic, self.choose, self.reshaped, self.permuted, self.expanded, self.sliced, self.joined),
            *(self.reduced, self.row, self.converted, self.ranged, self.product, self.activation),
        ]
        for _ in range(count):
            try:
                self.nodes.append(self.random.choice(steps)())
            except (TypeRuleError, IndexError, ValueError):
                continue  # operands that do not fit each other, or none of the kind

    def unary(self) -> Node:
        op: Any = self.random.choice((ops.neg, ops.tanh, ops.sigmoid, ops.relu, ops.abs, ops.cos))
        node: Node = op(self.pick(F32))
        return node

    def binary(self) -> Node:
        op: Any = self.random.choice((ops.add, ops.sub, ops.mul, ops.maximum, ops.minimum))
        node: Node = op(self.pick(F32), self.pick(F32))
        return node

    def with_number(self) -> Node:
        x = self.pick(F32, I64)
        op: Any = self.random.choice((ops.add, ops.sub, ops.mul, ops.maximum, ops.minimum))
        shape = self.random.choice(((), (1,), (4,), (2, 1, 1)))
        c = ops.full(shape=shape, value=self.random.choice(NUMBERS), dtype=x.dtype)
        node: Node = op(x, c) if self.random.random() < 0.6 else op(c, x)
        return node

    def compare(self) -> Node:
        op: Any = self.random.choice((ops.lt, ops.le, ops.gt, ops.ge, ops.eq, ops.ne))
        x = self.pick(F32, I64)
        node: Node = op(x, self.pick(x.dtype))
        return node

    def logic(self) -> Node:
        p = self.pick(BOOL)
        other = self.random.choice(
            (self.pick(BOOL), ops.full(shape=(4,), value=self.random.random() < 0.5, dtype=BOOL))
        )
        op: Any = self.random.choice((ops.bit_and, ops.bit_or, ops.eq, ops.ne))
        node: Node = ops.bit_not(p) if self.random.random() < 0.3 else op(p, other)
        return node

    def choose(self) -> Node:
        x = self.pick()
        return ops.where(self.pick(BOOL), x, self.pick(x.dtype))

    def reshaped(self) -> Node:
        x = self.pick()
        shape = list(x.shape)
        at = self.random.randrange(len(shape) + 1)
        kind = self.random.random()
        if kind < 0.4:
            shape.insert(at, 1)
        elif kind < 0.6:
            shape = [d for d in shape if d != 1]
        elif kind < 0.8 and len(shape) > 1:
            shape[:2] = [shape[0] * shape[1]]
        else:
            shape = [d for dim in shape for d in ((2, 2) if dim == 4 else (dim,))]
        return ops.reshape(x, shape=tuple(shape))

    def permuted(self) -> Node:
        x = self.pick()
        dims = list(range(x.tensor_type.rank))
        self.random.shuffle(dims)
        return ops.permute(x, dims=tuple(dims))

    def expanded(self) -> Node:
        x = self.pick()
        wide = tuple(self.random.choice((1, 4, S)) if d == 1 else d for d in x.shape)
        return ops.expand(x, shape=(self.random.choice((2, T)), *wide) if self.random.random() < 0.4 else wide)

    def sliced(self) -> Node:
        x = self.pick()
        dim = self.random.randrange(x.tensor_type.rank)
        size = x.shape[dim]
        if not isinstance(size, int):
            return ops.slice_(x, dim=dim, start=0, stop=size)
        start = self.random.randrange(size)
        return ops.slice_(x, dim=dim, start=start, stop=self.random.randint(start + 1, size))

    def joined(self) -> Node:
        x = self.pick()
        parts = [x, *(self.pick(x.dtype) for _ in range(self.random.randrange(2)))]
        return ops.concat(*parts, dim=self.random.randrange(x.tensor_type.rank))

    def reduced(self) -> Node:
        x = self.pick(F32)
        op: Any = self.random.choice((ops.sum, ops.mean, ops.amax))
        dim = self.random.randrange(x.tensor_type.rank)
        node: Node = op(x, dims=(dim,), keepdim=self.random.random() < 0.7)
        return node

    def row(self) -> Node:
        x = self.pick(F32)
        return self.random.choice((ops.softmax(x, dim=-1), ops.rms_norm(x), ops.layer_norm(x)))

    def converted(self) -> Node:
        return ops.cast(self.pick(), dtype=self.random.choice((F32, torch.float64, I64, torch.int32, BOOL)))

    def ranged(self) -> Node:
        size = self.random.choice((4, S, T))
        return ops.arange(size=size, start=self.random.randrange(3), dtype=self.random.choice((I64, F32)))

    def product(self) -> Node:
        x, y = self.pick(F32), self.pick(F32)
        kind = self.random.random()
        if kind < 0.5:
            return ops.matmul(x, self.square_weight())
        return ops.matmul(x, ops.transpose(y, -1, -2) if kind < 0.75 else y)

    def activation(self) -> Node:
        x = self.pick(F32)
        half, one = ops.scalar(0.5, F32), ops.scalar(1.0, F32)
        root = ops.scalar(2.0**-0.5, F32)
        return self.random.choice(
            (
                ops.mul(x, ops.sigmoid(x)),
                ops.mul(ops.mul(x, half), ops.add(one, ops.erf(ops.mul(x, root)))),
                ops.mul(ops.silu(x), self.pick(F32)),
                ops.sub(x, ops.mean(x, dims=(-1,), keepdim=True)),
            )
        )

    def graph(self) -> Graph:
        outputs = [self.pick() for _ in range(3)]
        return Graph(self.inputs, outputs, symbols=[SymbolRange(S), SymbolRange(T)])


def tensor(node: Node, generator: torch.Generator) -> torch.Tensor:
    shape = [d if isinstance(d, int) else SIZES[d] for d in node.shape]
    value = torch.randn(shape, generator=generator, dtype=torch.float64)
    return (value * 2).round().to(node.dtype) if node.dtype == I64 else value > 0 if node.dtype == BOOL else value


def check(seed: int) -> None:
    builder = Builder(seed)
    builder.grow(40)
    graph = builder.graph()
    generator = torch.Generator().manual_seed(seed)
    inputs = [tensor(node, generator) for node in graph.inputs]
    weights = {
        str(w.attrs["name"]): tensor(w, generator) for w in sorted(graph.weights(), key=lambda w: w.attrs["name"])
    }
    expected = interpret(graph, inputs, weights, sizes=SIZES, dtype=torch.float64).outputs
    context = Context(verify=True)
    after = run_pipeline(graph, context)
    for name, node in context.derived.items():
        weights[name] = evaluate([node], weights, dtype=torch.float64)[0]
    found = interpret(after, inputs, weights, sizes=SIZES, dtype=torch.float64).outputs
    for a, b in zip(found, expected, strict=True):
        scale = float(b.abs().max()) if b.numel() and b.dtype.is_floating_point else 1.0
        # constants are folded in their own dtype
        same = torch.allclose(a.double(), b.double(), rtol=1e-6, atol=1e-6 * scale + 1e-12, equal_nan=True)
        assert same, f"seed {seed}\n{print_graph(graph)}\n{print_graph(after)}\n{chr(10).join(map(str, context.log))}"


@pytest.mark.parametrize("block", range(10))
def test_random_graphs(block: int) -> None:
    for seed in range(20 * block, 20 * block + 20):
        check(seed)
