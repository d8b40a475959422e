"""Whether values that live at the same time lie in different places."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from ..ir.node import through_views
from ..rewrites.trial import Sizes
from .compiled import Compiled
from .placement import nbytes_of
from .plan import KernelStep, Place, Plan


@dataclass(frozen=True)
class Lies:
    """Where an intermediate lies: its position in the table, its bytes in the arena, and the steps that need it."""

    position: int
    start: int
    stop: int
    first: int
    last: int

    def meets(self, other: Lies) -> bool:
        """Whether both share memory while both are needed."""
        apart = self.stop <= other.start or other.stop <= self.start
        return not apart and self.first <= other.last and other.first <= self.last

    def __str__(self) -> str:
        return f"buffer {self.position} (bytes {self.start} to {self.stop}, steps {self.first} to {self.last})"


def conflicts(executable: Compiled, sizes: Sizes) -> list[tuple[Lies, Lies]]:
    """The pairs of intermediates that share memory while both are needed, for given sizes.

    Lifetimes are read from the steps, whatever the plan says of them.
    """
    plan, binding = executable.plan, executable.placed(sizes)
    live = lifetimes(plan)
    lies = [
        Lies(p, at, at + nbytes_of(plan.buffers[p], binding.shapes), *live[p])
        for p, at in binding.offsets.items()
        if p in live
    ]
    pairs = combinations(lies, 2)
    return [(one, other) for one, other in pairs if one.meets(other) and not _reuses(plan, one, other)]


def _reuses(plan: Plan, one: Lies, other: Lies) -> bool:
    """Whether one of two takes the memory of the other in the step that reads that one last."""
    early, late = sorted((one, other), key=lambda x: x.first)
    return plan.reuse.get(late.position) == early.position and early.last == late.first and early.start == late.start


def lifetimes(plan: Plan) -> dict[int, tuple[int, int]]:
    """For each intermediate the step that writes it and the last that reads it, by position in the table."""
    found: dict[int, tuple[int, int]] = {}
    for at, step in enumerate(plan.steps):
        reads = [plan.home[x].position for x in map(through_views, step.node.inputs) if x in plan.home]
        for position in (*(step.buffers if isinstance(step, KernelStep) else step.results), *reads):
            if plan.buffers[position].place is Place.ARENA:
                found[position] = (found.get(position, (at, at))[0], at)
    for root in plan.graph.roots:
        held = plan.home.get(through_views(root))
        if held is not None and held.position in found:
            found[held.position] = (found[held.position][0], len(plan.steps))
    return found
