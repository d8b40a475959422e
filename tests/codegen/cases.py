"""Regions with sizes to try them on, and what they and their programs mean. No backend is needed here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor

from smelt.codegen.interpret import interpret_program
from smelt.codegen.lower import Operand, lower, lower_plainly, strides_of
from smelt.codegen.program import Format, Program
from smelt.codegen.schedule import Schedule
from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.ir.interpret import interpret
from smelt.ir.node import Node
from smelt.ir.types import Dim, Shape, SymbolRange, TensorType, concrete, symbol, symbols_of

ZONE = 256  # bytes on each side of a buffer
ALIGNMENT = 64
POISON = 0xFF  # in every byte: NaN as a float, -1 as an integer
Sizes = Mapping[str, int]
RTOL = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
ATOL = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-2}


def operand(position: int, shape: Sequence[Dim], dtype: torch.dtype = torch.float32) -> Node:
    """A region's input."""
    return ops.input(name=str(position), shape=tuple(shape), dtype=dtype)


def region(inputs: Sequence[Node], outputs: Sequence[Node]) -> Graph:
    """The region of these operands and results, with all the symbols they use."""
    graph = Graph(inputs, outputs)
    found = symbols_of(d for node in graph.nodes for d in _dims((node.type, *node.attrs.values())))
    return Graph(inputs, outputs, (), (SymbolRange(s) for s in found))


def _dims(values: Sequence[Any]) -> Iterator[Dim]:
    for value in values:
        if isinstance(value, tuple):
            yield from _dims(value)
        elif isinstance(value, TensorType):
            yield from value.shape
        elif isinstance(value, sympy.Expr):
            yield value


@dataclass
class Case:
    """A region, how its operands and results lie in memory, and the sizes to try it on.

    ``layouts`` and ``operands`` give the axes from the slowest to the fastest; row-major where they are not given.
    Integers among the operands are random below ``high``, from 0 where they are indices, and from -high elsewhere.
    """

    inputs: Sequence[Node]
    outputs: Sequence[Node]
    sizes: Sequence[Sizes] = ({},)
    layouts: Sequence[Sequence[int]] | None = None
    operands: Mapping[int, Sequence[int]] = field(default_factory=dict)
    weights: frozenset[int] = frozenset()
    high: int = 5
    low: int | None = None
    rtol: float | None = None
    schedule: Schedule | None = None

    @property
    def region(self) -> Graph:
        return region(self.inputs, self.outputs)

    @property
    def output_layouts(self) -> list[Sequence[int]]:
        return list(self.layouts or [range(node.tensor_type.rank) for node in self.outputs])

    def layout(self, position: int) -> Sequence[int]:
        return self.operands.get(position, range(self.inputs[position].tensor_type.rank))

    def program(self, *, plain: bool = False) -> Program:
        """The program, with ``plain`` the one before it is simplified."""
        operands = [
            Operand(strides_of(node.shape, self.layout(i)), i in self.weights) for i, node in enumerate(self.inputs)
        ]
        return (lower_plainly if plain else lower)(self.region, operands, self.output_layouts)

    def symbols(self, sizes: Sizes) -> dict[sympy.Symbol, int]:
        return {symbol(name): size for name, size in sizes.items()}

    def tensors(self, sizes: Sizes) -> list[Tensor]:
        """Random operands, in row-major order."""
        known = self.symbols(sizes)
        low = -self.high if self.low is None else self.low
        return [random_tensor([concrete(d, known) for d in x.shape], x.dtype, low, self.high) for x in self.inputs]

    def meaning(self, tensors: Sequence[Tensor], sizes: Sizes, dtype: torch.dtype | None = None) -> list[Tensor]:
        """What the region means."""
        return list(interpret(self.region, tensors, {}, sizes=self.symbols(sizes), dtype=dtype).outputs)

    def interpret(
        self, program: Program, tensors: Sequence[Tensor], sizes: Sizes, dtype: torch.dtype | None = None
    ) -> list[Tensor]:
        """The results of a program of this case by its interpreter."""
        known = self.symbols(sizes)
        given = [self._memory(i, x, program) for i, x in enumerate(tensors)]
        results = []
        found = interpret_program(program, given, known, dtype)
        for tensor, node, layout in zip(found, self.outputs, self.output_layouts, strict=True):
            shape, strides = numbers(node.shape, known), numbers(strides_of(node.shape, layout), known)
            memory = torch.as_strided(tensor, (tensor.numel(),), (1,))
            results.append(torch.as_strided(memory, shape, strides) if memory.numel() else memory.reshape(shape))
        return results

    def _memory(self, position: int, tensor: Tensor, program: Program) -> Tensor:
        param = program.inputs[position]
        if param.format is Format.PANELS:
            return tensor.T if param.transposed else tensor
        return laid_out(tensor, self.layout(position)).tensor

    def check_program(self, sizes: Sizes, program: Program | None = None) -> None:
        """A program, by default the case's own, equals the meaning in float64."""
        program, tensors = program or self.program(), self.tensors(sizes)
        expected = self.meaning(tensors, sizes, torch.float64)
        for found, wanted in zip(self.interpret(program, tensors, sizes, torch.float64), expected, strict=True):
            same(found, wanted, 1e-9, 1e-9, "the program")


def random_tensor(shape: Sequence[int], dtype: torch.dtype, low: int = -5, high: int = 5) -> Tensor:
    """Normal floats, integers in [low, high) where the dtype has them, coins for bool."""
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=torch.float64).to(dtype)
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    return torch.randint(max(low, torch.iinfo(dtype).min), high, shape).to(dtype)


def same(found: Tensor, expected: Tensor, rtol: float, atol: float, who: str) -> None:
    """Equal at a tolerance, exactly where the values are no floats; NaN and infinities stand in the same places."""
    if not expected.dtype.is_floating_point:
        rtol = atol = 0
    torch.testing.assert_close(
        found, expected, rtol=rtol, atol=atol, equal_nan=True, check_stride=False, msg=lambda m: f"{who}: {m}"
    )


# --- memory -----------------------------------------------------------------------------------------------------------


class Buffer:
    """A tensor of any strides in aligned memory of its own, poisoned at first."""

    def __init__(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> None:
        span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        size = 0 if 0 in shape else span * dtype.itemsize
        self.bytes = torch.full((2 * ZONE + size + ALIGNMENT,), POISON, dtype=torch.uint8)
        self.start = ZONE + -(self.bytes.data_ptr() + ZONE) % ALIGNMENT
        self.stop = self.start + size
        flat = self.bytes[self.start : self.stop].view(dtype)
        self.tensor = torch.as_strided(flat, shape, strides) if size else torch.empty(shape, dtype=dtype)

    @property
    def address(self) -> int:
        return self.bytes.data_ptr() + self.start

    def fill(self, tensor: Tensor) -> Buffer:
        self.tensor.copy_(tensor)
        return self

    def intact(self) -> bool:
        """Whether nothing was written outside the tensor."""
        return bool((self.bytes[: self.start] == POISON).all() and (self.bytes[self.stop :] == POISON).all())


def laid_out(tensor: Tensor, layout: Sequence[int]) -> Buffer:
    """A copy of a tensor whose axes lie in memory in the order of ``layout``."""
    strides = numbers(strides_of(tuple(tensor.shape), layout), {})
    return Buffer(tensor.shape, strides, tensor.dtype).fill(tensor)


def numbers(shape: Shape | Sequence[Dim], sizes: Mapping[sympy.Symbol, int]) -> tuple[int, ...]:
    """Dims as numbers."""
    return tuple(concrete(d, sizes) for d in shape)
