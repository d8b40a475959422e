"""Launches of a kernel with everything done ahead that does not depend on its tensors."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import sympy
import torch
from torch import Tensor

from ...ir.errors import BackendError
from ...ir.types import concrete
from .expression import ERROR
from .file import KernelFile, Launch
from .launch import DESCRIPTOR, compiled, interprets, lend_descriptors, load

_loading = threading.Lock()
SIZE = 1000  # a size, as good as any: kernels are not specialised on them


class Loaded:
    """The launches of a kernel for some sizes.

    The first call of each has Triton compile it and load it on the current device. Later calls take what was compiled
    then: their tensors must be of the same dtypes and aligned as well, to 16 bytes.

    Args:
        kernel: the kernel.
        names: the parameters and scratch buffers in the order in which tensors are given, the error cell among them.
        sizes: the value of each size symbol.

    Attributes:
        launches: how many there are.
    """

    def __init__(self, kernel: KernelFile, names: Sequence[str], sizes: Mapping[sympy.Symbol, int]) -> None:
        kernel = kernel.at(sizes)
        place = {name: i for i, name in enumerate(names)}
        counts = [concrete(launch.programs, sizes) for launch in kernel.launches]
        pairs = [(launch, count) for launch, count in zip(kernel.launches, counts, strict=True) if count]
        self._parts = [_Part(kernel, launch, place, count, sizes) for launch, count in pairs]
        self.launches = len(self._parts)
        self._describes = DESCRIPTOR in kernel.text

    def __call__(self, tensors: Sequence[Tensor]) -> None:
        """Launch the kernel on the current stream."""
        if self._describes:  # each thread has to say so
            lend_descriptors(tensors[0].device)
        for part in self._parts:
            part(tensors)


class _Part:
    """One function of a kernel."""

    def __init__(
        self,
        kernel: KernelFile,
        launch: Launch,
        place: Mapping[str, int],
        programs: int,
        sizes: Mapping[sympy.Symbol, int],
    ) -> None:
        self._text, self._launch = kernel.text, launch
        self._places = tuple(place[name] for name in launch.buffers)
        self._sizes = tuple(int(sizes[s]) for s in launch.symbols)
        self._programs = int(programs)
        self._launcher: Callable[..., Any] | None = None

    def __call__(self, tensors: Sequence[Tensor]) -> None:
        arguments = [tensors[i] for i in self._places]
        if self._launcher is not None:
            self._launcher(*arguments, *self._sizes)
            return
        function = function_of(self._text, self._launch)
        if interprets():
            function[(self._programs,)](*arguments, *self._sizes)
            return
        try:
            found = compiled(function, self._launch, [*arguments, *self._sizes])
            launcher = found[(self._programs, 1, 1)]
            launcher(*arguments, *self._sizes)
        except Exception as error:  # whatever Triton, LLVM, the assembler or the driver raises
            raise BackendError(f"Triton cannot compile or load {self._launch.function}: {error}") from error
        self._launcher = launcher


def function_of(text: str, launch: Launch) -> Any:
    """A function of a kernel's source. Every thread gets the same, which is compiled once."""
    with _loading:
        return getattr(load(text), launch.function)


def compile_ahead(
    kernels: Sequence[KernelFile], threads: int, device: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> None:
    """Compile kernels, several at a time, so that their first launches find them compiled.

    ``device`` makes the device that they are for the current one of a thread. What cannot be compiled is left to its
    first launch, which says why.
    """
    if interprets():
        return
    # of two widths of offsets the one that most sizes take
    likely = [kernel.narrow or kernel for kernel in kernels]
    pairs = [(kernel, launch) for kernel in likely for launch in kernel.launches]
    with ThreadPoolExecutor(max(min(threads, len(pairs)), 1)) as pool:
        for done in [pool.submit(_compile, *pair, device) for pair in pairs]:
            done.exception()


def _compile(kernel: KernelFile, launch: Launch, device: Callable[[], AbstractContextManager[Any]]) -> None:
    dtypes = {p.name: p.type.dtype for p in (*kernel.params, *kernel.scratch)} | {ERROR: torch.int64}
    function = function_of(kernel.text, launch)
    arguments = [*(dtypes[name] for name in launch.buffers), *([SIZE] * len(launch.symbols))]
    with device():
        compiled(function, launch, arguments)
