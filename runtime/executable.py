"""An executable: a plan with its native code and weights, run for any sizes of its symbols."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor

from ..codegen.tvm.packing import HUGE_PAGE, Pool, memory, panels_of
from ..ir import ops
from ..ir.errors import GraphError
from ..ir.graph import Graph, Mutation
from ..ir.interpret import interpret
from ..ir.node import Node, Trait, through_views
from ..ir.types import concrete
from ..rewrites.check import Verdicts
from ..rewrites.fusion import FusionReport
from ..rewrites.memory import Interval, place, place_within
from ..rewrites.quantization import Quantized
from .direct import direct
from .kernels import KernelInfo, region_of
from .plan import Buffer, Place, Plan, TorchStep
from .shared import shared
from .tensors import ALIGNMENT, is_dense
from .weights import Values

LENT_BYTES = 1 << 20  # results of at least so many hold intermediates until they are written
PACKERS = 2  # threads that pack weights: more gain nothing, since memory limits them
MOST_BINDINGS = 256  # sets of sizes whose offsets and addresses are kept
Sizes = Mapping[sympy.Symbol, int]
Shapes = Mapping[int, tuple[tuple[int, ...], tuple[int, ...]]]
HostFunction = Callable[[Tensor, Tensor], Any]


@dataclass
class Binding:
    """A plan for one set of sizes: shapes, strides and offsets as numbers, and the address table.

    ``lent`` are the intermediates that lie in a result for the caller: its position and an offset. A ``stale`` one
    names weights that were packed again since.
    """

    sizes: Tensor
    addresses: np.ndarray[Any, np.dtype[np.int64]]
    table: Tensor
    shapes: dict[int, tuple[tuple[int, ...], tuple[int, ...]]]
    offsets: dict[int, int] = field(default_factory=dict)
    lent: dict[int, tuple[int, int]] = field(default_factory=dict)
    arena_bytes: int = 0
    arena_base: int = 0
    empty: dict[int, Tensor] = field(default_factory=dict)
    intervals: list[Interval] = field(default_factory=list)
    stale: bool = False

    def __post_init__(self) -> None:
        self.cells = self.addresses.data  # the same memory: numpy takes longer to write one number


@dataclass
class Executable:
    """Runs a captured graph. Calls are serialised: intermediates lie in one arena.

    Attributes:
        graphs: the graph after each stage of the pipeline, by name, in order.
        kernels: what the report shows of each kernel.
        timings: seconds that each stage of the compilation took.
        checks: what ``check=`` found.
        fusion: what was refused.
        quantized: what became of the weights where ``quantize`` asked for few bits; None where it did not.
        weight_errors: of each weight in few bits; None until they are computed.
        prepare: what must be done before native code runs.
    """

    plan: Plan
    weights: Mapping[str, Tensor]
    derived: Mapping[str, Node]
    hosts: Sequence[HostFunction | TorchStep]
    graphs: Mapping[str, Graph]
    kernels: tuple[KernelInfo, ...]
    fallbacks: tuple[Any, ...] = ()
    applications: Any = ()
    checks: Verdicts | None = None
    timings: dict[str, float] = field(default_factory=dict)
    fusion: FusionReport = field(default_factory=FusionReport)
    quantized: Quantized | None = None
    weight_errors: list[float] | None = None
    prepare: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._bindings: dict[tuple[int, ...], Binding] = {}
        self._symbols = tuple(r.symbol for r in self.plan.graph.symbols)
        self._error = torch.zeros(1, dtype=torch.int64)
        self._error_cell = self._error.numpy().data
        self._direct = direct(self.plan)
        self._arena = torch.empty(0, dtype=torch.uint8)
        self._arena_base, self._arena_bytes = -1, -1  # where intermediates begin, and how many bytes they may take
        self._packed: dict[int, Tensor] = {}
        self._shares: list[Any] = []  # what keeps the packed weights that other executables have too
        self._values: Values
        self._written: list[tuple[Tensor, Tensor]] = []
        self._changed: list[Tensor] = []  # weights that each run writes to
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
            memory_of, work = Pool() if nbytes >= HUGE_PAGE else None, list[Callable[[], None]]()
            self._packed = {b.position: self._pack(b, memory_of, work) for b in buffers}
            with ThreadPoolExecutor(PACKERS) as threads:  # copies hold no lock of Python's
                for _ in threads.map(lambda fill: fill(), work):
                    pass
            before, self._shares = self._shares, []
            for b in packed:
                self._packed[b.position], share = self._once(self._packed[b.position])
                self._shares.append(share)
            del before
            self._written = [pair for m in self.plan.graph.mutations if (pair := self._copied(m)) is not None]
            self._changed = self._changed_weights()
            for binding in self._bindings.values():
                binding.stale = True
            self._bindings.clear()

    @property
    def values(self) -> Mapping[str, Tensor]:
        """The weights that the final graph reads, by name: the model's, and those computed at load."""
        return self._values

    def _pack(self, buffer: Buffer, pool: Pool | None, work: list[Callable[[], None]]) -> Tensor:
        """The memory of a weight; what fills it is added to ``work``."""
        if buffer.packing is None and self._values.is_joined(buffer.name):
            return torch.zeros(1, dtype=buffer.type.dtype)  # which nothing reads
        parts = self._values.parts(buffer.name)
        if 0 in parts[0].shape:
            return _stand_in(parts[0])
        if buffer.packing is None:
            return parts[0] if is_dense(parts[0]) else parts[0].contiguous().clone()
        transposed = buffer.packing.transposed
        panels, fill = panels_of([x.T if transposed else x for x in parts], buffer.packing.layout, pool)
        work.extend(fill)
        return panels

    def _once(self, panels: Tensor) -> tuple[Tensor, Any]:
        """Packed weights that another executable may have too, and what keeps them."""
        return shared(panels)

    def _copied(self, mutation: Mutation) -> tuple[Tensor, Tensor] | None:
        """A weight that is changed in place and the copy that kernels have of it, where there is one."""
        buffer = self.plan.home[mutation.target]
        if not self.plan.is_in_place(mutation) or buffer.place is not Place.WEIGHT:
            return None
        value, copy = self._values[buffer.name], self._packed[buffer.position]
        return (value, copy) if value.numel() and value.data_ptr() != copy.data_ptr() else None

    def _changed_weights(self) -> list[Tensor]:
        """The model's tensors that kernels write to by address, of which PyTorch counts no version by itself."""
        names = [str(m.target.attrs["name"]) for m in self.plan.graph.mutations if m.target.is_a(ops.weight)]
        found = [self.weights[name] for name in names if name in self.weights]
        return [tensor for tensor in found if not tensor.is_inference()]

    def _after_mutation(self, target: Node) -> None:
        """Keep the copy that kernels read, where there is one, equal to a weight that was changed."""
        copy = self._packed.get(self.plan.home[target].position)
        value = self._values.get(str(target.attrs["name"]))
        if copy is not None and value is not None and value.numel() and copy.data_ptr() != value.data_ptr():
            copy.copy_(value)

    def _before_kernels(self) -> None:
        """Take over what was written to such weights since the last run, as by a caller who empties a cache."""
        for value, copy in self._written:
            copy.copy_(value)

    def _after_kernels(self) -> None:
        """Keep weights that kernels changed in place equal to their copies, which is what the kernels wrote to."""
        for value, copy in self._written:
            value.copy_(copy)

    # --- sizes --------------------------------------------------------------------------------------------------------

    def arena_bytes(self, sizes: Sizes) -> int:
        """The bytes that intermediates take for these sizes."""
        return self._binding(sizes).arena_bytes

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
        shapes = {b.position: (_numbers(b.type.shape, sizes), _numbers(b.strides, sizes)) for b in buffers}
        table = torch.zeros(len(buffers), dtype=torch.int64)
        made = Binding(torch.tensor(key or (0,), dtype=torch.int64), table.numpy(), table, shapes)
        self._place(made)
        for b in buffers:
            if b.place is Place.ERROR:
                made.addresses[b.position] = self._error.data_ptr()
            elif b.place is Place.ARENA and b.position not in self.plan.live:  # empty, so no kernel writes it
                made.empty[b.position] = _stand_in(torch.empty(shapes[b.position][0], dtype=b.type.dtype))
                made.addresses[b.position] = made.empty[b.position].data_ptr()
            elif b.place is Place.WEIGHT:
                made.addresses[b.position] = self._packed[b.position].data_ptr()
        return made

    def intervals(self, sizes: Sizes) -> list[Interval]:
        """What lies in the arena for these sizes, those in one place together: bytes, and from which step to which."""
        return self._binding(sizes).intervals

    def arena_apart(self, sizes: Sizes) -> int:
        """The bytes of an arena for all intermediates, where none takes an operand's or a result's memory."""
        return place(list(self._intervals(self._binding(sizes).shapes, {}).values())).nbytes

    def _place(self, made: Binding) -> None:
        """Say where intermediates lie: some in the memory of an operand, unless that takes more, some in results for
        the caller that are not written yet, all others in the arena.
        """
        reuse, intervals = self.plan.reuse, self._intervals(made.shapes, self.plan.reuse)
        if reuse:
            together, apart = list(intervals.values()), self._intervals(made.shapes, {})
            if place(together).nbytes > place(list(apart.values())).nbytes:
                reuse, intervals = {}, apart
        lent = self._lend(made.shapes, intervals)
        kept = {owner: x for owner, x in intervals.items() if owner not in lent}
        made.intervals = list(kept.values())
        placement = place(made.intervals)
        made.arena_bytes = placement.nbytes
        made.offsets = dict(zip(kept, placement.offsets, strict=True))
        # operands come before results
        for result, operand in sorted(reuse.items()):
            where: dict[int, Any] = lent if operand in lent else made.offsets
            where[result] = where[operand]
        made.lent = lent

    def _lend(self, shapes: Shapes, intervals: Mapping[int, Interval]) -> dict[int, tuple[int, int]]:
        """Intermediates in the memory of results that are written after their last use: the result and an offset."""
        found: dict[int, tuple[int, int]] = {}
        buffers = [self.plan.buffers[i] for i in self.plan.written if 0 not in shapes[i][0]]
        for b in sorted(buffers, key=lambda b: -nbytes_of(b, shapes)):
            size, written = nbytes_of(b, shapes), self.plan.written[b.position]
            if size >= LENT_BYTES:
                over = [o for o, x in intervals.items() if o not in found and x.last < written]
                within = place_within([intervals[o] for o in over], size)
                found.update((over[i], (b.position, offset)) for i, offset in within.items())
        return found

    def _intervals(self, shapes: Shapes, reuse: Mapping[int, int]) -> dict[int, Interval]:
        """The intermediates by position; one that takes another's memory is part of that one's interval."""
        found: dict[int, Interval] = {}
        first: dict[int, int] = {}  # whose memory it is
        for b in self.plan.buffers:
            if b.place is not Place.ARENA or b.position not in self.plan.live:
                continue
            mine = Interval(nbytes_of(b, shapes), *self.plan.live[b.position])
            owner = first[b.position] = first[reuse[b.position]] if b.position in reuse else b.position
            held = found.get(owner, mine)
            found[owner] = Interval(max(held.nbytes, mine.nbytes), held.first, max(held.last, mine.last))
        return found

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
        with self._lock:
            if self.prepare is not None:
                self.prepare()
            binding = self._binding(sizes)
            if self.is_direct:
                results = self._run_direct(binding, [tensor.data_ptr() for tensor in tensors])
                if results is not None:
                    return results
            with torch.no_grad():
                results = _Call(self, binding, tensors, sizes).run()
                for tensor in self._changed:
                    torch.autograd.graph.increment_version(tensor)
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
            if binding.stale:
                return None
            if self.prepare is not None:
                self.prepare()
            return self._run_direct(binding, addresses)

    def _run_direct(self, binding: Binding, addresses: Sequence[int]) -> list[Tensor] | None:
        assert self._direct is not None
        if binding.arena_base != self._arena_base:
            self._use_arena(binding)
        results = self._direct.bind(binding, addresses)
        if results is not None:
            for host in self.hosts:
                host(binding.table, binding.sizes)  # type: ignore[operator]
            for tensor in self._changed:
                torch.autograd.graph.increment_version(tensor)
            if self._error_cell[0]:
                self._check_indices()
        return results

    def _check_indices(self) -> None:
        if self._error_cell[0]:
            self._error_cell[0] = 0
            raise IndexError("index out of range: an index given to embedding, gather or scatter is outside its tensor")


