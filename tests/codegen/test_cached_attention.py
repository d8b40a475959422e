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
from smelt.ir.types import symbol

from .harness import Case, Kernel, build, operand, region

B, S, K = symbol("b"), symbol("s"), symbol("k")
F32, I64 = torch.float32, torch.int64
SIZES = [{"b": b, "s": s, "k": k} for b, s, k in [(1, 1, 1), (2, 17, 49), (1, 40, 130), (2, 3, 100), (1, 0, 5)]]
STEPS = [{"b": b, "k": k} for b, k in [(1, 1), (2, 49), (1, 130), (3, 64)]]


def from_offset(queries: object, sizes: list[dict[str, int]], high: int, mask: bool = False) -> Case:
    heads = [operand(0, (B, 6, queries, 32)), operand(1, (B, 2, K, 32)), operand(2, (B, 2, K, 32))]  # type: ignore[list-item]
    masks = [operand(3, (B, 1, 1, K), torch.bool)] if mask else []
    inputs = [*heads, *masks, operand(4, (), I64)]
    return Case(inputs, [ops.attention(*inputs, causal=True, scale=0.2)], sizes, high=high, low=-3, rtol=2e-5)


def turned(x: Node, first: int) -> tuple[Node, list[Node]]:
    cos, sin = operand(first, (1, 1, 1, 32)), operand(first + 1, (1, 1, 1, 32))
    return ops.rope(x, cos, sin), [cos, sin]


def turned_queries() -> Case:
    q, k, v = operand(0, (B, 6, 1, 32)), operand(1, (B, 2, K, 32)), operand(2, (B, 2, K, 32))
    query, angles = turned(q, 3)
    return Case([q, k, v, *angles], [ops.attention(query, k, v, scale=0.2)], STEPS, rtol=2e-5)


def written_together() -> Case:
    """Keys turned and values as they are, both out of one row, to one place of two caches."""
    keys, values, row = operand(0, (B, 2, 9, 32)), operand(1, (B, 2, 9, 32)), operand(2, (B, 1, 128))
    place = operand(5, (1,), I64)
    key, value = (ops.reshape(ops.slice_(row, dim=2, start=at, stop=at + 64), shape=(B, 2, 1, 32)) for at in (0, 64))
    key, angles = turned(key, 3)
    puts = [ops.index_put(keys, key, place, dim=2), ops.index_put(values, value, place, dim=2)]
    return Case([keys, values, row, *angles, place], puts, [{"b": 1}, {"b": 3}], high=9, low=-9)


CASES = {
    "one query": from_offset(1, STEPS, 60),
    "one query and a mask": from_offset(1, STEPS, 60, mask=True),
    "several queries": from_offset(4, STEPS, 60),
    "any number of queries": from_offset(S, SIZES, 60),
    "turned queries": turned_queries(),
    "two writes": written_together(),
}


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
