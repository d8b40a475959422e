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
from smelt.codegen.lower import Operand, lower, strides_of
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
    """

    inputs: Sequence[Node]
    outputs: Sequence[Node]
    sizes: Sequence[Sizes] = ({},)
    layouts: Sequence[Sequence[int]] | None = None
    operands: Mapping[int, Sequence[int]] = field(default_factory=dict)
    weights: frozenset[int] = frozenset()
    high: int = 5  # random integers are below
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

    def program(self) -> Program:
        operands = [
            Operand(strides_of(node.shape, self.layout(i)), i in self.weights) for i, node in enumerate(self.inputs)
        ]
        return lower(self.region, operands, self.output_layouts)

    def symbols(self, sizes: Sizes) -> dict[sympy.Symbol, int]:
        return {symbol(name): size for name, size in sizes.items()}

    def tensors(self, sizes: Sizes) -> list[Tensor]:
        """Random operands, in row-major order."""
        known = self.symbols(sizes)
        return [random_tensor([concrete(d, known) for d in x.shape], x.dtype, self.high) for x in self.inputs]

    def meaning(self, tensors: Sequence[Tensor], sizes: Sizes, dtype: torch.dtype | None) -> list[Tensor]:
        """What the region means."""
        return list(interpret(self.region, tensors, {}, sizes=self.symbols(sizes), dtype=dtype).outputs)


def random_tensor(shape: Sequence[int], dtype: torch.dtype, high: int = 5) -> Tensor:
    """Normal floats, integers in [0, high) (from -high where the dtype has a sign), coins for bool."""
    if dtype.is_floating_point:
        return torch.randn(shape, dtype=torch.float64).to(dtype)
    if dtype == torch.bool:
        return torch.rand(shape) < 0.5
    return torch.randint(-high if torch.iinfo(dtype).min < 0 else 0, high, shape).to(dtype)


# --- memory -----------------------------------------------------------------------------------------------------------


class Buffer:
    """A tensor of any strides in aligned memory of its own, poisoned at first."""

    def __init__(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> None:
        span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        size = 0 if 0 in shape else span * dtype.itemsize
        self.bytes = torch.full((2 * ZONE + size + 64,), 0xFF, dtype=torch.uint8)  # NaN as a float, -1 as an integer
        self.start = ZONE + -(self.bytes.data_ptr() + ZONE) % 64
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
        return bool((self.bytes[: self.start] == 0xFF).all() and (self.bytes[self.stop :] == 0xFF).all())


def laid_out(tensor: Tensor, layout: Sequence[int]) -> Buffer:
    """A copy of a tensor whose axes lie in memory in the order of ``layout``."""
    strides = strides_of(tuple(tensor.shape), layout)
    return Buffer(tensor.shape, strides, tensor.dtype).fill(tensor)  # type: ignore[arg-type]


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
        table = torch.tensor([b.address for b in buffers])
        before = [b.tensor.clone() for b in inputs]
        self.function(table, torch.tensor([known[s] for s in self.program.symbols] or [0]))
        assert all(b.intact() for b in buffers), "written outside of a buffer"
        assert all(_same_bits(b.tensor, old) for b, old in zip(inputs, before, strict=True)), "an operand was changed"
        if error.tensor.item():
            raise IndexError("an index is out of range")
        return [b.tensor for b in outputs]

    def _operand(self, position: int, tensor: Tensor) -> Buffer:
        param = self.program.inputs[position]
        if param.format is Format.PANELS:
            panels = pack_panels(tensor.T if param.transposed else tensor, panel_tile(self.schedule))
            return laid_out(panels, range(panels.ndim))
        return laid_out(tensor, self.case.layout(position))

    def interpret(self, tensors: Sequence[Tensor], sizes: Sizes, dtype: torch.dtype | None) -> list[Tensor]:
        """The results by the program's interpreter."""
        known = self.case.symbols(sizes)
        given = []
        for i, (x, p) in enumerate(zip(tensors, self.program.inputs, strict=True)):
            panels = p.format is Format.PANELS
            given.append((x.T if p.transposed else x) if panels else laid_out(x, self.case.layout(i)).tensor)
        results = []
        found = interpret_program(self.program, given, known, dtype)
        for flat, node, layout in zip(found, self.case.outputs, self.case.output_layouts, strict=True):
            shape, strides = _numbers(node.shape, known), _numbers(strides_of(node.shape, layout), known)
            memory = flat.reshape(-1)
            results.append(torch.as_strided(memory, shape, strides) if memory.numel() else memory.reshape(shape))
        return results

    def check(self, sizes: Sizes, tensors: Sequence[Tensor] | None = None) -> None:
        """The program equals the meaning in float64, and the kernel at its dtype's tolerance."""
        tensors = self.case.tensors(sizes) if tensors is None else tensors
        exact = self.case.meaning(tensors, sizes, torch.float64)
        eager = self.case.meaning(tensors, sizes, None)
        by_program = self.interpret(tensors, sizes, torch.float64)
        by_kernel = self.run(tensors, sizes)
        for wide, own, program, kernel in zip(exact, eager, by_program, by_kernel, strict=True):
            same(program, wide if wide.dtype.is_floating_point else program, 1e-9, 1e-9, "the program")
            if own.dtype.is_floating_point:
                rtol, atol = self.case.rtol or RTOL[own.dtype], self.case.rtol or ATOL[own.dtype]
                same(kernel, wide.to(own.dtype), rtol, atol, "the kernel")
            else:
                same(kernel, own, 0, 0, "the kernel")


def same(found: Tensor, expected: Tensor, rtol: float, atol: float, who: str) -> None:
    """Equal at a tolerance; NaN and infinities stand in the same places."""
    torch.testing.assert_close(
        found, expected, rtol=rtol, atol=atol, equal_nan=True, check_stride=False, msg=lambda m: f"{who}: {m}"
    )


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _numbers(shape: Shape, sizes: Mapping[sympy.Symbol, int]) -> tuple[int, ...]:
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
