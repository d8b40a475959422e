"""What a bisection found, and its text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Finding:
    """The first step that breaks a result.

    Attributes:
        stage: ``capture``, ``rewrite``, ``fusion``, ``placement``, ``program`` (a kernel program differs from its
            region), ``kernel`` (a kernel differs from its program) or ``run`` (each kernel alone is right).
        number: the application, counted from 1, for those that are counted.
        rule: its rule, or the kernel's name.
        where: the place in the model.
        what: how the model's result differs from then on.
        before, after: the nodes as text; for a placement the values that share memory.
        script: a standalone Python program that shows the fault; empty where none of at most a screen does.
    """

    stage: str
    rule: str
    what: str
    number: int | None = None
    where: str = ""
    before: str = ""
    after: str = ""
    script: str = ""

    def __str__(self) -> str:
        number = "" if self.number is None else f"application {self.number}, "
        lines = [f"{number}{self.rule} ({self.stage}) breaks the result: {self.what}"]
        lines += [f"in {self.where}"] if self.where else []
        for title, text in (("before", self.before), ("after", self.after)):
            lines += [f"{title}:", *(f"  {line}" for line in text.rstrip().splitlines())] if text else []
        return "\n".join(lines)


@dataclass(frozen=True)
class Bisection:
    """The outcome of a bisection.

    Attributes:
        finding: the first step that breaks the result; None where nothing does.
        applications: how many changes the whole compilation makes.
        trials: how many results were compared.
        seconds: how long it took.
    """

    finding: Finding | None
    applications: int
    trials: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The outcome as data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        count = f"{self.applications} applications, {self.trials} results compared, {self.seconds:.1f} s"
        if self.finding is None:
            return f"nothing is wrong: every stage keeps the numeric contract ({count})"
        return f"{self.finding}\n({count})"
