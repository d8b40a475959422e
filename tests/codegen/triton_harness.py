"""Regions as Triton kernels, interpreted and compared with what they mean. No GPU is needed.

As in ``harness``: outputs are poisoned, and every buffer stands between zones that must not change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from smelt.codegen.gpu import GpuMachine, GpuSchedule
from smelt.codegen.gpu_schedule import default_gpu_schedule
from smelt.codegen.lower import strides_of
from smelt.codegen.program import Format, Program
from smelt.codegen.triton.file import KernelFile
from smelt.codegen.triton.module import emit

from . import interpreter
from .cases import ATOL, RTOL, ZONE, Buffer, Case, Sizes, laid_out, numbers, same

pytest.importorskip("triton")

START = 2 * ZONE  # of a tensor in its memory


@dataclass
class TritonKernel:
    """The kernel of a case."""

    case: Case
    program: Program
    file: KernelFile

    def run(self, tensors: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        """The results for operands in row-major order.

        Raises:
            IndexError: the kernel found an index out of range.
        """
        known = self.case.symbols(sizes)
        held = {p.name: self._operand(i, x) for i, (p, x) in enumerate(zip(self.program.inputs, tensors, strict=True))}
        inputs = set(held)
        for param, node, layout in zip(self.program.outputs, self.case.outputs, self.case.output_layouts, strict=True):
            held[param.name] = Buffer(
                numbers(node.shape, known), numbers(strides_of(node.shape, layout), known), node.dtype
            )
        for p in self.file.scratch:
            held[p.name] = Buffer(numbers(p.type.shape, known), numbers(p.strides, known), p.type.dtype)
        held["err"] = Buffer((1,), (1,), torch.int64).fill(torch.zeros(1))
        given = {name: (b.bytes.numpy().tobytes(), b.start, b.stop, b.tensor.dtype) for name, b in held.items()}
        # either kernel is right at these sizes: odd ones take the one with offsets of 64 bits
        file = replace(self.file, narrow=None) if sum(known.values()) % 2 else self.file
        after = interpreter.run(file, given, known)
        for name, b in held.items():
            found = torch.frombuffer(bytearray(after[name]), dtype=torch.uint8)
            assert name not in inputs or torch.equal(found, b.bytes), f"{name} was changed"
            b.bytes.copy_(found)
            assert b.intact(), f"written outside of {name}"
        if held["err"].tensor.item():
            raise IndexError("an index is out of range")
        return [held[p.name].tensor for p in self.program.outputs]

    def _operand(self, position: int, tensor: Tensor) -> Buffer:
        # a weight that the CPU packs is read as the model holds it
        packed = self.program.inputs[position].format is Format.PANELS
        return laid_out(tensor, range(tensor.ndim) if packed else self.case.layout(position))

    def check(self, sizes: Sizes, tensors: Sequence[Tensor] | None = None) -> None:
        """The kernel equals the meaning in float64 at its dtype's tolerance."""
        case = self.case
        tensors = case.tensors(sizes) if tensors is None else tensors
        exact, own = case.meaning(tensors, sizes, torch.float64), case.meaning(tensors, sizes)
        for wide, eager, kernel in zip(exact, own, self.run(tensors, sizes), strict=True):
            expected = wide.to(eager.dtype) if eager.dtype.is_floating_point else eager
            rtol, atol = case.rtol or RTOL.get(eager.dtype, 0), case.rtol or ATOL.get(eager.dtype, 0)
            same(kernel, expected, rtol, atol, "the kernel")


def build(case: Case, schedule: GpuSchedule | None = None, name: str = "kernel") -> TritonKernel:
    """The kernel of a case."""
    program = case.program()
    chosen = schedule or default_gpu_schedule(program, GpuMachine())
    return TritonKernel(case, program, emit(name, program, chosen, case.region.symbols))
