"""What a product asks for ahead: one tile of rows what it reads itself, several all of what comes next, evenly."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from smelt.codegen.lower import Operand, lower
from smelt.codegen.machine import Machine
from smelt.codegen.schedule import MatmulSchedule, default_schedule
from smelt.codegen.tvm import module
from smelt.codegen.tvm.prefetch import AHEAD
from smelt.ir import ops
from smelt.ir.types import symbol

from .cases import region

LINE = 64
T = SimpleNamespace(Select=lambda test, yes, no: yes if test else no, int64=int)


def kernel(terms: int, dtype: torch.dtype) -> tuple[str, MatmulSchedule]:
    """The text of a product with 768 columns, for a processor with all that there is."""
    m, machine = symbol("m"), Machine(has_bf16_dot=True)
    x, w = (ops.input(name=n, shape=s, dtype=dtype) for n, s in (("0", (m, terms)), ("1", (768, terms))))
    program = lower(
        region([x, w], [ops.linear(x, w)]), [Operand((terms, 1), False), Operand((terms, 1), True)], [[0, 1]]
    )
    schedule = default_schedule(program, machine)
    assert isinstance(schedule, MatmulSchedule)
    return module.kernel_text("k", program, schedule), schedule


def asked(text: str, tiles: int, start: int, terms: int) -> list[set[int]]:
    """For each tile, the lines that it asks for from a block of rows on, counted from that block's first element."""
    lets = dict(re.findall(r"(step|ahead)0: T.let = (.*)", text))
    places = re.findall(r"helpers\.prefetch\(\w+\[(.*)\]\)", text)[:3]  # those of the tallest tile of rows
    blocked = "+ k0 * step0" in places[0]
    found = []
    for tile in range(tiles):
        known: dict[str, Any] = {
            "T": T,
            "tiles0": tiles,
            "tile0": tile,
            "terms0": terms,
            "start0": start,
            "panel0": [0],
        }
        known |= {f"{name}0": eval(value, known) for name, value in lets.items() if name == "step"}
        known["ahead0"] = eval(lets["ahead"], known)
        origin = start * 48 if blocked else 0
        found.append({(eval(p, known | {"k0": k}) - origin) * 4 // LINE for p in places for k in range(terms)})
    return found


@pytest.mark.parametrize(("terms", "dtype"), [(768, torch.float32), (3072, torch.float32), (1536, torch.bfloat16)])
@pytest.mark.parametrize("tiles", [2, 3, 5, 16, 24])
def test_tiles_share_what_comes_next(terms: int, dtype: torch.dtype, tiles: int) -> None:
    text, schedule = kernel(terms, dtype)
    rows = schedule.block_k if schedule.blocked else terms // schedule.group
    lines = rows * 48 * 4 // LINE
    found = asked(text, tiles, 0, rows)
    assert set(range(lines, 2 * lines)) <= set.union(*found)
    assert max(map(len, found)) <= 2 * lines // tiles + 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_tile_asks_for_what_it_reads(dtype: torch.dtype) -> None:
    text, schedule = kernel(768, dtype)
    rows = 768 // schedule.group
    ahead, lines = AHEAD // LINE, rows * 48 * 4 // LINE
    assert asked(text, 1, 0, rows) == [set(range(ahead, ahead + lines))]


def test_small_weights_are_left_alone() -> None:
    assert "prefetch" not in kernel(64, torch.float32)[0]
