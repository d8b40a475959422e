"""The memory that a kernel is timed on: what a run of the model finds in memory, no cache holds here either.

Weights and caches of a model that are more than the last cache are taken in turns from copies of them, which are the
same memory for all schedules of a kernel. Those of packed weights lie in huge pages as the model's do, others as
PyTorch allocates them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor

from ..codegen.lower import strides_of
from ..codegen.program import Format
from ..codegen.tvm import packing
from ..ir import ops
from ..ir.types import concrete, product
from .kernels import layouts_of
from .plan import KernelStep
from .probe import Probes
from .roofs import last_cache_bytes

Sizes = Mapping[sympy.Symbol, int]

ZONE = 4096  # bytes on either side of a result
MOST_COPIES = 512
PAGE = 4096


def copies_of(nbytes: int) -> int:
    """How many copies of so many bytes are four times the last cache.

    Twice is not enough: what goes round in a cache that is smaller is partly found there, for such caches do not throw
    out what is oldest.
    """
    return min(max(-(-4 * last_cache_bytes() // nbytes), 1), MOST_COPIES) if nbytes else 1


class Pool:
    """Tensors that several kernels are timed on.

    Where they lie, and what a cache kept of them, would tell kernels apart that are alike.
    """

    def __init__(self) -> None:
        self._known: dict[str, list[Tensor]] = {}
        self._slots: dict[tuple[str, int], tuple[Tensor, int]] = {}

    def of(self, what: str, made: Tensor) -> Tensor:
        """A tensor that was given for the same before and has the same bytes, or this one."""
        for known in self._known.setdefault(what, []):
            same = (known.shape, known.stride(), known.dtype) == (made.shape, made.stride(), made.dtype)
            if same and _same_bytes(known, made):
                return known
        self._known[what].append(made)
        return made

    def copies(self, what: str, made: Tensor, count: int, *, huge: bool) -> list[Tensor]:
        """So many tensors like a dense one, in ``huge`` pages or in others, in the same memory for all who ask.

        They hold numbers of the first who asked: where weights are packed otherwise, such numbers in another order.
        """
        memory, slot = self._slots.get((what, count), (None, 0))
        if memory is None or made.nbytes > slot:
            slot = -(-made.nbytes * 5 // 4 // PAGE) * PAGE  # others pad columns otherwise
            memory = packing.memory(count * slot) if huge else torch.empty(count * slot, dtype=torch.uint8)
            memory.zero_()  # pages that nobody wrote to are all the same one
            self._slots[what, count] = memory, slot
            for x in _tensors(memory, slot, made):
                x.copy_(made)
        return _tensors(memory, slot, made)


def _tensors(memory: Tensor, slot: int, like: Tensor) -> list[Tensor]:
    flat = (memory[at : at + like.nbytes].view(like.dtype) for at in range(0, memory.numel(), slot))
    return [x.as_strided(like.shape, like.stride(), x.storage_offset()) for x in flat]


class Memory:
    """The buffers of one call."""

    def __init__(self, step: KernelStep, operands: Sequence[Tensor], known: Sizes) -> None:
        program = step.kernel.program
        self.step = step
        self.held = [Probes.operand(step, i, x.clone(), known) for i, x in enumerate(operands)]
        taken = {result: self.held[operand] for result, operand in step.kernel.in_place}
        self.flat: list[Tensor] = []
        self.results = [taken[i] if i in taken else self._blank(i, known) for i in range(len(layouts_of(step.node)))]
        shapes = [[concrete(d, known) for d in p.type.shape] for p in step.kernel.scratch]
        self.lent = [torch.empty(n, dtype=p.type.dtype) for n, p in zip(shapes, step.kernel.scratch, strict=True)]
        self.error = torch.zeros(1, dtype=torch.int64)
        self.sizes = torch.tensor([known[s] for s in program.symbols] or [0])

    def _blank(self, at: int, sizes: Sizes) -> Tensor:
        """A result full of NaN, or of ones in every bit, between zones of the same."""
        type_ = ops.results(self.step.node)[at].tensor_type
        shape = [concrete(d, sizes) for d in type_.shape]
        strides = [concrete(d, sizes) for d in strides_of(type_.shape, layouts_of(self.step.node)[at])]
        count = concrete(product(type_.shape), sizes) * type_.dtype.itemsize
        flat = torch.full((count + 2 * ZONE + 64,), 255, dtype=torch.uint8)
        start = ZONE + -(flat.data_ptr() + ZONE) % 64
        self.flat += [flat[:start], flat[start + count :]]
        return flat[start : start + count].view(type_.dtype).as_strided(shape, strides)

    def call(self, function: Callable[[Tensor, Tensor], Any]) -> None:
        """Run the kernel once."""
        function(torch.tensor(self._addresses(self.held, self.results)), self.sizes)

    def zones_are_whole(self) -> list[bool]:
        """Whether what lies around the results is as it was."""
        return [bool((zone == 255).all()) for zone in self.flat]

    def tables(self, pool: Pool, cold: Collection[int], calls: int) -> list[Tensor]:
        """Address tables for so many calls each, together one for each copy of the operands that are ``cold``.

        All copies together are four times the last cache.
        """
        count = copies_of(sum(self.held[i].nbytes for i in cold))
        taken = dict(self.step.kernel.in_place)
        inputs = self.step.kernel.program.inputs
        self.copies: list[list[Tensor]] = []  # of each operand
        for i, x in enumerate(self.held):
            if i in cold and x.numel():
                huge = inputs[i].format is Format.PANELS
                self.copies.append(pool.copies(f"operand {i}", x, count, huge=huge))
            else:
                self.copies.append([pool.of(f"operand {i}", x)])
        results = [None if i in taken else pool.of(f"result {i}", x) for i, x in enumerate(self.results)]
        self.lent = [pool.of(f"lent {i}", x) for i, x in enumerate(self.lent)]
        addresses: list[list[int]] = []
        for n in range(-(-count // calls) * calls):
            held = [x[n % len(x)] for x in self.copies]
            made = [held[taken[i]] if x is None else x for i, x in enumerate(results)]
            addresses.append(self._addresses(held, made))
        together = (addresses[n : n + calls] for n in range(0, len(addresses), calls))
        return [torch.tensor(some).reshape(-1) for some in together]

    def _addresses(self, held: Sequence[Tensor], results: Sequence[Tensor]) -> list[int]:
        return [x.data_ptr() for x in (*held, *results, *self.lent, self.error)]


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two dense tensors of one type and layout hold the same, NaN equal to itself."""
    flat = (torch.as_strided(x, (x.numel(),), (1,)).view(torch.uint8) for x in (a, b))
    return torch.equal(*flat)
