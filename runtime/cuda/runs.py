"""Runs on a GPU: kernels launched one by one, or graphs replayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...ir.graph import Mutation
from ...ir.node import through_views
from ..plan import Buffer, TorchStep
from ..run import Run, stand_in
from .binding import Binding, Prepared
from .graphs import Graphed

if TYPE_CHECKING:
    from .executable import CudaExecutable


class EagerRun(Run):
    """Kernels launched one by one. The memory of results is there once it is made."""

    def __init__(self, executable: CudaExecutable, binding: Binding, tensors: Sequence[Tensor]) -> None:
        super().__init__(executable, binding, binding.sizes)
        self.executable, self.binding = executable, binding
        self.slots = list(binding.slots)
        for position, tensor in zip(executable.inputs, tensors, strict=True):
            self.hold(position, tensor.to(self.device))
        for buffer in executable.results:
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

    def apart(self) -> Sequence[Mutation]:
        """The mutations that kernels do not do in place."""
        return self.executable.apart

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
        for position, tensor in zip(executable.inputs, tensors, strict=True):
            inside = self.slots[position]
            self.tensors[position] = (
                tensor.to(self.device) if inside is None or tensor.device == self.device else inside
            )
            if inside is None:
                self.slots[position] = self.tensors[position]
        self.fresh: dict[int, Tensor] = {}
        for buffer in executable.results:
            made = self.fresh[buffer.position] = executable.blank(buffer, binding)
            inside = self.slots[buffer.position]
            self.tensors[buffer.position] = made if inside is None else inside
            self.slots[buffer.position] = self.tensors[buffer.position]
        # results beside graphs are the caller's already
        self.late = executable.may_be_late and all(graph.slots[position] is not None for position in self.fresh)

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
        copy_arguments(self.graph, self.arguments)
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

    def apart(self) -> Sequence[Mutation]:
        """The mutations that kernels do not do in place."""
        return self.executable.apart

    def intermediate(self, buffer: Buffer) -> Tensor:
        """The tensor of an intermediate that a kernel wrote."""
        return intermediate(buffer, self.binding)


class DirectRun:
    """Graphs replayed where nothing is beside them, and each result is a value of its own: the short way."""

    def __init__(self, executable: CudaExecutable, binding: Binding, graph: Graphed, tensors: Sequence[Tensor]) -> None:
        self.executable, self.graph, self.arguments = executable, graph, tensors
        assert executable.direct is not None
        self.results = executable.direct.outputs
        self.fresh = [executable.blank(executable.plan.buffers[position], binding) for position, _ in self.results]

    def run(self) -> list[Tensor]:
        """The graph's outputs, once its mutations are done."""
        executable, graph = self.executable, self.graph
        copy_arguments(graph, self.arguments)
        for piece in graph.pieces:
            piece.replay()  # type: ignore[union-attr]
        inside = [graph.slots[position] for position, _ in self.results]
        if executable.may_be_late:
            executable.check_later()
            for memory, value, (_, dtype) in zip(self.fresh, inside, self.results, strict=True):
                torch.where(executable.wrong, executable.invalid(dtype), value, out=memory)  # type: ignore[arg-type]
            return self.fresh
        if executable.can_fail:
            executable.check_now()
        for memory, value in zip(self.fresh, inside, strict=True):
            memory.copy_(value)  # type: ignore[arg-type]
        return self.fresh


def copy_arguments(graph: Graphed, arguments: Sequence[Tensor]) -> None:
    """Copy the arguments that moved to the graph's own memory."""
    for i, position in graph.copied.items():
        inside = graph.slots[position]
        assert inside is not None
        inside.copy_(arguments[i], non_blocking=True)


def intermediate(buffer: Buffer, binding: Binding) -> Tensor:
    """The tensor of an intermediate."""
    found = binding.slots[buffer.position]
    assert found is not None
    shape, strides = binding.shapes[buffer.position]
    return found if 0 not in shape else torch.empty_strided(shape, strides, dtype=found.dtype, device=found.device)
