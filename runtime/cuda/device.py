"""What an executable asks of a GPU: memory, launches, streams, graphs. By PyTorch, or played on the CPU.

``host_device`` has no GPU: kernels run at once, by Triton's interpreter, and a graph is a list of launches that is run
again on the very same tensors, which is what a CUDA graph does with addresses.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Protocol

import torch
from torch import Tensor

from ...codegen.triton.expression import ERROR
from ...ir.collection import no_collection
from ...ir.types import concrete
from ..gpu import GpuKernel, GpuLibraryKernel, lent_to
from ..placement import Sizes
from ..target import usable_cores
from .errors import OutOfMemoryError, amount

Launch = Callable[[Sequence[Tensor]], None]
Launcher = Callable[[Any, Sizes], tuple[Launch, int]]  # of kernels of one kind


class Event(Protocol):
    """A place in the work of a stream."""

    def wait(self) -> None:
        """Let the current stream go on only once all work before this place is done."""

    def done(self) -> bool:
        """Whether all work before this place is done."""

    def synchronize(self) -> None:
        """Wait until all work before this place is done."""


class Graph(Protocol):
    """Launches that were captured.

    Attributes:
        nbytes: of the GPU's memory that was taken while it was captured, as the driver says.
    """

    nbytes: int

    def replay(self) -> None:
        """Launch all of it on the current stream."""


class Device(Protocol):
    """One GPU.

    Attributes:
        device: where tensors lie.
        cache_bytes: its second-level cache; None where nobody knows.
    """

    device: torch.device
    cache_bytes: int | None

    def current(self) -> AbstractContextManager[Any]:
        """While it is entered, launches go to this GPU."""

    def empty(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        """New memory.

        Raises:
            OutOfMemoryError: there is not enough.
        """

    def compile(self, kernels: Sequence[GpuKernel]) -> None:
        """Compile kernels before they are first launched, as far as that can be done."""

    def launcher(self, kernel: GpuKernel, sizes: Sizes) -> tuple[Launch, int]:
        """What launches a kernel on tensors (operands, results, scratch, error cell), and how many launches that is."""

    def stream(self) -> Any:
        """The current stream, comparable with others."""

    def used_on(self, tensors: Sequence[Tensor], stream: Any) -> None:
        """Keep the memory of tensors, once they are gone, until the work of a stream up to then is done."""

    def mark(self) -> Event:
        """The current stream's work so far."""

    def is_capturing(self) -> bool:
        """Whether somebody captures the current stream."""

    def capture(self, work: Callable[[], None]) -> Graph:
        """What ``work`` launches, as a graph. Nothing is run."""

    def lane(self, number: int) -> AbstractContextManager[Any]:
        """While it is entered in a capture, launches go to a side stream of that number; 0 is the capture's own."""

    def to_host(self, cell: Tensor) -> Tensor:
        """A tensor of the CPU for copies of a cell that nobody waits for."""

    def memory(self) -> tuple[int, int] | None:
        """Free and all bytes; None where nobody knows."""

    def release(self) -> None:
        """Give memory back that nobody uses."""


def names_of(kernel: GpuKernel) -> list[str]:
    """The tensors of a kernel in the order of its step's buffers."""
    program = kernel.program
    params = (*program.inputs, *program.outputs, *kernel.scratch)
    return [*(p.name for p in params), ERROR]


def _by_triton(kernel: GpuKernel, sizes: Sizes) -> tuple[Launch, int]:
    # imported here: it needs Triton
    from ...codegen.triton.loaded import Loaded

    loaded = Loaded(kernel.file, names_of(kernel), sizes)
    return loaded, loaded.launches


