"""The loops of products: tasks in even shares, and register tiles that stay in registers."""

import re
from collections.abc import Iterator

import pytest
import torch

from smelt.codegen.machine import Machine
from smelt.codegen.schedule import default_schedule
from smelt.codegen.tvm import module
from smelt.ir.types import symbol

from .harness import Case
from .matmul_cases import linear_case

M = symbol("m")
PROCESSOR = "znver4"  # with 512-bit vectors; nothing runs on it here


def text_of(case: Case) -> str:
    """The text of a product for a processor with dot instructions."""
    program = case.program()
    return module.kernel_text("k", program, default_schedule(program, Machine(has_bf16_dot=True)))


@pytest.mark.parametrize("total", [1, 7, 16, 17, 31, 121, 231, 1000])
def test_shares_of_tasks_differ_by_one_at_most(total: int) -> None:
    text = text_of(linear_case((M,), 512, 512))
    (most,) = re.findall(r"shares0: T.let = T.min\(total0, T.int64\((\d+)\)\)", text)
    (begin,) = re.findall(r"begin0\[0\] = (.*)", text)
    (count,) = re.findall(r"for task0 in range\((.*)\):", text)
    shares = min(total, int(most))
    tasks = []
    for share in range(shares):
        first = eval(begin, {"total0": total, "share0": share, "shares0": shares})
        some = eval(count, {"total0": total, "share0": share, "shares0": shares, "begin0": [first]})
        assert some in (total // shares, -(-total // shares))
        tasks += range(first, first + some)
    assert tasks == list(range(total))


def loops(assembly: str) -> Iterator[list[str]]:
    """The innermost loops of one block: from a label to the jump back to it."""
    label, body = "", list[str]()
    for line in assembly.splitlines():
        if found := re.match(r"(\.\w+):", line):
            label, body = found[1], []
        body.append(line)
        if label and re.search(rf"\tj\w+\t{re.escape(label)}$", line):
            yield body[:]
            label = ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("terms", "columns"), [(768, 768), (1024, 1024), (1024, 1536), (1040, 1024), (2048, 512)])
def test_a_register_tile_stays_in_registers(terms: int, columns: int, dtype: torch.dtype) -> None:
    case = linear_case((M,), terms, columns, dtype)
    count = len(case.program().params) + 1
    host = module.Host("main", (module.Call("k", tuple(range(count))),), count, case.program().symbols)
    assembly = module.build([text_of(case)], [host], PROCESSOR).mod.inspect_source("s")
    found = [body for body in loops(assembly) if sum("vfmadd" in x or "vdpbf16ps" in x for x in body) >= 24]
    assert found
    for body in found:
        # stores alone: where no register holds the frame, %rbp is an address like others, that of the panel for one
        moved = [line for line in body if re.search(r"%zmm\d+, -?\d*\(%r[sb]p\)", line)]
        assert len(moved) <= 2, "sums leave the registers"  # one of 24 may; unrolled, all of them do
