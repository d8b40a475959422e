"""An executable for a GPU: Triton kernels launched one by one, or replayed as CUDA graphs.

All work of a call is put on the caller's current stream, and nothing waits for it: results are there once that stream
gets to them. Two things do wait: a call that runs kernel by kernel and may find an index out of range, and steps of
PyTorch that wait themselves.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...ir import ops
from ...ir.errors import UnsupportedError
from ..compiled import Compiled
from ..direct import direct
from ..gpu import GpuKernel
from ..placement import Placed, Sizes, nbytes_of, placed
from ..plan import Buffer, KernelStep, Place, TorchStep
from ..run import stand_in
from ..shared import shared
from ..tensors import ALIGNMENT, is_dense
from ..weights import Values
from .binding import Binding, Prepared
from .device import Device, Event, Launch, out_of_memory
from .errors import OutOfMemoryError
from .graphs import ALONE, Graphed, SideBySide, capture
from .history import CALLS_BEFORE, MOST_GRAPHS, History
from .invalid import has_invalid, invalid
from .report import GraphCounts, GraphReport
from .runs import DirectRun, EagerRun, GraphRun

MOST_BINDINGS = 64  # sets of sizes whose launches are prepared
OUT_OF_RANGE = "index out of range: an index given to embedding, gather or scatter is outside its tensor"

EARLIER = f"{OUT_OF_RANGE} (in an earlier call, the results of which are NaN)"


@dataclass(kw_only=True)
class CudaExecutable(Compiled):
    """Runs a captured graph on a GPU.

    Attributes:
        gpu: the GPU.
        most_graphs: of how many kinds of calls graphs are held; 0 for none.
        side_by_side: on how many streams the launches of a graph may be. More than one takes a plan by levels.
    """

    gpu: Device
    most_graphs: int = MOST_GRAPHS
    side_by_side: SideBySide = ALONE

    def __post_init__(self) -> None:
        super().__post_init__()
        self.device = self.gpu.device
        self.counts = GraphCounts()
        self._bindings: OrderedDict[tuple[int, ...], Binding] = OrderedDict()
        self._graphs: OrderedDict[Any, Graphed] = OrderedDict()
        self._last_graph: Graphed | None = None
        self._refused: dict[tuple[int, ...], str] = {}
        self._shares: list[Any] = []
        self._made: list[Tensor] = []  # weights that are not the model's own memory
        self._arena: Tensor | None = None
        self._mark: Event | None = None
        self._stream: Any = None
        kernels = [step.kernel for step in self.plan.steps if isinstance(step, KernelStep)]
        self.can_fail = any(kernel.checks_indices for kernel in kernels)
        graph, plan = self.plan.graph, self.plan
        targets = {m.target for m in graph.mutations if plan.is_in_place(m)}
        written = frozenset(i for i, node in enumerate(graph.inputs) if node in targets)
        self._history = History(len(graph.inputs), written)
        # what each call looks at
        self.inputs = [plan.home[node].position for node in graph.inputs]
        self.results = [buffer for buffer in plan.buffers if buffer.place is Place.OUTPUT]
        self.apart = [m for m in graph.mutations if not plan.is_in_place(m)]
        self.direct = direct(plan)
        types = [node.dtype for node in graph.outputs]
        # whether nobody need wait for the cell after a replay: all results can be made such that they show it
        self.may_be_late = self.can_fail and bool(types) and all(has_invalid(dtype) for dtype in types)
        self._late: threading.Thread | None = None  # whose calls nobody looked at the cell after
        self._told: weakref.WeakKeyDictionary[threading.Thread, str] = weakref.WeakKeyDictionary()
        with torch.inference_mode(False), self.gpu.current():
            self._error = self.gpu.empty((1,), (1,), torch.int64).zero_()
            self.wrong = self._error.view(torch.bool)[0]  # the cell's first byte, as the kernels set it
            self._seen = self.gpu.to_host(self._error)
            dtypes = {node.dtype for node in self.plan.graph.outputs if has_invalid(node.dtype)}
            self._invalid = {dtype: invalid(dtype, self.device) for dtype in dtypes}
        self.refresh(self.weights)

    # --- weights ------------------------------------------------------------------------------------------------------

    def refresh(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights as they are now: derived ones are computed again, and graphs are captured anew.

        Raises:
            UnsupportedError: a weight that calls change is on another device.
        """
        with self._lock, torch.inference_mode(False), torch.no_grad(), self.gpu.current():
            self._take_turn()
            self._check_targets(weights)
            self._forget()
            self.weights = {name: self._here(tensor) for name, tensor in weights.items()}
            self._values = Values(self.plan, self.weights, self.derived)
            self.weight_errors = None
            before, self._shares, self._made = (self._shares, self._made), [], []
            self._packed = {b.position: self._resident(b) for b in self.plan.buffers if b.place is Place.WEIGHT}
            del before
            self._watch_weights()
            self._mark = self.gpu.mark()

    def _here(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.device == self.device else tensor.to(self.device)

    def _check_targets(self, weights: Mapping[str, Tensor]) -> None:
        for mutation in self.plan.graph.mutations:
            name = str(mutation.target.attrs["name"])
            if mutation.target.is_a(ops.weight) and name in weights and weights[name].device != self.device:
                raise UnsupportedError(
                    f"calls change {name}, which is on {weights[name].device} and not on {self.device}: move it there"
                )

    def _resident(self, buffer: Buffer) -> Tensor:
        """The memory of a weight, as kernels read it: the model's own where that is row-major."""
        if self._values.is_joined(buffer.name):
            return torch.zeros(1, dtype=buffer.type.dtype, device=self.device)  # which nothing reads
        value = self._values[buffer.name]
        if not value.numel():
            return stand_in(value)
        if not is_dense(value):
            self._made.append(value.contiguous().clone())
            return self._made[-1]
        if buffer.name not in self.derived:
            return value
        found, share = shared(value)
        self._shares.append(share)
        self._made.append(found)
        return found

    # --- sizes --------------------------------------------------------------------------------------------------------

    def placed(self, sizes: Sizes) -> Placed:
        """Where values lie for these sizes."""
        return self._binding(sizes)

    def _binding(self, sizes: Sizes) -> Binding:
        key = tuple(sizes[s] for s in self._symbols)
        found = self._bindings.get(key)
        if found is None:
            found = self._bindings[key] = self._bind(key, dict(sizes))
            if len(self._bindings) > MOST_BINDINGS:
                self._bindings.popitem(last=False)
        self._bindings.move_to_end(key)
        return found

    def _bind(self, key: tuple[int, ...], sizes: Sizes) -> Binding:
        where = placed(self.plan, sizes, lend=None)  # a graph's intermediates cannot lie in what the caller keeps
        known: dict[str, tuple[Launch, int]] = {}
        steps: list[Prepared | TorchStep] = []
        for step in self.plan.steps:
            if isinstance(step, TorchStep):
                steps.append(step)
                continue
            if step.kernel.name not in known:
                known[step.kernel.name] = self.gpu.launcher(step.kernel, sizes)  # type: ignore[arg-type]
            steps.append(self._prepared(step, *known[step.kernel.name], sizes))
        empty = any(0 in shape for shape, _ in where.shapes.values())
        return Binding(**vars(where), key=key, sizes=sizes, steps=steps, empty=empty)

    def _prepared(self, step: KernelStep, launch: Launch, launches: int, sizes: Sizes) -> Prepared:
        kernel: GpuKernel = step.kernel  # type: ignore[assignment]
        return Prepared(launch, launches, step.buffers, kernel.reads, kernel.programs(sizes))

    # --- memory -------------------------------------------------------------------------------------------------------

    def _use_arena(self, binding: Binding) -> None:
        """See to it that a binding's intermediates have memory. Where the arena must grow, graphs are forgotten."""
        if self._arena is None or self._arena.numel() < binding.arena_bytes:
            self._forget()
            nbytes = max(binding.arena_bytes, ALIGNMENT)
            with torch.inference_mode(False):  # it outlives the call
                self._arena = self.gpu.empty((nbytes,), (1,), torch.uint8)
        if not binding.slots:
            with torch.inference_mode(False):
                binding.slots = [self._slot(b, binding, self._arena) for b in self.plan.buffers]

    def _slot(self, buffer: Buffer, binding: Binding, arena: Tensor) -> Tensor | None:
        """The tensor of a buffer that is there for every call."""
        if buffer.place is Place.ERROR:
            return self._error
        if buffer.place is Place.WEIGHT:
            return self._packed[buffer.position]
        if buffer.place is not Place.ARENA:
            return None
        shape, strides = binding.shapes[buffer.position]
        if buffer.position not in binding.offsets:  # empty, so no kernel writes it
            return stand_in(torch.empty(shape, dtype=buffer.type.dtype, device=self.device))
        start = binding.offsets[buffer.position]
        flat = arena[start : start + nbytes_of(buffer, binding.shapes)].view(buffer.type.dtype)
        return flat.as_strided(shape, strides) if 0 not in shape else flat

    def blank(self, buffer: Buffer, binding: Placed) -> Tensor:
        """New memory for a buffer."""
        shape, strides = binding.shapes[buffer.position]
        return self.gpu.empty(shape, strides, buffer.type.dtype)

    def _forget(self) -> None:
        """Drop graphs and arena, once the GPU is done with them."""
        if self._mark is not None and (self._graphs or self._arena is not None):
            self._mark.synchronize()
        self.counts.dropped += len(self._graphs)
        self._graphs.clear()
        self._last_graph = self._arena = None
        for binding in self._bindings.values():
            binding.slots = []
        self._refused.clear()

    def _owned(self) -> list[Tensor]:
        """The memory that lives as long as the executable, or as one of its graphs."""
        own = [tensor for graph in self._graphs.values() for tensor in graph.own]
        return [self._error, *([] if self._arena is None else [self._arena]), *own, *self._made]

    # --- running ------------------------------------------------------------------------------------------------------

    def run(self, tensors: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        """The graph's outputs for input tensors (dense and of the declared types), and its mutations done.

        Tensors are on the device; those without dims may be on the CPU.

        Raises:
            IndexError: an index from data was out of range, in this call or, where it replayed a graph, an earlier one
                of this thread.
            OutOfMemoryError: the GPU has not enough memory.
            UnsupportedError: somebody captures the current stream.
        """
        with self._lock, self.gpu.current(), torch.no_grad():
            self._take_turn()
            self._look(wait=False)
            try:
                return self._with_room(tensors, sizes)
            finally:
                self._mark = self.gpu.mark()

    def readable(self, tensor: Tensor) -> Tensor:
        """A caller's tensor that no call writes to, as :meth:`run` takes it: numbers of the CPU are copied there."""
        return tensor if not tensor.ndim and tensor.device.type == "cpu" else super().readable(tensor)

    def synchronize(self) -> None:
        """Wait for all calls.

        Raises:
            IndexError: in one of this thread's calls an index was out of range, and it was not raised yet.
        """
        with self._lock, self.gpu.current():
            if self._mark is not None:
                self._mark.synchronize()
            self._look(wait=True)

    def _take_turn(self) -> None:
        """Put what follows after the calls before, which may have been on other streams."""
        if self.gpu.is_capturing():
            raise UnsupportedError(
                "the current stream is being captured, and a compiled model captures its own CUDA graphs: call it "
                "outside of torch.cuda.graph"
            )
        stream = self.gpu.stream()
        if stream != self._stream:
            if self._mark is not None:
                self._mark.wait()
                self.gpu.used_on(self._owned(), stream)
            self._stream = stream

    def _with_room(self, tensors: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        """The results; where memory is short, what can be had again is given up first."""
        try:
            run = self._prepare(tensors, sizes)
        except torch.OutOfMemoryError as error:
            failed = error.with_traceback(None)
        else:
            return self._finish(run)
        if not self._make_room():
            raise self._typed(failed)
        try:
            run = self._prepare(tensors, sizes)
        except torch.OutOfMemoryError as error:
            failed = error.with_traceback(None)
        else:
            return self._finish(run)
        self._make_room()
        raise self._typed(failed)

    def _finish(self, run: EagerRun | GraphRun | DirectRun) -> list[Tensor]:
        """Run what has its memory. Nothing is tried twice from here on: kernels may have changed state."""
        try:
            results = run.run()
        except OutOfMemoryError:
            raise
        except torch.OutOfMemoryError as error:
            failed = error.with_traceback(None)
        else:
            self._count_versions()
            return results
        raise self._typed(failed)

    def _typed(self, error: torch.OutOfMemoryError) -> OutOfMemoryError:
        return error if isinstance(error, OutOfMemoryError) else out_of_memory(None, self.gpu, str(error))

    def _make_room(self) -> bool:
        """Give up graphs and arena; whether there was something to give up."""
        held = self._arena is not None or bool(self._graphs)
        self._forget()
        self.gpu.release()
        return held

    def _prepare(self, tensors: Sequence[Tensor], sizes: Sizes) -> EagerRun | GraphRun | DirectRun:
        """A run with all memory that it takes but for steps of PyTorch."""
        binding = self._binding(sizes)
        self._use_arena(binding)
        graph = self._graph_for(binding, tensors)
        if graph is None:
            self.counts.launched += 1
            return EagerRun(self, binding, tensors)
        self.counts.replays += 1
        self._last_graph = graph
        if self.direct is not None and not graph.beside and not self._written:
            return DirectRun(self, binding, graph, tensors)
        return GraphRun(self, binding, graph, tensors)

    # --- graphs -------------------------------------------------------------------------------------------------------

    def _graph_for(self, binding: Binding, tensors: Sequence[Tensor]) -> Graphed | None:
        """The graph of a call, captured where it is time for one; None where kernels are launched one by one."""
        if not self.most_graphs or binding.empty:
            return None
        addresses = [tensor.data_ptr() if tensor.device == self.device else 0 for tensor in tensors]
        calls = self._history.note(binding.key, addresses)
        kind = self._history.kind(binding.key, addresses)
        graph = self._graphs.get(kind)
        if graph is not None and graph.fits(addresses):
            self._graphs.move_to_end(kind)
            return graph
        if graph is not None:  # an argument that it uses in place lies elsewhere: from now on it is copied
            self._wait()
            del self._graphs[kind]
            self.counts.dropped += 1
        elif calls < CALLS_BEFORE:
            return None
        if binding.key in self._refused:
            return None
        return self._captured(binding, tensors, kind)

    def _captured(self, binding: Binding, tensors: Sequence[Tensor], kind: Any) -> Graphed | None:
        moving = self._history.moving(binding.key)
        blank: Callable[[Buffer], Tensor] = lambda buffer: self.blank(buffer, binding)  # noqa: E731
        try:
            with torch.inference_mode(False):  # its memory outlives the call
                slots, steps = binding.slots, binding.steps
                made = capture(self.gpu, self.plan, binding, steps, slots, tensors, moving, blank, self.side_by_side)
        except Exception as error:  # whatever PyTorch or the driver raises: kernels are launched one by one
            self._refused[binding.key] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return None
        if not made.graphs:
            self._refused[binding.key] = "no two kernels follow each other"
            return None
        self.counts.captured += 1
        self._graphs[kind] = made
        if len(self._graphs) > self.most_graphs:
            self._wait()
            self._graphs.popitem(last=False)
            self.counts.evicted += 1
        return made

    def _wait(self) -> None:
        if self._mark is not None:
            self._mark.synchronize()

    @property
    def cache_bytes(self) -> int | None:
        """The GPU's second-level cache; None where nobody knows."""
        return self.gpu.cache_bytes

    def graph_report(self) -> GraphReport:
        """The graphs that are held."""
        names = [str(node.attrs["name"]) for node in self.plan.graph.inputs]
        last = self._last_graph
        return GraphReport(
            held=len(self._graphs),
            most=self.most_graphs,
            nbytes=sum(graph.nbytes for graph in self._graphs.values()),
            arena_bytes=0 if self._arena is None else self._arena.numel(),
            **vars(self.counts),
            graphs=None if last is None else last.graphs,
            kernels=None if last is None else last.launches,
            beside=None if last is None else last.beside,
            streams=None if last is None else last.streams,
            copied=() if last is None else tuple(names[i] for i in last.copied),
            refused={self._sizes_text(key): reason for key, reason in self._refused.items()},
        )

    def _sizes_text(self, key: tuple[int, ...]) -> str:
        return ", ".join(f"{s} = {n}" for s, n in zip(self._symbols, key, strict=True)) or "its sizes"

    # --- indices out of range -----------------------------------------------------------------------------------------

    def invalid(self, dtype: torch.dtype) -> Tensor:
        """What a result of that dtype is where an index was out of range."""
        return self._invalid[dtype]

    def check_now(self) -> None:
        """Wait for the kernels so far, and raise IndexError where one of them found an index out of range."""
        if self._error.item():
            earlier = self._late is not None and bool(self._seen.item())  # of this thread: another's was waited for
            self._late = None
            self._error.zero_()
            self._seen.zero_()
            raise IndexError(EARLIER if earlier else OUT_OF_RANGE)

    def check_later(self) -> None:
        """Have the cell copied to where it can be looked at without waiting, in the order of the stream."""
        self._seen.copy_(self._error, non_blocking=True)
        self._late = threading.current_thread()

    def _look(self, wait: bool) -> None:
        """Raise IndexError for an earlier call of this thread. Another thread's calls are waited for: the error is its.

        Args:
            wait: whether all calls were waited for.
        """
        me = threading.current_thread()
        if self._late is not None and self._mark is not None:
            if self._late is not me and not wait:
                self._mark.synchronize()
            if wait or self._late is not me or self._mark.done():
                if self._seen.item():
                    self._error.zero_()
                    self._seen.zero_()
                    self._told[self._late] = EARLIER
                self._late = None
        if me in self._told:
            raise IndexError(self._told.pop(me))
