"""Plans whose independent kernels may run side by side: steps in the order of levels, and memory that fits that.

A step's level is greater than those of all steps that it has to come after. Steps of one level may run in any order, so
no two of them share memory: a value lives for whole levels. The price is memory, since a value may wait for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..plan import KernelStep, Place, Plan, Step, TorchStep
from .graphs import touched

CALLERS = (Place.INPUT, Place.WEIGHT)  # memory that others may see, too, under another name


def by_levels(plan: Plan) -> Plan:
    """The plan with its steps in the order of their levels, and lifetimes that end with a level.

    It computes the same on one stream. No result may lie in an operand's memory.
    """
    assert not plan.reuse
    levels, end = levels_of(plan), len(plan.steps)
    order = sorted(range(end), key=lambda at: levels[at])  # stable: random numbers are drawn in the model's order
    steps, ordered = [plan.steps[at] for at in order], [levels[at] for at in order]
    first = {level: at for at, level in reversed(list(enumerate(ordered)))}
    last = {level: at for at, level in enumerate(ordered)}
    used: dict[int, list[int]] = {}
    for at, step in enumerate(steps):
        for position in touched(plan, step):
            used.setdefault(position, []).append(at)
    live = {}
    for position, (start, stop) in plan.live.items():
        users = used[position]
        begin = 0 if (start, stop) == (0, end) else first[ordered[users[0]]]  # without fuel it lives throughout
        live[position] = (begin, end if stop == end else last[ordered[users[-1]]])
    written = {position: used[position][0] for position in plan.written}
    return replace(plan, steps=steps, live=live, written=written)


def levels_of(plan: Plan) -> list[int]:
    """The level of each step.

    Steps of PyTorch, and those that write to memory of the caller's or the model's, come after all steps before them
    and before all after them.
    """
    floor = top = 0
    written: dict[int, int] = {}
    read: dict[int, int] = {}
    found = []
    for step in plan.steps:
        reads, writes = accesses(plan, step)
        if is_alone(plan, step, writes):
            level, floor = top + 1, top + 2
        else:
            after = [*(written.get(p, 0) for p in (*reads, *writes)), *(read.get(p, 0) for p in writes)]
            level = max(floor, 1 + max(after, default=0))
        top = max(top, level)
        written.update(dict.fromkeys(writes, level))
        read.update((p, max(read.get(p, 0), level)) for p in reads)
        found.append(level)
    return found


def accesses(plan: Plan, step: Step) -> tuple[Sequence[int], Sequence[int]]:
    """The table positions that a step reads, and those that it writes. The error cell is none: all set the same."""
    if isinstance(step, KernelStep):
        count = len(step.kernel.program.inputs)
        return step.buffers[:count], step.buffers[count:-1]
    return [p for p in touched(plan, step) if p not in step.results], step.results


def is_alone(plan: Plan, step: Step, writes: Sequence[int]) -> bool:
    """Whether nothing may run beside a step."""
    return isinstance(step, TorchStep) or any(plan.buffers[p].place in CALLERS for p in writes)
