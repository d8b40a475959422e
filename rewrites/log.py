"""What rewriting did: fuel, which numbers each application, and the log of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..ir.node import Node, Origin
from .pattern import brief


@dataclass
class Fuel:
    """A count of applications, and an end to them: with ``limit=n`` the first n happen and no other.

    Whatever changes a graph takes one unit for each change: a rule, a merge, a fusion, a placement. The order is fixed
    for a given graph, so the first change that breaks a result can be found by bisection.
    """

    limit: int | None = None
    used: int = 0

    def take(self, what: str) -> bool:
        """Whether ``what`` may be done; counts it when so."""
        if self.limit is not None and self.used >= self.limit:
            return False
        self.used += 1
        return True


@dataclass(frozen=True)
class Application:
    """One change to a graph: ``number`` is its unit of fuel, counted from 1."""

    number: int
    rule: str
    before: Node
    after: Node

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

    def record(self, number: int, rule: str, before: Node, after: Node) -> None:
        """Add one application; ``number`` is ``Fuel.used`` after it was taken."""
        self.applications.append(Application(number, rule, before, after))

    def counts(self) -> Counter[str]:
        """How often each rule was applied."""
        return Counter(application.rule for application in self.applications)

    def __iter__(self) -> Iterator[Application]:
        return iter(self.applications)

    def __len__(self) -> int:
        return len(self.applications)
