"""The weights that an executable reads: the model's, and those that are computed from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ..ir import ops
from ..ir.interpret import evaluate
from ..ir.node import Node
from .plan import Place, Plan


class Values(Mapping[str, Tensor]):
    """Weights by name. Some are made on demand: others joined, or one seen as a matrix, that are only read as panels.

    Args:
        plan: which of them are read, and how.
        weights: the model's.
        derived: how others are computed from them.
    """

    def __init__(self, plan: Plan, weights: Mapping[str, Tensor], derived: Mapping[str, Node]) -> None:
        named = {buffer.name for buffer in plan.buffers}
        packed = _only_packed(plan)
        self._joined = {name: node for name, node in derived.items() if name in packed and _are_parts(node, weights)}
        values = dict(weights)
        with torch.no_grad():
            for name, node in derived.items():
                if name not in self._joined:
                    (values[name],) = evaluate([node], values)
        self._values = {n: value.detach() for n, value in values.items() if n in named or n not in derived}

    def __getitem__(self, name: str) -> Tensor:
        return torch.cat(self.parts(name)) if name in self._joined else self._values[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._values
        yield from self._joined

    def __len__(self) -> int:
        return len(self._values) + len(self._joined)

    def is_joined(self, name: str) -> bool:
        """Whether a weight is made whenever it is asked for."""
        return name in self._joined

    def parts(self, name: str) -> list[Tensor]:
        """The matrices that are joined along their first axis."""
        node = self._joined.get(name)
        if node is None:
            return [self._values[name]]
        found = [self._values[str(x.attrs["name"])] for x in node.inputs]
        return [found[0].reshape([int(size) for size in node.shape])] if node.is_a(ops.reshape) else found


def _are_parts(node: Node, weights: Mapping[str, Tensor]) -> bool:
    """Whether a weight is matrices of the model's joined along their first axis, or one tensor of it as a matrix."""
    if len(node.shape) != 2 or not (node.is_a(ops.reshape) or (node.is_a(ops.concat) and node.attrs["dim"] == 0)):
        return False
    return all(x.is_a(ops.weight) and x.attrs["name"] in weights and 0 not in x.shape for x in node.inputs)


def _only_packed(plan: Plan) -> set[str]:
    """The weights of which only panels are read that hold the transposed matrix."""
    others = {b.name for b in plan.buffers if not (b.packing.transposed if b.packing else b.position in plan.unread)}
    return {b.name for b in plan.buffers if b.place is Place.WEIGHT} - others
