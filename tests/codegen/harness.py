"""Regions compiled to kernels and compared with what they mean.

Kernels of many cases are built in one TVM module, which takes a fraction of the time of a module each. A kernel runs in
memory of its own: outputs are poisoned, and every buffer stands between zones that must not change.
"""

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
from smelt.codegen.schedule import Machine, Schedule, default_schedule, panel_tile
from smelt.codegen.tvm import module as tvm_module
from smelt.codegen.tvm.packing import pack_panels
from smelt.ir import ops
from smelt.ir.errors import BackendError
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
            shape, strides = _numbers(node.shape, known), _numbers(strides_of(node.shape, layout), known)
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
    strides = _numbers(strides_of(tuple(tensor.shape), layout), {})
    return Buffer(tensor.shape, strides, tensor.dtype).fill(tensor)


# --- kernels ----------------------------------------------------------------------------------------------------------


@dataclass
class Kernel:
    """The compiled kernel of a case."""

    case: Case
    program: Program
    schedule: Schedule
    function: Any

    def run(self, tensors: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        """The results for operands in row-major order.

        Raises:
            IndexError: the kernel found an index out of range.
        """
        known = self.case.symbols(sizes)
        inputs = [self._operand(i, x) for i, x in enumerate(tensors)]
        outputs = [
            Buffer(_numbers(node.shape, known), _numbers(strides_of(node.shape, layout), known), node.dtype)
            for node, layout in zip(self.case.outputs, self.case.output_layouts, strict=True)
        ]
        error = Buffer((1,), (1,), torch.int64).fill(torch.zeros(1))
        buffers = [*inputs, *outputs, error]
        before = [b.bytes.clone() for b in inputs]
        table = torch.tensor([b.address for b in buffers])
        self.function(table, torch.tensor([known[s] for s in self.program.symbols] or [0]))
        assert all(b.intact() for b in buffers), "written outside of a buffer"
        assert all(torch.equal(b.bytes, old) for b, old in zip(inputs, before, strict=True)), "an operand was changed"
        if error.tensor.item():
            raise IndexError("an index is out of range")
        return [b.tensor for b in outputs]

    def _operand(self, position: int, tensor: Tensor) -> Buffer:
        param = self.program.inputs[position]
        if param.format is Format.PANELS:
            panels = pack_panels(tensor.T if param.transposed else tensor, panel_tile(self.schedule))
            return laid_out(panels, range(panels.ndim))
        return laid_out(tensor, self.case.layout(position))

    def check(self, sizes: Sizes, tensors: Sequence[Tensor] | None = None) -> None:
        """The program equals the meaning in float64, and the kernel at its dtype's tolerance."""
        case = self.case
        tensors = case.tensors(sizes) if tensors is None else tensors
        exact, own = case.meaning(tensors, sizes, torch.float64), case.meaning(tensors, sizes)
        by_program = case.interpret(self.program, tensors, sizes, torch.float64)
        by_kernel = self.run(tensors, sizes)
        for wide, eager, program, kernel in zip(exact, own, by_program, by_kernel, strict=True):
            same(program, wide, 1e-9, 1e-9, "the program")
            expected = wide.to(eager.dtype) if eager.dtype.is_floating_point else eager
            rtol, atol = case.rtol or RTOL.get(eager.dtype, 0), case.rtol or ATOL.get(eager.dtype, 0)
            same(kernel, expected, rtol, atol, "the kernel")


def _numbers(shape: Shape | Sequence[Dim], sizes: Mapping[sympy.Symbol, int]) -> tuple[int, ...]:
    return tuple(concrete(d, sizes) for d in shape)


def build(cases: Mapping[str, Case]) -> dict[str, Kernel]:
    """The kernels of all cases, in one module."""
    tvm_module.set_threads(2)
    programs = {name: case.program() for name, case in cases.items()}
    schedules = {name: cases[name].schedule or default_schedule(p, Machine()) for name, p in programs.items()}
    texts, hosts = [], []
    for n, (name, program) in enumerate(programs.items()):
        texts.append(tvm_module.kernel_text(f"k{n}", program, schedules[name]))
        count = len(program.params) + 1
        call = tvm_module.Call(f"k{n}", tuple(range(count)))
        hosts.append(tvm_module.Host(f"main{n}", (call,), count, program.symbols))
    try:
        built = tvm_module.build(texts, hosts, tvm_module.host_cpu())
    except BackendError as error:
        raise _blamed(cases, texts, hosts) from error
    return {
        name: Kernel(cases[name], program, schedules[name], built[f"main{n}"])
        for n, (name, program) in enumerate(programs.items())
    }


def _blamed(cases: Mapping[str, Case], texts: Sequence[str], hosts: Sequence[Any]) -> Exception:
    """Which of the cases cannot be built."""
    for name, text, host in zip(cases, texts, hosts, strict=True):
        try:
            tvm_module.build([text], [host], tvm_module.host_cpu())
        except BackendError as error:
            return BackendError(f"case {name}: {error}\n{text}")
    return BackendError("no case alone fails")
