"""A small kernel to tune, and worker processes in which some schedules are planted to go wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from smelt.codegen.schedule import MatmulSchedule
from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.ir.types import SymbolRange, symbol
from smelt.runtime.target import Target
from smelt.runtime.tuner_task import Task
from smelt.runtime.tuner_worker import Worker

ROWS = symbol("m")

# What a worker does otherwise than it should with a schedule whose block_k is this. Everything else is as it is.
FASTEST, CRASHING, HANGING, GREEDY = 1, 2, 3, 4

_PLANTED = """
import os
import smelt.runtime.kernels as kernels
from smelt.codegen.tvm import module
from smelt.runtime import tuner_worker

def text(name, program, schedule):
    planted = getattr(schedule, "block_k", 0)
    if planted == {fastest}:  # computes nothing, and so is fastest
        whole = module.kernel_text(name, program, schedule).splitlines()
        end = next(i for i, line in enumerate(whole) if line.startswith("    err = "))
        return "\\n".join([*whole[: end + 1], "    return T.int32(0)", ""])
    if planted == {crashing}:
        os.abort()
    if planted == {hanging}:
        while True:  # takes processor time, which is what is limited
            pass
    if planted == {greedy}:
        bytearray(64 << 30)
    return module.kernel_text(name, program, schedule)

kernels._emitter = lambda: text
tuner_worker.main()
"""


def target() -> Target:
    return Target.detect(threads=1)


def linear(rows: int = 24, terms: int = 40, columns: int = 64, dtype: torch.dtype = torch.float32) -> Task:
    """relu(x w^T) with symbolic rows."""
    x = ops.input(name="x", shape=(ROWS, terms), dtype=dtype)
    w = ops.input(name="w", shape=(columns, terms), dtype=dtype)
    region = Graph([x, w], [ops.relu(ops.linear(x, w))], symbols=[SymbolRange(ROWS, 1)])
    return Task("k0", 3, region, ((0, 1),), packed=frozenset([1]), orders=(None, None), sizes={"m": rows})


def default_of(task: Task) -> MatmulSchedule:
    schedule = task.step(target().machine).kernel.schedule
    assert isinstance(schedule, MatmulSchedule)
    return schedule


def planted_worker(folder: Path, seconds: float = 30.0) -> Worker:
    """A worker that goes wrong as planted."""
    path = folder / "planted_worker.py"
    names = {"fastest": FASTEST, "crashing": CRASHING, "hanging": HANGING, "greedy": GREEDY}
    path.write_text(_PLANTED.format(**names))
    return Worker(target(), seconds, command=(sys.executable, str(path)))
