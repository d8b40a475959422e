"""Kernels to tune for a GPU, and worker processes without one: Triton interprets, and times are made up."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from smelt.codegen.gpu import GPU_MACHINES
from smelt.ir import ops
from smelt.ir.graph import Graph
from smelt.ir.types import SymbolRange, symbol
from smelt.runtime.gpu_tuner_task import GpuTask
from smelt.runtime.gpu_tuner_worker import GpuWorker

MACHINE = GPU_MACHINES["sm_90"]
ROWS = symbol("m")

# What a worker does otherwise than it should with a schedule whose ``group`` is this. Everything else is as it is.
WRONG, CRASHING, HANGING, FAULTING, SILENT = 101, 102, 103, 104, 105

_PLANTED = """
import os
from dataclasses import replace
from smelt.codegen.schedule_data import LibrarySchedule
from smelt.runtime import gpu_tuner_kernel as kernels, gpu_tuner_task as tasks, gpu_tuner_worker as worker

made = tasks.emit

def emit(name, program, schedule, ranges):
    file = made(name, program, schedule, ranges)
    planted = getattr(schedule, "group", 0)
    if planted == {crashing}:
        os.abort()
    if planted == {hanging}:
        while True:
            pass
    if planted == {faulting}:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if planted == {wrong}:
        text = file.text.replace("tl.zeros(", "1 + tl.zeros(")
        return replace(file, text=text, narrow=None)
    if planted == {silent}:  # computes nothing, and so is fastest
        return replace(file, launches=(), narrow=None)
    return file

tasks.emit = emit

class Made(kernels.Timer):
    def seconds(self, schedule, calls):
        calls[0]()
        if isinstance(schedule, LibrarySchedule):
            return {library}
        return 1e-6 if getattr(schedule, "block_n", 0) == 32 else 4e-6

    def forget(self, schedule):
        pass

worker.serve(lambda: worker.Server(lambda machine: kernels.Place(machine, "cpu", Made(), compiles=False)).answer)
"""


def linear(rows: int = 20, terms: int = 40, columns: int = 48, dtype: torch.dtype = torch.float32) -> GpuTask:
    """relu(x w^T) with symbolic rows."""
    x = ops.input(name="x", shape=(ROWS, terms), dtype=dtype)
    w = ops.input(name="w", shape=(columns, terms), dtype=dtype)
    region = Graph([x, w], [ops.relu(ops.linear(x, w))], symbols=[SymbolRange(ROWS, 1)])
    return GpuTask("k0", 3, region, ((0, 1),), packed=frozenset([1]), orders=(None, None), sizes={"m": rows})


def interpreting_worker(folder: Path, library: float = 2e-6, seconds: float = 60.0) -> GpuWorker:
    """A worker that interprets kernels, goes wrong as planted, and makes up times."""
    path = folder / "planted_gpu_worker.py"
    planted = {"wrong": WRONG, "crashing": CRASHING, "hanging": HANGING, "faulting": FAULTING, "silent": SILENT}
    path.write_text(_PLANTED.format(**planted, library=library))
    return GpuWorker(MACHINE, seconds, (sys.executable, str(path)), {"TRITON_INTERPRET": "1"})
