"""Regions compiled to kernels and compared with what they mean.

Kernels of many cases are built in one TVM module, which takes a fraction of the time of a module each. A kernel runs in
memory of its own: outputs are poisoned, and every buffer stands between zones that must not change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from smelt.codegen.lower import strides_of
from smelt.codegen.machine import Machine
from smelt.codegen.program import Format, Param, Program
from smelt.codegen.schedule import Schedule, default_schedule, panel_layout, scratch
from smelt.ir.errors import BackendError

from .cases import ATOL, RTOL, Buffer, Case, Sizes, laid_out, numbers, operand, random_tensor, region, same

pytest.importorskip("tvm")

from smelt.codegen.tvm import module as tvm_module
from smelt.codegen.tvm.packing import pack_panels

__all__ = ["Case", "Kernel", "build", "operand", "random_tensor", "region", "same", "tvm_module"]


@dataclass
class Kernel:
    """The compiled kernel of a case."""

    case: Case
    program: Program
    schedule: Schedule
    function: Any

    @property
    def scratch(self) -> tuple[Param, ...]:
        """The memory that the kernel is lent."""
        return scratch(self.program, self.schedule)

    def run(self, tensors: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        """The results for operands in row-major order.

        Raises:
            IndexError: the kernel found an index out of range.
        """
        known = self.case.symbols(sizes)
        inputs = [self._operand(i, x) for i, x in enumerate(tensors)]
        outputs = [
            Buffer(numbers(node.shape, known), numbers(strides_of(node.shape, layout), known), node.dtype)
            for node, layout in zip(self.case.outputs, self.case.output_layouts, strict=True)
        ]
        error = Buffer((1,), (1,), torch.int64).fill(torch.zeros(1))
        lent = [Buffer(numbers(p.type.shape, known), numbers(p.strides, known), p.type.dtype) for p in self.scratch]
        buffers = [*inputs, *outputs, *lent, error]
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
            panels = pack_panels(tensor.T if param.transposed else tensor, panel_layout(self.schedule))
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


def build(cases: Mapping[str, Case]) -> dict[str, Kernel]:
    """The kernels of all cases, in one module."""
    tvm_module.set_threads(2)
    programs = {name: case.program() for name, case in cases.items()}
    schedules = {name: cases[name].schedule or default_schedule(p, Machine()) for name, p in programs.items()}
    texts, hosts = [], []
    for n, (name, program) in enumerate(programs.items()):
        texts.append(tvm_module.kernel_text(f"k{n}", program, schedules[name]))
        count = len(program.params) + len(scratch(program, schedules[name])) + 1
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
