"""The memory that a run takes beside the weights and the caller's tensors, and what PyTorch takes for the same call."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..ir.node import Trait
from ..ir.types import concrete
from ..rewrites.memory import lower_bound
from ..rewrites.schedule import Tasks, peak
from .compiled import Compiled
from .plan import Place
from .state import preserved

Sizes = Mapping[Any, int]


@dataclass(frozen=True)
class Footprint:
    """Bytes for one set of sizes, weights and arguments not counted.

    Attributes:
        arena: what intermediates take, but for those that lie in results for the caller until these are written.
        arena_apart: what an arena for all of them would take, with none in the memory of an operand either.
        arena_least: the most in the arena that lives at once: it cannot be smaller for this order of kernels.
        results: what the caller keeps, and what PyTorch's steps return.
        depth_first: the most that live at once when kernels run depth first: before scheduling.
        ordered: the same in the order in which they do run.
        eager: the peak of the same call in PyTorch; None where it was not measured.
    """

    arena: int
    arena_apart: int
    arena_least: int
    results: int
    depth_first: int
    ordered: int
    eager: int | None = None

    @property
    def peak(self) -> int:
        """Arena and results."""
        return self.arena + self.results


def footprint_of(executable: Compiled, sizes: Sizes, eager: int | None = None) -> Footprint:
    """The memory that a run takes for these sizes."""
    plan = executable.plan
    returned = (b for b in plan.buffers if b.place in (Place.OUTPUT, Place.TORCH))
    depth_first = [node for node in plan.graph.nodes if node.has(Trait.REGION, Trait.OPAQUE)]
    tasks = Tasks.of(plan.graph, depth_first, sizes)
    number = {node: i for i, node in enumerate(depth_first)}
    # steps that have nothing to compute are left out of the plan, and take no memory
    planned = dict.fromkeys(number[step.node] for step in plan.steps)
    way = [*planned, *(i for i in number.values() if i not in planned)]
    return Footprint(
        arena=executable.arena_bytes(sizes),
        arena_apart=executable.arena_apart(sizes),
        arena_least=lower_bound(executable.intervals(sizes)),
        results=sum(concrete(b.type.nbytes, sizes) for b in returned),
        depth_first=peak(tasks, range(len(depth_first))),
        ordered=peak(tasks, way),
        eager=eager,
    )


# --- PyTorch's own ----------------------------------------------------------------------------------------------------


def eager_peak(model: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """The most bytes of tensors that live at once while PyTorch runs the model, without weights and arguments.

    Memory that an operator takes for itself while it runs is not counted. The model's state is as before afterwards.
    """
    given = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in pytree.tree_leaves((args, dict(kwargs)))]
    args, kwargs = pytree.tree_unflatten(given, pytree.tree_structure((args, dict(kwargs))))
    known = [leaf for leaf in given if isinstance(leaf, Tensor)]
    if isinstance(model, nn.Module):
        known += [*model.parameters(), *model.buffers()]
    with torch.no_grad(), preserved(model), LiveBytes(known) as live:
        model(*args, **kwargs)
        return int(live.peak)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages that operators make, as long as each lives; those of ``known`` are not counted.

    Attributes:
        peak: the most at once.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._now = 0
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in known)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator and count what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        nbytes = storage.nbytes()
        self._now += nbytes
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._free, nbytes)

    def _free(self, nbytes: int) -> None:
        self._now -= nbytes
