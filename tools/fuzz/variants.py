"""What runs a captured graph in place of native code: the graph interpreter, and kernel programs interpreted."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from ...codegen.interpret import interpret_program
from ...codegen.program import Format, Param
from ...codegen.tvm.packing import unpack_panels
from ...frontend.capture import Capture
from ...ir import ops
from ...ir.interpret import interpret
from ...ir.types import concrete
from ...runtime.plan import KernelStep, Plan, TorchStep
from ...runtime.target import Target
from ...runtime.tensors import CPU, dense

Sizes = Mapping[sympy.Symbol, int]
Host = Callable[[Any, Any], Any]


class InterpretedGraph:
    """Stands in for an executable: each run evaluates the captured graph, node by node, in PyTorch."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self.timings: dict[str, float] = {}
        self.device = CPU

    def readable(self, tensor: Tensor) -> Tensor:
        """A caller's tensor as :meth:`run` takes it."""
        return dense(tensor)

    def run(self, tensors: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        """The graph's outputs, and its mutations done."""
        graph, weights = self.capture.graph, self.capture.weights
        results = interpret(graph, tensors, weights, sizes=sizes)
        places = dict(zip(graph.inputs, tensors, strict=True))
        for mutation, value in zip(graph.mutations, results.mutations, strict=True):
            target = mutation.target
            place = weights[str(target.attrs["name"])] if target.is_a(ops.weight) else places[target]
            place.copy_(value)
        return list(results.outputs)


def interpreted_hosts(plan: Plan, target: Target, cache: Any) -> list[Host | TorchStep]:
    """A plan's segments as functions that interpret its kernel programs, in the memory that kernels would use."""
    return [host_of(plan, s) if isinstance(s, list) else s for s in plan.segments()]


def host_of(plan: Plan, steps: Sequence[KernelStep]) -> Host:
    """A function of the address table and the sizes that does what some kernels do."""
    symbols = tuple(r.symbol for r in plan.graph.symbols)

    def run(addresses: Any, sizes: Any) -> None:
        known = dict(zip(symbols, from_dlpack(sizes).tolist(), strict=False))
        at = from_dlpack(addresses).tolist()
        for step in steps:
            _call(plan, step, at, known)

    return run


def _call(plan: Plan, step: KernelStep, at: Sequence[int], sizes: Sizes) -> None:
    program = step.kernel.program
    count = len(program.inputs)
    # copies: a program is evaluated as a whole, where kernels may be given an output that an input lies in no more
    given = [
        _packed(plan, i, at[i], sizes) if p.format is Format.PANELS else _strided(p, at[i], sizes).clone()
        for p, i in zip(program.inputs, step.buffers[:count], strict=True)
    ]
    results = interpret_program(program, given, sizes, in_place=step.kernel.in_place)
    for param, i, result in zip(program.outputs, step.buffers[count:], results, strict=False):
        if result.numel():
            shape, strides = _numbers(param.type.shape, sizes), _numbers(param.strides, sizes)
            torch.as_strided(_strided(param, at[i], sizes), shape, strides).copy_(result)


def _strided(param: Param, address: int, sizes: Sizes) -> Tensor:
    """The elements of a parameter as they lie in memory, from its first to its last."""
    shape, strides = _numbers(param.type.shape, sizes), _numbers(param.strides, sizes)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if 0 not in shape else 0
    return _memory(address, extent, param.type.dtype)


def _packed(plan: Plan, position: int, address: int, sizes: Sizes) -> Tensor:
    """The matrix of a weight that was packed."""
    buffer = plan.buffers[position]
    assert buffer.packing is not None
    shape = _numbers(buffer.type.shape, sizes)
    k, n = (shape[1], shape[0]) if buffer.packing.transposed else shape
    layout = buffer.packing.layout
    return unpack_panels(_memory(address, layout.elements(k, n), buffer.type.dtype), k, n, layout)


def _memory(address: int, count: int, dtype: torch.dtype) -> Tensor:
    if not count:
        return torch.empty(0, dtype=dtype)
    raw = (ctypes.c_byte * (count * dtype.itemsize)).from_address(address)
    return torch.frombuffer(raw, dtype=dtype)


def _numbers(dims: Sequence[Any], sizes: Sizes) -> tuple[int, ...]:
    return tuple(concrete(d, sizes) for d in dims)
