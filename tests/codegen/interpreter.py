"""Triton's interpreter in a process of its own: whether Triton interprets is fixed when it is first imported."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import sympy
import torch

from smelt.codegen.triton.file import KernelFile

Held = tuple[bytes, int, int, torch.dtype]
_readable: list[tuple[int, int]] = []  # addresses of the tensors of the kernel that runs


@cache
def workers() -> ProcessPoolExecutor:
    """The process that interprets."""
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_start)
    atexit.register(pool.shutdown, wait=False, cancel_futures=True)
    return pool


def _start() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    warnings.simplefilter("ignore")  # NumPy's, of overflow and of NaN
    patch_once()


def patch_once() -> None:
    """Let the interpreter put itself in the language's place once, not for every call of every function.

    That takes most of its time, and nothing in this process needs the language as it was.
    """
    from triton import language
    from triton.runtime import interpreter

    if not (hasattr(interpreter, "_patch_lang") and hasattr(interpreter, "_LangPatchScope")):
        return  # another version
    patch, done = interpreter._patch_lang, set()

    def once(function: Any) -> Any:
        seen = tuple(x in function.__globals__.values() for x in (language, language.core))
        if seen not in done:
            done.add(seen)
            patch(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = once
    load = interpreter.InterpreterBuilder.create_masked_load

    def checked(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        for address in pointers.data[np.asarray(mask.data, bool)].reshape(-1).tolist() if _readable else ():
            if not any(start <= address < stop for start, stop in _readable):
                raise AssertionError("a kernel reads outside of its tensors")
        return load(self, pointers, mask, *rest, **named)

    interpreter.InterpreterBuilder.create_masked_load = checked


def run(kernel: KernelFile, buffers: Mapping[str, Held], sizes: Mapping[sympy.Symbol, int]) -> dict[str, bytes]:
    """Launch a kernel under the interpreter.

    Args:
        kernel: the kernel.
        buffers: for each buffer its memory, where its tensor starts and ends there, and the dtype.
        sizes: the value of each size symbol.

    Returns:
        The memory of each buffer afterwards.
    """
    return workers().submit(_run, kernel, dict(buffers), dict(sizes)).result()


def _run(kernel: KernelFile, buffers: Mapping[str, Held], sizes: Mapping[sympy.Symbol, int]) -> dict[str, bytes]:
    from smelt.codegen.triton import launch

    memory = {name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, (data, _, _, _) in buffers.items()}
    tensors = {}
    for name, (_, start, stop, dtype) in buffers.items():
        _readable.append((memory[name].data_ptr() + start, memory[name].data_ptr() + stop))
        rest = (len(memory[name]) - start) // dtype.itemsize * dtype.itemsize
        tensors[name] = memory[name][start : start + rest].view(dtype)
    try:
        launch.run(kernel, tensors, sizes)
    finally:
        _readable.clear()
    return {name: m.numpy().tobytes() for name, m in memory.items()}
