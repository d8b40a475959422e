"""Whether a kernel program computes what its region means, on sampled operands."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..codegen.interpret import interpret_program
from ..codegen.lower import strides_of
from ..codegen.program import Format
from ..ir import ops
from ..ir.node import Node
from ..ir.types import TensorType, concrete
from ..rewrites.trial import NoValue, Sizes, Style, draw_inputs, values_or_failure
from ..rewrites.values import difference
from .kernels import layouts_of, region_of, strides_of_value
from .plan import KernelStep

PROGRAM_TOLERANCE = 1e-9  # of float64 results, relative to the largest


def program_fault(step: KernelStep, sizes: Sizes, seed: int = 0) -> str:
    """How the program of a kernel call differs from its region; empty where it does not.

    Raises:
        NoValue: the region has no value for the sampled operands.
    """
    style = Style(widen=True)
    region = region_of(step.node)
    operands = draw_inputs(region, sizes, style, seed)
    expected, failure = values_or_failure(region, operands, sizes, widen=True)
    if failure:
        raise NoValue(failure)
    try:
        found = run_program(step, operands, sizes, torch.float64)
    except (AssertionError, IndexError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}"
    return next(filter(None, map(_difference, expected, found)), "")


def _difference(expected: Tensor, found: Tensor) -> str:
    if expected.dtype.is_complex:
        expected, found = torch.view_as_real(expected), torch.view_as_real(found)
    return difference(expected, found, PROGRAM_TOLERANCE if expected.dtype.is_floating_point else 0.0)


def run_program(
    step: KernelStep, operands: Sequence[Tensor], sizes: Sizes, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """The results of a kernel's program for operands of its region, laid out in memory as the program says."""
    given = []
    for param, value, tensor in zip(step.kernel.program.inputs, step.node.inputs, operands, strict=True):
        if param.format is Format.PANELS:
            given.append(tensor.T if param.transposed else tensor)
        else:
            given.append(laid_out(value, tensor, sizes))
    found = interpret_program(step.kernel.program, given, sizes, dtype, step.kernel.in_place)
    return [
        _as_result(memory, result.tensor_type, layout, sizes)
        for memory, result, layout in zip(found, ops.results(step.node), layouts_of(step.node), strict=True)
    ]


def laid_out(value: Node, tensor: Tensor, sizes: Sizes) -> Tensor:
    """A tensor in the memory layout of the value that it stands for."""
    strides = tuple(concrete(d, sizes) for d in strides_of_value(value))
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)


def _as_result(memory: Tensor, type_: TensorType, layout: Sequence[int], sizes: Sizes) -> Tensor:
    """A program's result, which may have fewer dims, in the shape and strides of the region's."""
    shape = tuple(concrete(d, sizes) for d in type_.shape)
    if 0 in shape:
        return memory.reshape(shape)
    strides = tuple(concrete(d, sizes) for d in strides_of(type_.shape, layout))
    return torch.as_strided(torch.as_strided(memory, (memory.numel(),), (1,)), shape, strides)
