"""Launches of kernels that are stored as machine code, with everything done ahead that does not depend on tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...ir.errors import BackendError
from ...ir.types import concrete
from .driver import Driver, parameters_of
from .stored import ScratchArgument, SizeArgument, Sizes, StoredKernel, StoredLaunch, TensorArgument

MOST_PROGRAMS = 2**31 - 1  # along the first axis of a grid

Blank = Callable[[int], Tensor]  # so many bytes of the GPU's memory


class CodeLauncher:
    """Launches stored kernels on one GPU.

    Args:
        driver: what loads and launches.
        device: the number of the GPU, as PyTorch counts.
        stream: the current stream of PyTorch, as an address.
        blank: gives memory of the GPU.
    """

    def __init__(self, driver: Driver, device: int, stream: Callable[[], int], blank: Blank) -> None:
        self.driver, self.device, self.stream, self.blank = driver, device, stream, blank

    def load(self, kernel: StoredKernel) -> None:
        """Load all functions of a kernel, so that no call has to.

        Raises:
            DriverError: the driver refuses the code.
        """
        for launch in kernel.launches:
            self._function(launch)

    def __call__(self, kernel: StoredKernel, sizes: Sizes) -> tuple[Callable[[Sequence[Tensor]], None], int]:
        """What launches a kernel at some sizes on the tensors of its step, and how many launches that is.

        Raises:
            BackendError: a launch would be of more programs than a grid has.
        """
        pairs = [(launch, concrete(launch.programs, sizes)) for launch in kernel.at(sizes)]
        for launch, programs in pairs:
            if not 0 <= programs <= MOST_PROGRAMS:
                raise BackendError(f"{launch.function} cannot be launched {programs} times: these sizes are too large")
        parts = [_Part(self, launch, programs, sizes) for launch, programs in pairs if programs]

        def run(tensors: Sequence[Tensor]) -> None:
            stream = self.stream()
            for part in parts:
                part(tensors, stream)

        return run, len(parts)

    def _function(self, launch: StoredLaunch) -> int:
        return self.driver.function(self.device, launch.code, launch.function, launch.shared)


class _Part:
    """One launch. Those of one executable take turns, so that its memory for arguments is used by one at a time."""

    def __init__(self, launcher: CodeLauncher, launch: StoredLaunch, programs: int, sizes: Sizes) -> None:
        self._launcher, self._launch = launcher, launch
        self._function = launcher._function(launch)
        self._programs, self._threads = programs, 32 * launch.warps
        numbered = list(enumerate(launch.arguments))
        values = [_size(launch, x, sizes) if isinstance(x, SizeArgument) else 0 for _, x in numbered]
        self._values, self._parameters = parameters_of(values)
        self._tensors = [(i, x.place) for i, x in numbered if isinstance(x, TensorArgument)]
        self._scratch = [(i, x.nbytes * programs) for i, x in numbered if isinstance(x, ScratchArgument) and x.nbytes]

    def __call__(self, tensors: Sequence[Tensor], stream: int) -> None:
        values: Any = self._values
        for i, place in self._tensors:
            values[i] = tensors[place].data_ptr()
        lent = [(i, self._launcher.blank(nbytes)) for i, nbytes in self._scratch]
        for i, memory in lent:  # its allocator gives it to nobody else before this stream is done with it
            values[i] = memory.data_ptr()
        launcher = self._launcher
        launcher.driver.launch(
            launcher.device,
            self._function,
            self._programs,
            self._threads,
            self._launch.shared,
            stream,
            self._parameters,
        )


def _size(launch: StoredLaunch, argument: SizeArgument, sizes: Sizes) -> int:
    """A size, which fits the argument's bits."""
    found = int(sizes[argument.symbol])
    if not 0 <= found < 1 << (argument.bits - 1):
        raise BackendError(f"{launch.function} takes {argument.symbol} in {argument.bits} bits, and it is {found}")
    return found


def bytes_on(device: torch.device) -> Blank:
    """What gives memory of a GPU by PyTorch's allocator, in the order of its current stream."""
    return lambda nbytes: torch.empty(nbytes, dtype=torch.uint8, device=device)
