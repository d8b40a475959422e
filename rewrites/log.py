"""What rewriting did: fuel, which numbers each application, and the log of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..ir.node import Node, Origin
from .pattern import brief

Replaced = tuple[Node, Node]  # a node, and what stands for it now


FUSE = "fuse"  # two groups of operators become one kernel: from the group of ``before`` to that of ``after``
PLACE = "place"  # a value's memory may be that of others, which do not live at the same time


@dataclass
class Fuel:
    """A count of applications, and an end to them: with ``limit=n`` the first n happen and no other.

    Whatever changes a graph takes one unit for each change: a rule, a merge, a fusion, a placement. The order is fixed
    for a given graph, so the first change that breaks a result can be found by bisection.
    """

    limit: int | None = None
    used: int = 0

    @property
    def empty(self) -> bool:
        """Whether no change may be made any more."""
        return self.limit is not None and self.used >= self.limit

    def take(self, what: str) -> bool:
        """Whether ``what`` may be done; counts it when so."""
        if self.empty:
            return False
        self.used += 1
        return True

    def spend(self, log: Log, what: str, before: Node, after: Node, *also: Replaced) -> bool:
        """Whether a change may be made; counts and records it when so. ``also`` are further replacements by it."""
        if not self.take(what):
            return False
        log.record(self.used, what, before, after, also)
        return True


@dataclass(frozen=True)
class Application:
    """One change to a graph.

    Attributes:
        number: its unit of fuel, counted from 1.
        rule: the rule's name, or that of another kind of change: ``FUSE``, ``PLACE``, ``merge-linears``, ``hoist``.
        before, after: a node and what it is replaced by; for a fusion producer and consumer, for a placement the value.
        also: further replacements that belong to the change, as those of the other layers of a merge.
    """

    number: int
    rule: str
    before: Node
    after: Node
    also: tuple[Replaced, ...] = ()

    @property
    def replaced(self) -> tuple[Replaced, ...]:
        """Every node that the change replaces, with its replacement; none where it only groups or places nodes."""
        return () if self.rule in (FUSE, PLACE) else ((self.before, self.after), *self.also)

    @property
    def origin(self) -> Origin:
        """Where in the model the replaced node came from."""
        return self.before.origin

    def __str__(self) -> str:
        place = self.origin.module or self.origin.source
        return f"{self.number} {self.rule}: {brief(self.before)} -> {brief(self.after)}{place and f'  # {place}'}"


@dataclass
class Log:
    """Every application, in order."""

    applications: list[Application] = field(default_factory=list)

    def record(self, number: int, rule: str, before: Node, after: Node, also: tuple[Replaced, ...] = ()) -> None:
        """Add one application; ``number`` is ``Fuel.used`` after it was taken."""
        self.applications.append(Application(number, rule, before, after, also))

    def counts(self) -> Counter[str]:
        """How often each rule was applied."""
        return Counter(application.rule for application in self.applications)

    def __iter__(self) -> Iterator[Application]:
        return iter(self.applications)

    def __len__(self) -> int:
        return len(self.applications)
