"""Times a norm and the product after it, in one kernel and in two: ``python -m tests.codegen.measure_prologues``.

The two take turns, and the least time of each is printed, in microseconds, with what bounds it from below:
the operations of the product at the machine's roof, and the bytes of the weight.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from smelt.codegen.lower import Operand, lower
from smelt.codegen.machine import Machine
from smelt.codegen.program import Format, Program
from smelt.codegen.schedule import Schedule, default_schedule, panel_layout
from smelt.codegen.tvm import module
from smelt.codegen.tvm.packing import aligned_empty, pack_panels
from smelt.ir import ops
from smelt.ir.cost import Roofs
from smelt.ir.node import Node
from smelt.ir.types import symbol

from .cases import region

M = symbol("m")
ROWS = (1, 8, 128, 1024)
SHAPES = ((768, 768), (768, 2304), (768, 3072), (2048, 768))
Step = tuple[Sequence[Node], Sequence[Node]]


def steps(terms: int, columns: int, stored: bool) -> tuple[list[Step], list[Step]]:
    """The regions of one kernel, and those of two; with ``stored`` the norm is a result."""

    def source(i: int, *shape: object) -> Node:
        return ops.input(name=str(i), shape=shape, dtype=torch.float32)

    x, g, h, w, b = (
        source(0, M, terms),
        source(1, terms),
        source(2, terms),
        source(3, columns, terms),
        source(4, columns),
    )
    y = source(0, M, terms)
    norm = ops.layer_norm(x, g, h)
    results = [ops.linear(norm, w, b), *([norm] if stored else [])]
    after = source(1, columns, terms), source(2, columns)
    return [([x, g, h, w, b], results)], [([x, g, h], [norm]), ([y, *after], [ops.linear(y, *after)])]


def programs(found: Sequence[Step]) -> list[tuple[Program, Schedule]]:
    """Programs and schedules of regions."""
    machine, made = Machine(), []
    for inputs, outputs in found:
        operands = [Operand((*n.shape[1:], 1) if n.tensor_type.rank == 2 else (1,), _is_weight(n)) for n in inputs]
        layouts = [range(n.tensor_type.rank) for n in outputs]
        program = lower(region(inputs, outputs), operands, layouts)
        made.append((program, default_schedule(program, machine)))
    return made


def _is_weight(node: Node) -> bool:
    return node.tensor_type.rank == 2 and isinstance(node.shape[0], int)


def runner(name: str, built: object, buffers: Sequence[Tensor], rows: int) -> Callable[[], None]:
    """A call of a host function."""
    table = torch.tensor([b.data_ptr() for b in buffers])
    sizes = torch.tensor([rows])
    return lambda: built[name](table, sizes)  # type: ignore[index]


def aligned(*shape: int) -> Tensor:
    """Random floats at the address of a cache line."""
    return aligned_empty(shape, torch.float32).normal_()


def measure(terms: int, columns: int, stored: bool, turns: int) -> None:
    """Print one line for each number of rows."""
    one, two = map(programs, steps(terms, columns, stored))
    texts = [module.kernel_text(f"k{i}", p, s) for i, (p, s) in enumerate([*one, *two])]
    # addresses: x, scale, shift, weight, bias, result, norm, error
    fused = (0, 1, 2, 3, 4, 5, 6, 7)  # the norm is a result, or what the kernel is lent
    calls = [module.Call("k0", fused)], [module.Call("k1", (0, 1, 2, 6, 7)), module.Call("k2", (6, 3, 4, 5, 7))]
    hosts = [module.Host(f"main{i}", tuple(c), 8, (M,)) for i, c in enumerate(calls)]
    built = module.build(texts, hosts, module.host_cpu())
    weight = pack_panels(aligned(terms, columns), panel_layout(one[0][1]))
    assert panel_layout(one[0][1]) == panel_layout(two[1][1])
    assert any(p.format is Format.PANELS for p in one[0][0].params)
    roofs = Roofs()
    for rows in ROWS:
        error = aligned_empty((1,), torch.int64).zero_()
        buffers = [aligned(rows, terms), aligned(terms), aligned(terms), weight, aligned(columns)]
        buffers += [aligned(rows, columns), aligned(rows, terms), error]
        runs = [runner(h.name, built, buffers, rows) for h in hosts]
        best = least(runs, max(turns * 128 // max(rows, 32), 20))
        floor = 1e6 * max(2 * rows * terms * columns / roofs.matmul_flops, weight.nbytes / roofs.bytes_per_second)
        label = f"{rows}x{terms}x{columns}{' stored' if stored else ''}"
        print(
            f"{label:24} one {best[0]:9.1f}  two {best[1]:9.1f}  ratio {best[0] / best[1]:.3f}  floor {floor:9.1f}",
            flush=True,
        )


def least(runs: Sequence[Callable[[], None]], turns: int) -> list[float]:
    """The least time of each, taking turns, in microseconds."""
    best = [float("inf")] * len(runs)
    for _ in range(turns):
        for i, run in enumerate(runs):
            run()  # what it reads is in cache as its own last run left it
            start = time.perf_counter()
            run()
            best[i] = min(best[i], 1e6 * (time.perf_counter() - start))
    return best


if __name__ == "__main__":
    torch.manual_seed(0)
    module.set_threads(2)
    for shape in SHAPES:
        for stored in (False, True):
            measure(*shape, stored, int(sys.argv[1]) if len(sys.argv) > 1 else 200)