class _Call:
    """One run: the tensors that exist during it, by table position."""

    def __init__(self, executable: Executable, binding: Binding, tensors: Sequence[Tensor], sizes: Sizes) -> None:
        self.executable, self.binding, self.sizes = executable, binding, sizes
        self.plan = executable.plan
        self.tensors: dict[int, Tensor] = {}
        self.stand_ins: list[Tensor] = []  # alive as long as the call
        executable._use_arena(binding)
        for node, tensor in zip(self.plan.graph.inputs, tensors, strict=True):
            self.hold(self.plan.home[node].position, tensor)

    def hold(self, position: int, tensor: Tensor) -> None:
        self.tensors[position] = tensor
        readable = tensor if tensor.numel() else _stand_in(tensor)
        self.binding.addresses[position] = readable.data_ptr()
        self.stand_ins.append(readable)

    def run(self) -> list[Tensor]:
        for buffer in self.plan.buffers:
            if buffer.place is Place.OUTPUT:
                shape, strides = self.binding.shapes[buffer.position]
                self.hold(buffer.position, torch.empty_strided(shape, strides, dtype=buffer.type.dtype))
        for position, (result, offset) in self.binding.lent.items():
            self.binding.addresses[position] = self.binding.addresses[result] + offset
        self.executable._before_kernels()
        self.steps()
        outputs = self.outputs()
        mutations = [m for m in self.plan.graph.mutations if not self.plan.is_in_place(m)]
        changed = [(self.value(m.target), self.value(m.value).clone()) for m in mutations]
        for mutation, (target, value) in zip(mutations, changed, strict=True):
            target.copy_(value)
            self.executable._after_mutation(mutation.target)
        return outputs

    def steps(self) -> None:
        for host in self.executable.hosts:
            if isinstance(host, TorchStep):
                self.torch_step(host)
            else:
                host(self.binding.table, self.binding.sizes)
                self.executable._after_kernels()
                self.executable._check_indices()

    def outputs(self) -> list[Tensor]:
        """The results, each in memory of its own: rewriting may have removed the copies that the model made."""
        given: set[Buffer] = set()
        found = []
        for node in self.plan.graph.outputs:
            buffer = self.plan.home[through_views(node)]
            fresh = buffer.place is Place.OUTPUT and buffer not in given
            given.add(buffer)
            found.append(self.value(node) if fresh else self.value(node).clone())
        return found

    def torch_step(self, step: TorchStep) -> None:
        operands = [self.value(x) for x in step.node.inputs]
        if step.node.is_a(ops.fused):
            results = interpret(region_of(step.node), operands, {}, sizes=self.sizes).outputs
        else:
            made = step.node.op.evaluate(*operands, **self.attrs(step.node))
            results = made if isinstance(made, tuple) else (made,)
        if len(results) != len(step.results):
            raise GraphError(f"PyTorch returned {len(results)} results where the graph has {len(step.results)}")
        for place, (position, result) in enumerate(zip(step.results, results, strict=True)):
            fits = tuple(result.shape) == self.binding.shapes[position][0]
            # PyTorch's trace is wrong of what embedding_bag returns besides, which nobody reads
            if fits or len(results) == 1 or self.is_read(step.node, place):
                self.hold(position, self.own(result, position, operands))

    def is_read(self, node: Node, place: int) -> bool:
        """Whether anything in the graph reads one of the results of a call that has several."""
        reads = (x for x in self.plan.graph.nodes if x.has(Trait.PROJECTION) and x.inputs[0] is node)
        return any(read.attrs["index"] == place for read in reads)

    def own(self, result: Tensor, position: int, operands: Sequence[Tensor]) -> Tensor:
        """A result of PyTorch's in the plan's layout and in memory of its own: an operand's may be used again.

        Its dtype may be another than PyTorch said while it was traced, as of a batch norm's statistics.

        Raises:
            GraphError: it is not of the shape that the graph says, which kernels rely on.
        """
        shape, strides = self.binding.shapes[position]
        dtype = self.plan.buffers[position].type.dtype
        if tuple(result.shape) != shape:
            raise GraphError(f"PyTorch returned {list(result.shape)} where the graph has {list(shape)}")
        shared = any(result.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for x in operands)
        fits = result.stride() == strides and result.data_ptr() % ALIGNMENT == 0 and result.dtype == dtype
        if fits and not shared:
            return result
        return torch.empty_strided(shape, strides, dtype=dtype).copy_(result)

    def attrs(self, node: Node) -> dict[str, Any]:
        return {name: _concrete_value(value, self.sizes) for name, value in node.attrs.items()}

    def value(self, node: Node) -> Tensor:
        """A node as a tensor: its buffer, seen through any views."""
        views = []
        while node.has(Trait.VIEW):
            views.append(node)
            node = node.inputs[0]
        tensor = self.base(node)
        for view in reversed(views):
            tensor = view.op.evaluate(tensor, **self.attrs(view))
        return tensor

    def base(self, node: Node) -> Tensor:
        buffer = self.plan.home[node]
        if buffer.position in self.tensors:
            return self.tensors[buffer.position]
        if buffer.place is Place.WEIGHT:
            return self.executable._values[buffer.name]
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


def _numbers(dims: Sequence[Any], sizes: Sizes) -> tuple[int, ...]:
    return tuple(d if isinstance(d, int) else concrete(d, sizes) for d in dims)


def nbytes_of(buffer: Buffer, shapes: Shapes) -> int:
    """The bytes that a buffer takes, never none."""
    count = buffer.type.dtype.itemsize
    for size in shapes[buffer.position][0]:
        count *= max(size, 1)  # an empty table has one row that may be read: see _stand_in
    return count


def _stand_in(tensor: Tensor) -> Tensor:
    """Memory for an empty tensor: a kernel that finds an index out of range reads element 0 before it is reported."""
    return tensor.new_zeros([max(size, 1) for size in tensor.shape])


def _concrete_value(value: Any, sizes: Sizes) -> Any:
    if isinstance(value, tuple):
        return tuple(_concrete_value(v, sizes) for v in value)
    return concrete(value, sizes) if isinstance(value, sympy.Expr) else value
