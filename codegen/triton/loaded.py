"""Launches of a kernel with everything done ahead that does not depend on its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
from torch import Tensor

from ...ir.types import concrete
from .file import KernelFile, Launch
from .launch import load


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
        place = {name: i for i, name in enumerate(names)}
        counts = [concrete(launch.programs, sizes) for launch in kernel.launches]
        pairs = [(launch, count) for launch, count in zip(kernel.launches, counts, strict=True) if count]
        self._parts = [_Part(kernel, launch, place, count, sizes) for launch, count in pairs]
        self.launches = len(self._parts)

    def __call__(self, tensors: Sequence[Tensor]) -> None:
        """Launch the kernel on the current stream."""
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
        launch = self._launch
        function = getattr(load(self._text), launch.function)
        options = {"num_warps": launch.warps, "num_stages": launch.stages, "enable_fp_fusion": True}
        compiled = function[(self._programs,)](*arguments, *self._sizes, **options)
        if compiled is not None:  # the interpreter returns nothing
            self._launcher = compiled[(self._programs, 1, 1)]


def interprets() -> bool:
    """Whether Triton interprets kernels in this process: ``TRITON_INTERPRET=1`` was set when it was imported."""
    import triton

    return bool(triton.knobs.runtime.interpret)