def launcher_of(kernel: GpuKernel, sizes: Sizes, launcher: Launcher) -> tuple[Launch, int]:
    """What launches a kernel by ``launcher``, or calls a library between kernels that are launched by it."""
    if not isinstance(kernel, GpuLibraryKernel):
        return launcher(kernel, sizes)
    library, known = kernel.library, {part.name: launcher(part, sizes) for part in kernel.library.parts}
    inputs, names = len(kernel.program.inputs), names_of(kernel)
    results = len(kernel.program.outputs)
    types = [x.tensor_type for x in (*kernel.region.inputs, *kernel.region.outputs)] + [p.type for p in kernel.scratch]
    shapes = [tuple(concrete(d, sizes) for d in type_.shape) for type_ in types]

    def launch(given: Sequence[Tensor]) -> None:
        tensors = [*(shaped(x, shape) for x, shape in zip(given, shapes, strict=False)), given[-1]]
        lent = dict(zip(names[inputs + results :], tensors[inputs + results :], strict=True))

        def part(beside: GpuKernel, operands: Sequence[Tensor], made: Sequence[Tensor]) -> None:
            memory = [lent[p.name] for p in lent_to(beside)]
            known[beside.name][0]([*operands, *made, *memory, lent[ERROR]])

        library.run(tensors[:inputs], tensors[inputs : inputs + results], lent, sizes, part)

    return launch, 1 + sum(count for _, count in known.values())


