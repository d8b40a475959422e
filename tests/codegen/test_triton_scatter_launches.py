"""Which stores to places from data are one launch, and that they are right together."""

from __future__ import annotations

import pytest
import torch

from smelt.codegen.bounds import Bounds
from smelt.codegen.gpu import GpuMachine
from smelt.codegen.gpu_schedule import default_gpu_schedule
from smelt.codegen.lower import Operand, lower, strides_of
from smelt.codegen.program import Axis, Checked, Load, Store
from smelt.ir import ops
from smelt.ir.types import symbol

from . import interpreter
from .cached_cases import CASES
from .cases import Buffer, Case, operand

pytest.importorskip("triton")

from smelt.codegen.triton.file import KernelFile
from smelt.codegen.triton.module import emit
from smelt.codegen.triton.scatter import launches_of

F32, I64 = torch.float32, torch.int64
B, S = symbol("b"), symbol("s")
ROW, WIDE = Axis("i", 4), Axis("j", 8)
PLACE = Checked(Load("in0", (), I64), 9, True)


def in_place(case: Case, pairs: tuple[tuple[int, int], ...]) -> KernelFile:
    """The kernel of a case with some results in the memory of operands."""
    operands = [Operand(strides_of(x.shape, range(x.tensor_type.rank)), False) for x in case.inputs]
    program = lower(case.region, operands, case.output_layouts, pairs)
    return emit("kernel", program, default_gpu_schedule(program, GpuMachine()), case.region.symbols)


def caches(*sizes: object) -> Case:
    """Rows of S positions to places of two caches, the first of them turned."""
    keys, values, places = operand(0, (B, 2, 9, 8)), operand(1, (B, 2, 9, 8)), operand(4, (sizes[0],), I64)  # type: ignore[arg-type]
    new = [operand(i, (B, 2, sizes[0], 8)) for i in (2, 3)]  # type: ignore[list-item]
    angles = [operand(i, (1, 1, 1, 8)) for i in (5, 6)]
    puts = [
        ops.index_put(keys, ops.rope(new[0], *angles), places, dim=2),
        ops.index_put(values, new[1], places, dim=2),
    ]
    return Case([keys, values, *new, places, *angles], puts)


def test_two_caches_in_place_are_one_launch() -> None:
    assert [x.function for x in in_place(CASES["two writes"], ((0, 0), (1, 1))).launches] == ["kernel_0_write"]
    assert [x.function for x in in_place(caches(S), ((0, 0), (1, 1))).launches] == ["kernel_0_write"]


def test_copies_are_one_launch_before_the_writes() -> None:
    functions = [x.function for x in in_place(CASES["two writes"], ()).launches]
    assert functions == ["kernel_0_copy", "kernel_1_write"]
    # of one cache in place and another that is copied first
    functions = [x.function for x in in_place(CASES["two writes"], ((0, 0),)).launches]
    assert functions == ["kernel_0_write", "kernel_1_write"]


@pytest.mark.parametrize("places", [[3], [-1], [0, 1, 2], [5, 5, 5], [-9, 8, 0, 7, -9]])
def test_in_place(places: list[int]) -> None:
    """Positions may be equal: the last one's row is what stays."""
    case = caches(1) if len(places) == 1 else caches(S)
    sizes = {"b": 2, "s": len(places)}
    tensors = case.tensors(sizes)
    tensors[4] = torch.tensor(places)
    file = in_place(case, ((0, 0), (1, 1)))
    names = {f"in{i}": x for i, x in enumerate(tensors)} | {f"out{i}": tensors[i] for i in (0, 1)}
    held = {n: Buffer(tuple(x.shape), x.stride(), x.dtype).fill(x) for n, x in names.items()}
    held["err"] = Buffer((1,), (1,), I64).fill(torch.zeros(1))
    given = {n: (b.bytes.numpy().tobytes(), b.start, b.stop, b.tensor.dtype) for n, b in held.items()}
    after = interpreter.run(file, given, case.symbols(sizes))
    for n, b in held.items():
        b.bytes.copy_(torch.frombuffer(bytearray(after[n]), dtype=torch.uint8))
        assert b.intact(), f"written outside of {n}"
    assert not held["err"].tensor.item()
    for n, expected in zip(("out0", "out1"), case.meaning(tensors, sizes), strict=True):
        torch.testing.assert_close(held[n].tensor, expected)


def launches(*stores: Store) -> list[list[Store]]:
    bounds = Bounds()
    for s in stores:
        for axis in s.axes:
            bounds.add(axis)
    return launches_of(stores, bounds)


def put(param: str, at: object, source: str = "in1", accumulate: bool = False, size: int = 4) -> Store:
    axis = Axis("i", size)
    return Store(param, (axis,), (PLACE, at), Load(source, (axis.symbol,), F32), accumulate)  # type: ignore[arg-type]


def test_what_may_meet_is_apart() -> None:
    i = ROW.symbol
    first = put("out0", i)
    assert len(launches(first, put("out0", i + 4))) == 1
    assert len(launches(put("out0", i + 4), first)) == 1
    assert len(launches(first, put("out1", i))) == 1
    for second in (put("out0", i), put("out0", i + 3), put("out0", 6 - i), put("out1", i, source="out0")):
        assert launches(first, second) == [[first], [second]]
    assert len(launches(put("out1", i, source="out0"), first)) == 2  # which is read before it is written
    assert len(launches(put("out0", i, accumulate=True), put("out0", i, accumulate=True))) == 2
    # axes of one name have sizes of their own
    wide = Store("out0", (WIDE,), (PLACE, WIDE.symbol), Load("in1", (WIDE.symbol,), F32))
    assert len(launches(wide, Store("out0", (WIDE,), (PLACE, WIDE.symbol + 8), Load("in1", (WIDE.symbol,), F32)))) == 1


def test_a_later_store_keeps_its_place() -> None:
    i = ROW.symbol
    copy = Store("out0", (WIDE,), (0, WIDE.symbol), Load("in1", (WIDE.symbol,), F32))
    first, other, last = put("out0", i), put("out1", i), put("out0", i)
    assert launches(copy, first, other, last) == [[copy, other], [first], [last]]
