"""An executable: a plan with its native code and weights, run for any sizes of its symbols."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..codegen.tvm.packing import HUGE_PAGE, Pool, memory, panels_of
from ..ir.errors import BackendError
from .binding import Binding
from .compiled import Compiled
from .direct import direct
from .placement import Placed, Sizes, nbytes_of, placed
from .plan import Buffer, Place, TorchStep
from .results import ResultMemory
from .run import Run, stand_in
from .shared import shared
from .tensors import ALIGNMENT, is_dense
from .weights import Values

LENT_BYTES = 1 << 20  # results of at least so many hold intermediates until they are written
PACKERS = 2  # threads that pack weights: more gain nothing, since memory limits them
MOST_BINDINGS = 256  # sets of sizes whose offsets and addresses are kept
HostFunction = Callable[[Any, Any], Any]


@dataclass(kw_only=True)
class Executable(Compiled):
    """Runs a captured graph by native code.

    Attributes:
        hosts: the native code of each segment of the plan, PyTorch's steps between them.
        prepare: what must be done before native code runs.
        pool: memory for packed weights, if some was made ready.
    """

    hosts: Sequence[HostFunction | TorchStep]
    prepare: Callable[[], None] | None = None
    pool: Pool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._bindings: dict[tuple[int, ...], Binding] = {}
        self._error = torch.zeros(1, dtype=torch.int64)
        self._error_cell = self._error.numpy().data
        self._direct = direct(self.plan)
        self._results = ResultMemory()
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._arena_base, self._arena_bytes = -1, -1  # where intermediates begin, and how many bytes they may take
        self._shares: list[Any] = []  # what keeps the packed weights that other executables have too
        self.refresh(self.weights)

    # --- weights ------------------------------------------------------------------------------------------------------

    def refresh(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights as they are now: derived ones are computed and packed ones packed again."""
        # outside of inference mode: what is made here outlives the call, and other threads write to it
        with self._lock, torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
            self.weights = weights
            self._values = Values(self.plan, weights, self.derived)
            self.weight_errors = None
            buffers = [b for b in self.plan.buffers if b.place is Place.WEIGHT]
            packed = [b for b in buffers if b.packing is not None]
            nbytes = sum(part.nbytes for b in packed for part in self._values.parts(b.name))
            pool, work = self.pool or Pool(), list[Callable[[], None]]()
            self.pool = None  # which is for the first weights
            self._packed = {b.position: self._pack(b, pool if nbytes >= HUGE_PAGE else None, work) for b in buffers}
            pool.close()
            with ThreadPoolExecutor(PACKERS) as threads:  # copies hold no lock of Python's
                for _ in threads.map(lambda fill: fill(), work):
                    pass
            before, self._shares = self._shares, []
            for b in packed:
                self._packed[b.position], share = self._once(self._packed[b.position])
                self._shares.append(share)
            del before
            self._watch_weights()
            for binding in self._bindings.values():
                binding.stale = True
            self._bindings.clear()

    def _pack(self, buffer: Buffer, pool: Pool | None, work: list[Callable[[], None]]) -> Tensor:
        """The memory of a weight; what fills it is added to ``work``."""
        if buffer.packing is None and self._values.is_joined(buffer.name):
            return torch.zeros(1, dtype=buffer.type.dtype)  # which nothing reads
        parts = self._values.parts(buffer.name)
        if 0 in parts[0].shape:
            return stand_in(parts[0])
        if buffer.packing is None:
            return parts[0] if is_dense(parts[0]) else parts[0].contiguous().clone()
        transposed = buffer.packing.transposed
        panels, fill = panels_of([x.T if transposed else x for x in parts], buffer.packing.layout, pool)
        work.extend(fill)
        return panels

    def _once(self, panels: Tensor) -> tuple[Tensor, Any]:
        """Packed weights that another executable may have too, and what keeps them."""
        return shared(panels)

    # --- sizes --------------------------------------------------------------------------------------------------------

    def placed(self, sizes: Sizes) -> Placed:
        """Where values lie for these sizes."""
        return self._binding(sizes)

    def _binding(self, sizes: Sizes) -> Binding:
        key = tuple(sizes[s] for s in self._symbols)
        found = self._bindings.get(key)
        if found is None:
            if len(self._bindings) >= MOST_BINDINGS:
                self._bindings.pop(next(iter(self._bindings))).stale = True
            with torch.inference_mode(False):  # it outlives the call
                found = self._bindings[key] = self._bind(sizes, key)
        return found

    def _bind(self, sizes: Sizes, key: tuple[int, ...]) -> Binding:
        buffers = self.plan.buffers
        table = torch.zeros(len(buffers), dtype=torch.int64)
        where = placed(self.plan, sizes, LENT_BYTES)
        made = Binding(
            **vars(where),
            addresses=table.numpy(),
            arguments=(_argument(table), _argument(torch.tensor(key or (0,), dtype=torch.int64))),
            results=self._direct.results(where, self._results) if self._direct is not None and self.is_direct else None,
        )
        for b in buffers:
            if b.place is Place.ERROR:
                made.addresses[b.position] = self._error.data_ptr()
            elif b.place is Place.ARENA and b.position not in self.plan.live:  # empty, so no kernel writes it
                made.empty[b.position] = stand_in(torch.empty(made.shapes[b.position][0], dtype=b.type.dtype))
                made.addresses[b.position] = made.empty[b.position].data_ptr()
            elif b.place is Place.WEIGHT:
                made.addresses[b.position] = self._packed[b.position].data_ptr()
        return made

    def _use_arena(self, binding: Binding) -> None:
        """Point the binding's intermediates into the arena, which grows when it must."""
        if self._arena_bytes < binding.arena_bytes:
            with torch.inference_mode(False):  # it outlives the call
                self._arena = memory(binding.arena_bytes + ALIGNMENT)
            self._arena_bytes = binding.arena_bytes
            self._arena_base = -(-self._arena.data_ptr() // ALIGNMENT) * ALIGNMENT
        base = self._arena_base
        if base != binding.arena_base:
            for position, offset in binding.offsets.items():
                binding.addresses[position] = base + offset
            binding.arena_base = base

    # --- running ------------------------------------------------------------------------------------------------------

    def run(self, tensors: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        """The graph's outputs for input tensors (dense and of the declared types), and its mutations done.

        Raises:
            IndexError: an index from data was out of range.
        """
        if self.is_direct:
            results = self.run_direct(self.binding(sizes), [tensor.data_ptr() for tensor in tensors])
            if results is not None:
                return results
        with self._lock:
            if self.prepare is not None:
                self.prepare()
            binding = self._binding(sizes)
            with torch.no_grad():
                results = _Call(self, binding, tensors, sizes).run()
                self._count_versions()
                return results

    @property
    def is_direct(self) -> bool:
        """Whether runs are direct, but for those of empty tensors."""
        return self._direct is not None and not self._written

    def binding(self, sizes: Sizes) -> Binding:
        """The plan for some sizes, to run with :meth:`run_direct`."""
        with self._lock:
            return self._binding(sizes)

    def run_direct(self, binding: Binding, addresses: Sequence[int]) -> list[Tensor] | None:
        """The outputs for input tensors at some addresses; None where a tensor is empty or the binding is stale.

        Raises:
            IndexError: an index from data was out of range.
        """
        with self._lock:
            makers, direct = binding.results, self._direct
            if makers is None or direct is None or binding.stale or 0 in addresses:
                return None
            if self.prepare is not None:
                self.prepare()
            if binding.arena_base != self._arena_base:
                self._use_arena(binding)
            cells = binding.cells
            for position, address in zip(direct.inputs, addresses):  # noqa: B905, strict=True takes twice the time
                cells[position] = address
            results = []
            for position, make in makers:
                result = make()
                cells[position] = result.data_ptr()
                results.append(result)
            if binding.lent:
                for position, (owner, offset) in binding.lent.items():
                    cells[position] = cells[owner] + offset
            table, numbers = binding.arguments
            for host in self.hosts:
                host(table, numbers)  # type: ignore[operator]
            if self._changed:
                self._count_versions()
            if self._error_cell[0]:
                self._check_indices()
            return results

    def _check_indices(self) -> None:
        if self._error_cell[0]:
            self._error_cell[0] = 0
            raise IndexError("index out of range: an index given to embedding, gather or scatter is outside its tensor")


def _argument(tensor: Tensor) -> Any:
    """A tensor as host functions take it in the least time."""
    try:
        from ..codegen.tvm.native import argument  # which plans without kernels do without
    except BackendError:
        return tensor
    return argument(tensor)


class _Call(Run):
    """One run by native code, which reads the addresses of tensors from the binding's table."""

    compiled: Executable
    placed: Binding

    def __init__(self, executable: Executable, binding: Binding, tensors: Sequence[Tensor], sizes: Sizes) -> None:
        super().__init__(executable, binding, sizes)
        self.executable, self.binding = executable, binding
        self.stand_ins: list[Tensor] = []  # alive as long as the call
        executable._use_arena(binding)
        for node, tensor in zip(self.plan.graph.inputs, tensors, strict=True):
            self.hold(self.plan.home[node].position, tensor)

    def hold(self, position: int, tensor: Tensor) -> None:
        super().hold(position, tensor)
        readable = tensor if tensor.numel() else stand_in(tensor)
        self.binding.addresses[position] = readable.data_ptr()
        self.stand_ins.append(readable)

    def run(self) -> list[Tensor]:
        for buffer in self.plan.buffers:
            if buffer.place is Place.OUTPUT:
                shape, strides = self.binding.shapes[buffer.position]
                made = self.executable._results.empty(buffer.position, shape, strides, buffer.type.dtype)
                self.hold(buffer.position, made)
        for position, (result, offset) in self.binding.lent.items():
            self.binding.addresses[position] = self.binding.addresses[result] + offset
        return super().run()

    def steps(self) -> None:
        for host in self.executable.hosts:
            if isinstance(host, TorchStep):
                self.torch_step(host)
            else:
                host(*self.binding.arguments)
                self.executable._after_kernels()
                self.executable._check_indices()

    def intermediate(self, buffer: Buffer) -> Tensor:
        shape, strides = self.binding.shapes[buffer.position]
        if buffer.position in self.binding.empty:
            return torch.empty_strided(shape, strides, dtype=buffer.type.dtype)
        if buffer.position in self.binding.lent:
            return self.lent(buffer)
        start = self.binding.arena_base - self.executable._arena.data_ptr() + self.binding.offsets[buffer.position]
        nbytes = nbytes_of(buffer, self.binding.shapes)
        flat = self.executable._arena[start : start + nbytes].view(buffer.type.dtype)
        return flat.as_strided(shape, strides)

    def lent(self, buffer: Buffer) -> Tensor:
        """An intermediate that lies in a result for the caller."""
        result, offset = self.binding.lent[buffer.position]
        shape, strides = self.binding.shapes[buffer.position]
        nbytes = nbytes_of(buffer, self.binding.shapes)
        storage, memory = self.tensors[result].untyped_storage(), torch.empty(0, dtype=torch.uint8)
        return memory.set_(storage, offset, (nbytes,), (1,)).view(buffer.type.dtype).as_strided(shape, strides)
