"""The fusions that were considered and refused, with the time that each would have saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ir.cost import Roofs
from ..ir.graph import Graph
from ..ir.node import Node, Trait
from ..ir.types import concrete
from ..rewrites.fusion import FusionReport, Refusal

Sizes = Mapping[Any, int]
Rate = Callable[[int], float]  # seconds that so many bytes of one value take


@dataclass(frozen=True)
class Place:
    """An operator and where in the model it comes from: a module path and a line, empty where unknown."""

    operator: str
    module: str
    source: str

    @classmethod
    def of(cls, node: Node) -> Place:
        """The place of a node."""
        return cls(node.op.name, node.origin.module, node.origin.source)

    def __str__(self) -> str:
        where = ", ".join(x for x in (self.module, self.source) if x)
        return f"{self.operator} ({where})" if where else self.operator


@dataclass(frozen=True)
class Refused:
    """Two operators that could have been in one kernel: the bytes and seconds that would have saved.

    Seconds are None where the machine's roofs are not known.
    """

    reason: str
    producer: Place
    consumer: Place
    nbytes: int
    seconds: float | None


@dataclass(frozen=True)
class RefusedGroup:
    """The fusions refused for one reason, those that would have saved the most first."""

    reason: str
    refused: tuple[Refused, ...]

    @property
    def seconds(self) -> float | None:
        """What all of them would have saved in one run; None where that is not known."""
        known = [one.seconds for one in self.refused if one.seconds is not None]
        return sum(known) if len(known) == len(self.refused) else None

    @property
    def nbytes(self) -> int:
        """The bytes that all of them would have kept out of memory."""
        return sum(one.nbytes for one in self.refused)


def refused_groups(
    report: FusionReport, graph: Graph, sizes: Sizes, roofs: Roofs | None, rate: Rate | None
) -> list[RefusedGroup]:
    """The refusals of a fusion by reason, the costliest reason first; by bytes where no roofs are known.

    A fusion saves the consumer's read of the value, its write where nothing else reads it, and a launch, counted once
    for two kernels whatever lies between them.

    Args:
        report: what fusion did.
        graph: the graph that was fused.
        sizes: those of the symbols.
        roofs: of the machine, where they are known.
        rate: the seconds that it takes to move so many bytes of a value once.
    """
    account = _Account(report, graph, sizes, roofs, rate)
    by_reason: dict[str, list[Refused]] = {}
    for refusal in report.refusals:
        by_reason.setdefault(refusal.reason, []).append(account.refused(refusal))
    groups = [RefusedGroup(reason, _sorted(found)) for reason, found in by_reason.items()]
    return sorted(groups, key=lambda group: (-(group.seconds or 0.0), -group.nbytes))


def _sorted(found: Sequence[Refused]) -> tuple[Refused, ...]:
    return tuple(sorted(found, key=lambda one: (-(one.seconds or 0.0), -one.nbytes)))


class _Account:
    def __init__(
        self, report: FusionReport, graph: Graph, sizes: Sizes, roofs: Roofs | None, rate: Rate | None
    ) -> None:
        self.kernel, self.graph, self.sizes = report.kernel_of, graph, sizes
        self.roofs, self.rate = roofs, rate
        self.roots = frozenset(graph.roots)
        self.launched: set[tuple[int, int]] = set()

    def refused(self, refusal: Refusal) -> Refused:
        producer, consumer = refusal.producer, refusal.consumer
        once = concrete(producer.tensor_type.nbytes, self.sizes)
        nbytes = once * (2 if self.only_reader(producer, consumer) else 1)
        seconds = None
        if self.roofs is not None and self.rate is not None:
            pair = (self.kernel[producer], self.kernel[consumer])
            launch = 0.0 if pair in self.launched else self.roofs.launch_seconds
            self.launched.add(pair)
            seconds = self.rate(once) * (nbytes // once if once else 0) + launch
        return Refused(refusal.reason, Place.of(producer), Place.of(consumer), nbytes, seconds)

    def only_reader(self, producer: Node, consumer: Node) -> bool:
        """Whether only the two kernels read the value, so that it need not be written at all."""
        kernels = {self.kernel[producer], self.kernel[consumer]}
        stack, seen = [producer], {producer}
        while stack:
            node = stack.pop()
            if node in self.roots:
                return False
            for user in self.graph.users[node]:
                if user in self.kernel:
                    if self.kernel[user] not in kernels:
                        return False
                elif not user.has(Trait.VIEW):
                    return False
                elif user not in seen:
                    seen.add(user)
                    stack.append(user)
        return True
