"""Triton's interpreter in a process of its own: whether Triton interprets is fixed when it is first imported."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import sympy
import torch

from smelt.codegen.triton.file import KernelFile


@cache
def workers() -> ProcessPoolExecutor:
    """The process that interprets."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_start)
    atexit.register(pool.shutdown, wait=False, cancel_futures=True)
    return pool


def _start() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    warnings.simplefilter("ignore")  # NumPy's, of overflow and of NaN


def run(
    kernel: KernelFile, buffers: Mapping[str, tuple[bytes, int, torch.dtype]], sizes: Mapping[sympy.Symbol, int]
) -> dict[str, bytes]:
    """Launch a kernel under the interpreter.

    Args:
        kernel: the kernel.
        buffers: for each buffer its memory, where its tensor starts there, and the dtype.
        sizes: the value of each size symbol.

    Returns:
        The memory of each buffer afterwards.
    """
    return workers().submit(_run, kernel, dict(buffers), dict(sizes)).result()


def _run(
    kernel: KernelFile, buffers: Mapping[str, tuple[bytes, int, torch.dtype]], sizes: Mapping[sympy.Symbol, int]
) -> dict[str, bytes]:
    from smelt.codegen.triton import launch

    memory = {name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, (data, _, _) in buffers.items()}
    tensors = {}
    for name, (_, start, dtype) in buffers.items():
        rest = (len(memory[name]) - start) // dtype.itemsize * dtype.itemsize
        tensors[name] = memory[name][start : start + rest].view(dtype)
    launch.run(kernel, tensors, sizes)
    return {name: m.numpy().tobytes() for name, m in memory.items()}
