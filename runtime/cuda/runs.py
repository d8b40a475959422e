"""Runs on a GPU: kernels launched one by one, or graphs replayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...ir.node import through_views
from ..plan import Buffer, Place, TorchStep
from ..run import Run, stand_in
from .graphs import Graphed, Prepared
from .invalid import has_invalid

if TYPE_CHECKING:
    from .executable import Binding, CudaExecutable


class EagerRun(Run):
    """Kernels launched one by one. The memory of results is there once it is made."""

    def __init__(self, executable: CudaExecutable, binding: Binding, tensors: Sequence[Tensor]) -> None:
        super().__init__(executable, binding, binding.sizes)
        self.executable, self.binding = executable, binding
        self.slots = list(binding.slots)
        for node, tensor in zip(self.plan.graph.inputs, tensors, strict=True):
            self.hold(self.plan.home[node].position, tensor.to(self.device))
        for buffer in self.plan.buffers:
            if buffer.place is Place.OUTPUT:
                self.hold(buffer.position, executable.blank(buffer, binding))

    def hold(self, position: int, tensor: Tensor) -> None:
        """Enter the tensor of a buffer."""
        super().hold(position, tensor)
        self.slots[position] = tensor if tensor.numel() else stand_in(tensor)

    def steps(self) -> None:
        """Run the steps, in order."""
        for step in self.binding.steps:
            if isinstance(step, TorchStep):
                self.executable._after_kernels()
                self.torch_step(step)
            else:
                step.launch([self.slots[i] for i in step.buffers])  # type: ignore[misc]
        self.executable._after_kernels()
        if self.executable.can_fail:
            self.executable.check_now()

    def intermediate(self, buffer: Buffer) -> Tensor:
        """The tensor of an intermediate that a kernel wrote."""
        return intermediate(buffer, self.binding)


class GraphRun(Run):
    """Graphs replayed, with launches and steps of PyTorch between them. Results are copied to memory of their own."""

    def __init__(self, executable: CudaExecutable, binding: Binding, graph: Graphed, tensors: Sequence[Tensor]) -> None:
        super().__init__(executable, binding, binding.sizes)
        self.executable, self.binding, self.graph = executable, binding, graph
        self.slots = list(graph.slots)
        self.arguments = tensors
        for node, tensor in zip(self.plan.graph.inputs, tensors, strict=True):
            position = self.plan.home[node].position
            inside = self.slots[position]
            self.tensors[position] = (
                tensor.to(self.device) if inside is None or tensor.device == self.device else inside
            )
            if inside is None:
                self.slots[position] = self.tensors[position]
        self.fresh: dict[int, Tensor] = {}
        for buffer in self.plan.buffers:
            if buffer.place is Place.OUTPUT:
                made = self.fresh[buffer.position] = executable.blank(buffer, binding)
                inside = self.slots[buffer.position]
                self.tensors[buffer.position] = made if inside is None else inside
                self.slots[buffer.position] = self.tensors[buffer.position]
        self.late = executable.can_fail and self._may_be_late()

    def _may_be_late(self) -> bool:
        """Whether nobody need wait for the cell: all results can be made such that they show it."""
        types = [node.dtype for node in self.plan.graph.outputs]
        beside = any(self.graph.slots[position] is None for position in self.fresh)
        return bool(types) and not beside and all(has_invalid(dtype) for dtype in types)

    def hold(self, position: int, tensor: Tensor) -> None:
        """Enter the tensor of a buffer."""
        super().hold(position, tensor)
        inside = self.graph.slots[position]
        if inside is None:
            self.slots[position] = tensor
        else:
            inside.copy_(tensor)

    def steps(self) -> None:
        """Run the steps, in order."""
        for i, position in self.graph.copied.items():
            inside = self.slots[position]
            assert inside is not None
            inside.copy_(self.arguments[i], non_blocking=True)
        for piece in self.graph.pieces:
            if isinstance(piece, TorchStep):
                self.executable._after_kernels()
                self.torch_step(piece)
            elif isinstance(piece, Prepared):
                piece.launch([self.slots[i] for i in piece.buffers])  # type: ignore[misc]
            else:
                piece.replay()
        self.executable._after_kernels()
        if self.late:
            self.executable.check_later()
        elif self.executable.can_fail:
            self.executable.check_now()

    def outputs(self) -> list[Tensor]:
        """The results, each in memory of its own."""
        found, given = [], set()
        for node in self.plan.graph.outputs:
            position = self.plan.home[through_views(node)].position
            value = self.value(node)
            plain = node is through_views(node) and position in self.fresh and position not in given
            if plain and value is self.fresh[position]:
                found.append(value)
            else:
                found.append(self.taken(value, self.fresh[position] if plain else None))
            given.add(position)
        return found

    def taken(self, value: Tensor, memory: Tensor | None) -> Tensor:
        """A value in memory that the caller keeps: no number where an index was out of range."""
        if not self.late:
            return value.clone() if memory is None else memory.copy_(value)
        invalid = self.executable.invalid(value.dtype)
        if memory is None:
            return torch.where(self.executable.wrong, invalid, value)
        return torch.where(self.executable.wrong, invalid, value, out=memory)

    def intermediate(self, buffer: Buffer) -> Tensor:
        """The tensor of an intermediate that a kernel wrote."""
        return intermediate(buffer, self.binding)


def intermediate(buffer: Buffer, binding: Binding) -> Tensor:
    """The tensor of an intermediate."""
    found = binding.slots[buffer.position]
    assert found is not None
    shape, strides = binding.shapes[buffer.position]
    return found if 0 not in shape else torch.empty_strided(shape, strides, dtype=found.dtype, device=found.device)
