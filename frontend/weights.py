"""The tensors that a model holds, by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from ..ir import ops
from ..ir.errors import UnsupportedError
from ..ir.node import Node
from .arguments import Flattened


class WeightTable:
    """The tensors of a model by name, one name for each.

    Attributes:
        tensors: those that nodes were made for.
    """

    def __init__(self, module: nn.Module, program: ExportedProgram) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._written = _written_constants(program)
        self._program = program
        self._names: dict[Any, str] = {}
        self._own: dict[str, Tensor] = {}
        self._constants = 0
        for name, tensor in [
            *module.named_parameters(remove_duplicate=False),
            *module.named_buffers(remove_duplicate=False),
        ]:
            own = name.removeprefix(f"{Flattened.PREFIX}.")
            self._own[own] = tensor
            self._names.setdefault(_identity(tensor), own)

    def node(self, spec: Any) -> Node:
        """The node of a lifted parameter, buffer or constant."""
        target = str(spec.target)
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
            return self.named(target)
        if spec.kind == InputKind.CONSTANT_TENSOR:
            return self.constant(target, self._program.constants[target])
        raise UnsupportedError(f"the model holds {target}, which is not a tensor ({spec.kind.name})")

    def named(self, target: str) -> Node:
        """The node of a parameter or buffer; of the first name it has where it is tied."""
        tensor = self._own[target.removeprefix(f"{Flattened.PREFIX}.")]
        return self._weight(self._names[_identity(tensor)], tensor)

    def constant(self, name: str, value: Tensor) -> Node:
        """The node of a tensor that the model made or holds outside of its parameters and buffers.

        Raises:
            UnsupportedError: it belongs to a transform of ``torch.func`` and has no memory.
        """
        if is_functorch_wrapped_tensor(value):
            raise UnsupportedError("the model uses a transform of torch.func, such as grad, which leaves no graph")
        known = self._names.get(_identity(value))
        if known is not None and known in self._own:
            return self._weight(known, self._own[known])
        plain = value.ndim == 0 and not value.dtype.is_complex and value.device.type == "cpu"
        if plain and name not in self._written:
            return ops.scalar(value.item(), value.dtype)
        if known is None:
            known = f"constant.{self._constants}"
            self._constants += 1
            self._names[_identity(value)] = known
        return self._weight(known, value)

    def _weight(self, name: str, tensor: Tensor) -> Node:
        self.tensors[name] = tensor.detach() if tensor.requires_grad else tensor
        return ops.weight(name=name, shape=tuple(tensor.shape), dtype=tensor.dtype)


def _written_constants(program: ExportedProgram) -> set[str]:
    """The names of constants that the program writes to: state outside of buffers, as a KV cache may be."""
    specs = program.graph_signature.input_specs
    placeholders = [n for n in program.graph.nodes if n.op == "placeholder"]
    memory = {_memory(n): str(s.target) for n, s in zip(placeholders, specs, strict=True) if s.target is not None}
    written = set()
    for node in program.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable and node.args:
            written.add(memory.get(_memory(node.args[0]), ""))
    return written


def _memory(node: Any) -> int | None:
    fake = node.meta.get("val") if isinstance(node, fx.Node) else None
    return fake.untyped_storage()._cdata if isinstance(fake, Tensor) else None


def _identity(tensor: Tensor) -> Any:
    """What two tensors share that are one: memory, shape and strides. Without memory a tensor is only itself."""
    where = (tensor.data_ptr(), tensor.device) if tensor.numel() else id(tensor)
    return where, tuple(tensor.shape), tensor.stride(), tensor.dtype
