"""One run of a plan, for all targets: the tensors that exist during it, PyTorch's steps, results and mutations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import Tensor

from ..ir import ops
from ..ir.errors import GraphError
from ..ir.graph import Mutation
from ..ir.interpret import interpret
from ..ir.node import Node, Trait, through_views
from ..ir.types import concrete
from .compiled import Compiled
from .kernels import region_of
from .placement import Placed, Sizes
from .plan import Buffer, Place, TorchStep
from .tensors import ALIGNMENT


class Run(ABC):
    """One run: the tensors that exist during it, by table position."""

    def __init__(self, executable: Compiled, placed: Placed, sizes: Sizes) -> None:
        self.compiled, self.placed, self.sizes = executable, placed, sizes
        self.plan, self.device = executable.plan, executable.device
        self.tensors: dict[int, Tensor] = {}

    def hold(self, position: int, tensor: Tensor) -> None:
        """Enter the tensor of a buffer."""
        self.tensors[position] = tensor

    @abstractmethod
    def steps(self) -> None:
        """Run the steps, in order."""

    @abstractmethod
    def intermediate(self, buffer: Buffer) -> Tensor:
        """The tensor of an intermediate that a kernel wrote."""

    def run(self) -> list[Tensor]:
        """The graph's outputs, once its mutations are done."""
        self.compiled._before_kernels()
        self.steps()
        outputs = self.outputs()
        self.mutate()
        return outputs

    def mutate(self) -> None:
        """Do the mutations that kernels did not do in place."""
        mutations = self.apart()
        changed = [(self.value(m.target), self.value(m.value).clone()) for m in mutations]
        for mutation, (target, value) in zip(mutations, changed, strict=True):
            target.copy_(value)
            self.compiled._after_mutation(mutation.target)

    def apart(self) -> Sequence[Mutation]:
        """The mutations that kernels do not do in place."""
        return [m for m in self.plan.graph.mutations if not self.plan.is_in_place(m)]

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

    # --- PyTorch's steps ----------------------------------------------------------------------------------------------

    def torch_step(self, step: TorchStep) -> None:
        """Let PyTorch compute a step."""
        operands = [self.value(x) for x in step.node.inputs]
        if step.node.is_a(ops.fused):
            results = interpret(region_of(step.node), operands, {}, sizes=self.sizes).outputs
        else:
            made = step.node.op.evaluate(*operands, **self.attrs(step.node))
            results = made if isinstance(made, tuple) else (made,)
        if len(results) != len(step.results):
            raise GraphError(f"PyTorch returned {len(results)} results where the graph has {len(step.results)}")
        for place, (position, result) in enumerate(zip(step.results, results, strict=True)):
            fits = tuple(result.shape) == self.placed.shapes[position][0]
            # PyTorch's trace is wrong of what embedding_bag returns besides, which nobody reads
            if fits or len(results) == 1 or self._is_read(step.node, place):
                self.hold(position, self.own(result, position, operands))

    def _is_read(self, node: Node, place: int) -> bool:
        """Whether anything in the graph reads one of the results of a call that has several."""
        reads = (x for x in self.plan.graph.nodes if x.has(Trait.PROJECTION) and x.inputs[0] is node)
        return any(read.attrs["index"] == place for read in reads)

    def own(self, result: Tensor, position: int, operands: Sequence[Tensor]) -> Tensor:
        """A result of PyTorch's in the plan's layout and in memory of its own: an operand's may be used again.

        Its dtype may be another than PyTorch said while it was traced, as of a batch norm's statistics.

        Raises:
            GraphError: it is not of the shape that the graph says, which kernels rely on.
        """
        shape, strides = self.placed.shapes[position]
        dtype = self.plan.buffers[position].type.dtype
        if tuple(result.shape) != shape:
            raise GraphError(f"PyTorch returned {list(result.shape)} where the graph has {list(shape)}")
        shared = any(result.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() for x in operands)
        fits = result.stride() == strides and result.data_ptr() % ALIGNMENT == 0 and result.dtype == dtype
        if fits and not shared and result.device == self.device:
            return result
        return torch.empty_strided(shape, strides, dtype=dtype, device=self.device).copy_(result)

    # --- values -------------------------------------------------------------------------------------------------------

    def attrs(self, node: Node) -> dict[str, Any]:
        """A node's attributes as numbers."""
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
        """The tensor of a node that is no view."""
        buffer = self.plan.home[node]
        if buffer.position in self.tensors:
            return self.tensors[buffer.position]
        if buffer.place is Place.WEIGHT:
            return self.compiled.values[buffer.name]
        if buffer.place is Place.TORCH:
            raise GraphError(f"PyTorch returned no {buffer.type} where the graph reads one")
        return self.intermediate(buffer)


def stand_in(tensor: Tensor) -> Tensor:
    """Memory for an empty tensor: a kernel that finds an index out of range reads element 0 before it is reported."""
    return tensor.new_zeros([max(size, 1) for size in tensor.shape])


def _concrete_value(value: Any, sizes: Sizes) -> Any:
    if isinstance(value, tuple):
        return tuple(_concrete_value(v, sizes) for v in value)
    return concrete(value, sizes) if isinstance(value, sympy.Expr) else value
