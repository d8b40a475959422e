"""Times products by dot instructions: ``python -m tests.codegen.measure_dot [bf16 | int8] [MxKxN ...]``.

With ``THREADS`` in the environment, so many are used, else two; with ``TVM_BIND_THREADS=0``, which is read when TVM is
loaded, they are not tied to cores, as PyTorch's threads would be then too.

The schedules and PyTorch take turns, and the least time of each gives operations per second, beside the roof that
multiply-adds between registers reach in the same run. Weights are packed before, as in a compilation.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from smelt.codegen.lower import Operand, lower
from smelt.codegen.machine import Machine
from smelt.codegen.schedule import Schedule, candidates, panel_layout, scratch
from smelt.codegen.tvm import module
from smelt.codegen.tvm.packing import aligned_empty, pack_panels
from smelt.codegen.tvm.peak import kinds, meter
from smelt.ir import ops
from smelt.ir.types import symbol
from smelt.runtime.roofs import rate
from smelt.runtime.target import Target

from .cases import region

M = symbol("m")
SHAPES = (
    "128x768x768",
    "128x768x2304",
    "128x768x3072",
    "128x3072x768",
    "384x768x3072",
    "1x768x3072",
    "8x768x3072",
    "17x768x3072",
)
PAUSE = 0.01  # seconds
Run = Callable[[], Any]


def aligned(tensor: Tensor) -> Tensor:
    """A copy at the address of a cache line."""
    return aligned_empty(tuple(tensor.shape), tensor.dtype).copy_(tensor)


def drawn(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Small random numbers."""
    if dtype == torch.int8:
        return torch.randint(-128, 128, shape, dtype=dtype)
    return torch.randn(shape).to(dtype)


def kernels(terms: int, columns: int, dtype: torch.dtype, machine: Machine) -> dict[Schedule, tuple[Run, Any]]:
    """For each schedule, a function of rows, operands and result that runs the kernel."""
    x, w = (ops.input(name=n, shape=s, dtype=dtype) for n, s in (("0", (M, terms)), ("1", (columns, terms))))
    if dtype == torch.int8:
        wide = [ops.cast(v, dtype=torch.int32) for v in (x, w)]
        result = ops.linear(*wide)
    else:
        result = ops.linear(x, w)
    operands = [Operand((terms, 1), False), Operand((terms, 1), True)]
    program = lower(region([x, w], [result]), operands, [range(2)])
    found = {}
    schedules = candidates(program, machine)
    texts = [module.kernel_text(f"k{i}", program, s) for i, s in enumerate(schedules)]
    count = len(program.params) + 1
    hosts = [
        module.Host(f"main{i}", (module.Call(f"k{i}", tuple(range(count))),), count, (M,)) for i in range(len(texts))
    ]
    built = module.build(texts, hosts, module.host_cpu())
    for i, schedule in enumerate(schedules):
        assert not scratch(program, schedule)
        found[schedule] = built[f"main{i}"]
    return found


def runs(rows: int, terms: int, columns: int, dtype: torch.dtype, machine: Machine) -> dict[str, Run]:
    """What is timed, by name: the default schedule, the others, and PyTorch."""
    x, w = aligned(drawn((rows, terms), dtype)), drawn((columns, terms), dtype)
    result = torch.int32 if dtype == torch.int8 else dtype
    found: dict[str, Run] = {}
    error = aligned(torch.zeros(1, dtype=torch.int64))
    for number, (schedule, main) in enumerate(kernels(terms, columns, dtype, machine).items()):
        panels = pack_panels(w.T, panel_layout(schedule))
        out = aligned_empty((rows, columns), result)
        table = torch.tensor([t.data_ptr() for t in (x, panels, out, error)])
        sizes = torch.tensor([rows])
        name = "smelt" if not number else f"{schedule.tile_m}x{schedule.tile_n}"  # type: ignore[union-attr]
        found[name] = lambda main=main, table=table, sizes=sizes, keep=(panels, out): main(table, sizes)
    if dtype != torch.int8:
        found["torch"] = lambda: torch.nn.functional.linear(x, w)
    elif rows > 16:  # fewer are refused
        found["torch"] = lambda: torch._int_mm(x, w.T)
    return found


def least(timed: dict[str, Run], seconds: float) -> dict[str, float]:
    """The least time of each, taking turns, in seconds: others may use the machine too.

    A turn begins with runs that are not timed: threads of the one before keep a core busy for a while.
    """
    times: dict[str, list[float]] = {name: [] for name in timed}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["smelt"]) < 5:
        for name, run in timed.items():
            ready = time.perf_counter() + PAUSE
            while time.perf_counter() < ready:
                run()
            for _ in range(3):
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
    return {name: min(ts) for name, ts in times.items()}


def main(arguments: Sequence[str]) -> None:
    """Print one line for each shape."""
    wanted = [a for a in arguments if a in ("bf16", "int8")] or ["bf16", "int8"]
    shapes = [a for a in arguments if a not in wanted] or list(SHAPES)
    threads = int(os.environ.get("THREADS", "2"))
    if os.environ.get("TVM_BIND_THREADS") != "0":
        raise SystemExit("set TVM_BIND_THREADS=0, and TVM_NUM_THREADS to the number of cores")
    target = Target.detect("cpu", threads)
    machine = target.machine
    torch.set_num_threads(threads)
    module.set_threads(threads)
    roofs = {k.name: rate(meter(k, threads, target.cpu)) / 1e9 for k in kinds(machine, target.features)}
    for kind in wanted:
        dtype, roof = (torch.bfloat16, roofs["bfloat16"]) if kind == "bf16" else (torch.int8, roofs["int8"])
        print(f"{kind}: roof {roof:.0f} Gop/s")
        for shape in shapes:
            rows, terms, columns = map(int, shape.split("x"))
            found = least(runs(rows, terms, columns, dtype, machine), 0.8)
            rates = {name: 2e-9 * rows * terms * columns / t for name, t in found.items()}
            speed = 1e-9 * terms * columns * dtype.itemsize / found["smelt"]
            first = f"{shape:14} {1e6 * found['smelt']:8.1f} us {100 * rates['smelt'] / roof:5.1f} % {speed:6.1f} GB/s"
            print(first, *(f"{name} {rate:6.0f}" for name, rate in rates.items()), sep="  ", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.no_grad():
        main(sys.argv[1:])
