"""Kernels of one-token decoding: attention up to a position; queries and keys turned where they are used."""

import pytest
import torch

from smelt.codegen.inplace import updating
from smelt.codegen.lower import Operand, lower, lower_plainly, strides_of
from smelt.codegen.program import Program, Skeleton
from smelt.codegen.text import print_program
from smelt.ir import ops
from smelt.ir.errors import UnsupportedError
from smelt.ir.node import Node

from .cached_cases import CASES
from .harness import Kernel, build, operand, region

F32, I64 = torch.float32, torch.int64


@pytest.fixture(scope="module")
def kernels() -> dict[str, Kernel]:
    return build(CASES)


@pytest.mark.parametrize("name", CASES)
def test_kernel(name: str, kernels: dict[str, Kernel]) -> None:
    torch.manual_seed(0)
    for sizes in CASES[name].sizes:
        for _ in range(3):
            kernels[name].check(sizes)


@pytest.mark.parametrize("offset", [-(2**63), -1, 0, 7, 48, 49, 2**63 - 1])
def test_offsets_beyond_the_keys(offset: int, kernels: dict[str, Kernel]) -> None:
    kernel, sizes = kernels["one query"], {"b": 2, "k": 49}
    tensors = kernel.case.tensors(sizes)
    tensors[-1] = torch.tensor(offset)
    kernel.check(sizes, tensors)


def test_keys_past_the_position_are_not_read(kernels: dict[str, Kernel]) -> None:
    kernel, sizes = kernels["one query"], {"b": 2, "k": 130}
    tensors = kernel.case.tensors(sizes)
    tensors[-1] = torch.tensor(63)
    (expected,) = kernel.run(tensors, sizes)
    for x in tensors[1:3]:
        x[:, :, 64:] = torch.nan
    assert torch.equal(kernel.run(tensors, sizes)[0], expected)


def test_one_skeleton_for_two_writes() -> None:
    program = CASES["two writes"].program()
    assert program.skeleton is Skeleton.SCATTER
    assert [s.param for s in program.stores].count("out0") == 3  # the copy, and a half of each head at a time


# --- in place ---------------------------------------------------------------------------------------------------------


def plainly(inputs: list[Node], outputs: list[Node]) -> Program:
    operands = [Operand(strides_of(x.shape, range(x.tensor_type.rank)), False) for x in inputs]
    return lower_plainly(region(inputs, outputs), operands, [tuple(range(x.tensor_type.rank)) for x in outputs])


def test_in_place_only_what_changes_is_stored() -> None:
    case = CASES["two writes"]
    operands = [Operand(strides_of(x.shape, range(x.tensor_type.rank)), False) for x in case.inputs]
    program = lower(case.region, operands, case.output_layouts, ((0, 0), (1, 1)))
    assert [s.param for s in program.stores] == ["out0", "out0", "out1"]
    assert "in0[" not in print_program(program).split("out0", 1)[1]


def test_a_slice_in_place() -> None:
    x, src = operand(0, (8, 4)), operand(1, (3, 4))
    program = updating(plainly([x, src], [ops.slice_put(x, src, dim=0, start=2)]), ((0, 0),))
    assert len(program.stores) == 1


def test_elements_in_place() -> None:
    x, y = operand(0, (8, 4)), operand(1, (4,))
    assert updating(plainly([x, y], [ops.add(x, y)]), ((0, 0),)).stores


def refused() -> dict[str, tuple[list[Node], list[Node]]]:
    x, i, v = operand(0, (8, 4)), operand(1, (2,), I64), operand(2, (2, 4))
    flipped = ops.add(x, ops.flip(x, dims=(0,)))
    rows = ops.add(x, ops.sum(x, dims=(1,), keepdim=True))
    return {
        "read at other places": ([x], [flipped]),
        "read by another result": ([x], [ops.exp(x), ops.neg(x)]),
        "rows read twice": ([x], [rows]),
        "written from itself": ([x, i], [ops.index_put(x, ops.index(x, i, dim=0), i, dim=0)]),
        "nothing to write": ([x, i, v], [x]),
    }


@pytest.mark.parametrize("name", refused())
def test_not_in_place(name: str) -> None:
    inputs, outputs = refused()[name]
    with pytest.raises(UnsupportedError, match="in place of"):
        updating(plainly(inputs, outputs), ((0, 0),))