def shaped(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor as it is; in its shape where it is empty, for which other memory may stand."""
    return tensor if 0 not in shape else tensor.flatten()[:0].reshape(shape)


# --- a GPU ------------------------------------------------------------------------------------------------------------

_captures = threading.Lock()  # one capture at a time in a process


def torch_device(index: int, launcher: Launcher | None = None) -> Device:
    """A GPU by ``torch.cuda``.

    Args:
        index: its number.
        launcher: what launches kernels that need no compiling; by default Triton compiles and launches them.
    """
    return _TorchDevice(index, launcher)


class _TorchDevice:
    def __init__(self, index: int, launcher: Launcher | None) -> None:
        self.index, self._launcher = index, launcher
        self.device = torch.device("cuda", index)
        found = int(getattr(torch.cuda.get_device_properties(index), "L2_cache_size", 0))
        self.cache_bytes = found or None
        self._side: Any = None  # the stream that graphs are captured on
        self._lanes: dict[int, Any] = {}  # those beside it

    def current(self) -> AbstractContextManager[Any]:
        return nullcontext() if torch.cuda.current_device() == self.index else torch.cuda.device(self.index)

    def empty(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        try:
            return torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype, device=self.device)
        except torch.OutOfMemoryError as error:
            reason = str(error)
        last = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1 if 0 not in shape else 0
        raise out_of_memory(last * dtype.itemsize, self, reason)

    def compile(self, kernels: Sequence[GpuKernel]) -> None:
        if self._launcher is not None:
            return
        # imported here: it needs Triton
        from ...codegen.triton.loaded import compile_ahead

        # a thread's own current device is the first one
        compile_ahead(
            [file for kernel in kernels for file in kernel.files], usable_cores(), lambda: torch.cuda.device(self.index)
        )

    def launcher(self, kernel: GpuKernel, sizes: Sizes) -> tuple[Launch, int]:
        return launcher_of(kernel, sizes, self._launcher or _by_triton)

    def stream(self) -> Any:
        return torch.cuda.current_stream(self.index)

    def used_on(self, tensors: Sequence[Tensor], stream: Any) -> None:
        for tensor in tensors:
            tensor.record_stream(stream)

    def mark(self) -> Event:
        return _TorchEvent(torch.cuda.current_stream(self.index))

    def is_capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def capture(self, work: Callable[[], None]) -> Graph:
        if self._side is None:
            self._side = torch.cuda.Stream(self.index)  # type: ignore[no-untyped-call]
        free, _ = torch.cuda.mem_get_info(self.index)
        graph = torch.cuda.CUDAGraph()
        # nothing is freed meanwhile, which a capture would not survive; other threads may allocate
        with _captures, no_collection(), _workspaces(), torch.cuda.stream(self._side):
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                with suppress(RuntimeError):  # that the capture is not valid any more
                    graph.capture_end()
                raise
            graph.capture_end()
        now, _ = torch.cuda.mem_get_info(self.index)
        return _TorchGraph(graph, max(free - now, 0))

    def lane(self, number: int) -> AbstractContextManager[Any]:
        if not number:
            return nullcontext()
        if number not in self._lanes:
            self._lanes[number] = torch.cuda.Stream(self.index)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._lanes[number])

    def to_host(self, cell: Tensor) -> Tensor:
        return torch.zeros(cell.shape, dtype=cell.dtype, device="cpu", pin_memory=True)

    def memory(self) -> tuple[int, int] | None:
        free, total = torch.cuda.mem_get_info(self.index)
        return free, total

    def release(self) -> None:
        torch.cuda.empty_cache()


@contextmanager
def _workspaces() -> Iterator[None]:
    """cuBLAS's workspaces of a graph are its own: not those of other work, nor of graphs that are captured later.

    PyTorch keeps one for each stream; two graphs with the same one must not be replayed at once.
    """
    clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", void)
    clear()
    try:
        yield
    finally:
        clear()


def void() -> None:
    """Nothing."""


class _TorchEvent:
    def __init__(self, stream: Any) -> None:
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(stream)

    def wait(self) -> None:
        self._event.wait(torch.cuda.current_stream())

    def done(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def synchronize(self) -> None:
        self._event.synchronize()


class _TorchGraph:
    def __init__(self, graph: Any, nbytes: int) -> None:
        self._graph, self.nbytes = graph, nbytes

    def replay(self) -> None:
        self._graph.replay()


def out_of_memory(needed: int | None, device: Device, reason: str) -> OutOfMemoryError:
    """The error of memory that is not there, with PyTorch's words."""
    memory = device.memory()
    free = None if memory is None else memory[0]
    found = "" if memory is None else f", {amount(free)} of {amount(memory[1])} were free"
    return OutOfMemoryError(
        f"{device.device} is out of memory: {amount(needed)} were needed{found}. Call the model with fewer rows, or "
        f"free what you do not need. PyTorch said: {reason.splitlines()[0] if reason else 'nothing'}",
        needed,
        free,
    )


# --- no GPU -----------------------------------------------------------------------------------------------------------


def host_device(launcher: Launcher | None = None) -> Device:
    """The CPU's memory, and kernels that run at once.

    Args:
        launcher: what launches a kernel; by default Triton, which must interpret.
    """
    return _HostDevice(launcher or _by_triton)


class _HostDevice:
    device = torch.device("cpu")
    cache_bytes: int | None = None

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._recording: list[Callable[[], None]] | None = None

    def current(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def empty(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype)

    def compile(self, kernels: Sequence[GpuKernel]) -> None:
        pass

    def launcher(self, kernel: GpuKernel, sizes: Sizes) -> tuple[Launch, int]:
        launch, count = launcher_of(kernel, sizes, self._launcher)

        def recorded(tensors: Sequence[Tensor]) -> None:
            if self._recording is None:
                launch(tensors)
            else:
                self._recording.append(lambda: launch(tensors))

        return recorded, count

    def stream(self) -> Any:
        return None

    def used_on(self, tensors: Sequence[Tensor], stream: Any) -> None:
        pass

    def mark(self) -> Event:
        return _Done()

    def is_capturing(self) -> bool:
        return False

    def capture(self, work: Callable[[], None]) -> Graph:
        self._recording = []
        try:
            work()
            return _HostGraph(self._recording)
        finally:
            self._recording = None

    def lane(self, number: int) -> AbstractContextManager[Any]:
        return nullcontext()

    def to_host(self, cell: Tensor) -> Tensor:
        return torch.zeros(cell.shape, dtype=cell.dtype, device="cpu")

    def memory(self) -> tuple[int, int] | None:
        return None

    def release(self) -> None:
        pass


class _Done:
    def wait(self) -> None:
        pass

    def done(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass


class _HostGraph:
    nbytes = 0

    def __init__(self, launches: Sequence[Callable[[], None]]) -> None:
        self._launches = launches

    def replay(self) -> None:
        for launch in self._launches:
            launch()
