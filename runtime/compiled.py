"""What executables of all targets have in common: a plan with weights, and what was found while it was made."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..ir import ops
from ..ir.graph import Graph, Mutation
from ..ir.node import Node
from ..rewrites.check import Verdicts
from ..rewrites.fusion import FusionReport
from ..rewrites.memory import Interval
from ..rewrites.quantization import Quantized
from .cuda.report import GraphReport
from .kernels import KernelInfo
from .placement import Placed, Sizes, bytes_apart
from .plan import Place, Plan
from .tensors import CPU, dense
from .weights import Values


@dataclass(kw_only=True)
class Compiled(ABC):
    """Runs a captured graph. Calls are serialised: intermediates lie in one arena.

    Attributes:
        graphs: the graph after each stage of the pipeline, by name, in order.
        kernels: what the report shows of each kernel.
        timings: seconds that each stage of the compilation took.
        checks: what ``check=`` found.
        fusion: what was refused.
        quantized: what became of the weights where ``quantize`` asked for few bits; None where it did not.
        weight_errors: of each weight in few bits; None until they are computed.
        device: where weights, arguments and results lie.
    """

    plan: Plan
    weights: Mapping[str, Tensor]
    derived: Mapping[str, Node]
    graphs: Mapping[str, Graph]
    kernels: tuple[KernelInfo, ...]
    fallbacks: tuple[Any, ...] = ()
    applications: Any = ()
    checks: Verdicts | None = None
    timings: dict[str, float] = field(default_factory=dict)
    fusion: FusionReport = field(default_factory=FusionReport)
    quantized: Quantized | None = None
    weight_errors: list[float] | None = None
    device: torch.device = CPU

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._symbols = tuple(r.symbol for r in self.plan.graph.symbols)
        self._packed: dict[int, Tensor] = {}  # what kernels read of each weight, by position
        self._values: Values
        self._written: list[tuple[Tensor, Tensor]] = []
        self._changed: list[Tensor] = []  # weights that each run writes to

    @abstractmethod
    def run(self, tensors: Sequence[Tensor], sizes: Sizes) -> list[Tensor]:
        """The graph's outputs for input tensors (dense and of the declared types), and its mutations done.

        Raises:
            IndexError: an index from data was out of range.
        """

    def readable(self, tensor: Tensor) -> Tensor:
        """A caller's tensor that no call writes to, as :meth:`run` takes it: itself where it can be."""
        return dense(tensor, self.device)

    @abstractmethod
    def refresh(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights as they are now."""

    def synchronize(self) -> None:
        """Wait for all calls.

        Raises:
            IndexError: an index was out of range, and it was not raised yet.
        """
        return

    @property
    def cache_bytes(self) -> int | None:
        """The last cache before memory; None for this machine's processor."""
        return None

    def graph_report(self) -> GraphReport | None:
        """The CUDA graphs that are held; None for other targets."""
        return None

    @abstractmethod
    def placed(self, sizes: Sizes) -> Placed:
        """Where values lie for these sizes."""

    @property
    def values(self) -> Mapping[str, Tensor]:
        """The weights that the final graph reads, by name: the model's, and those computed at load."""
        return self._values

    # --- memory -------------------------------------------------------------------------------------------------------

    def arena_bytes(self, sizes: Sizes) -> int:
        """The bytes that intermediates take for these sizes."""
        return self.placed(sizes).arena_bytes

    def intervals(self, sizes: Sizes) -> list[Interval]:
        """What lies in the arena for these sizes, those in one place together: bytes, and from which step to which."""
        return self.placed(sizes).intervals

    def arena_apart(self, sizes: Sizes) -> int:
        """The bytes of an arena for all intermediates, where none takes an operand's or a result's memory."""
        return bytes_apart(self.plan, self.placed(sizes).shapes)

    # --- weights that calls change ------------------------------------------------------------------------------------

    def _watch_weights(self) -> None:
        """Find the weights that a run changes, once weights and what kernels read of them are there."""
        self._written = [pair for m in self.plan.graph.mutations if (pair := self._copied(m)) is not None]
        self._changed = self._changed_weights()

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

    def _count_versions(self) -> None:
        """Tell PyTorch that weights were written to."""
        for tensor in self._changed:
            torch.autograd.graph.increment_version(tensor)

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
