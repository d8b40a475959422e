"""Why a rule did not fire in a compiled model: where it nearly fitted, and where it did fire."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from ..ir.errors import SmeltError
from ..rewrites.explain import NearMiss, RuleFate, fate_of
from ..rewrites.pattern import brief
from ..rewrites.registry import all_rules
from ..rewrites.rule import Rule, rules_by_name
from .entry import Entry
from .refusals import Place
from .report import WIDTH


class UnknownRuleError(SmeltError, ValueError):
    """There is no rule of that name; the message names those with a similar one."""


@dataclass(frozen=True)
class Miss:
    """A place where a rule nearly fits, and how often there is one like it.

    Attributes:
        place: the operator that it would have replaced.
        node: that operator on its operands, with the type.
        fitted, operators: how many operators of the pattern fitted, and how many there are.
        reason: what did not fit.
        at: the operator at which it did not.
        guard: the guard that refused, where the whole pattern fitted; "" otherwise.
        times: how many places there are with the same reason.
    """

    place: Place
    node: str
    fitted: int
    operators: int
    reason: str
    at: Place
    guard: str
    times: int = 1

    @classmethod
    def of(cls, found: NearMiss, times: int = 1) -> Miss:
        """A near miss as it is shown."""
        mismatch = found.mismatch
        reason = f"{mismatch.reason}, at {brief(mismatch.node)}"
        places = Place.of(found.node), Place.of(mismatch.node)
        return cls(places[0], brief(found.node), found.agreed, found.operators, reason, places[1], found.guard, times)

    def lines(self) -> list[str]:
        """Its text."""
        whole = "all" if self.guard else f"{self.fitted} of {self.operators}"
        found = [f"{self.place}: {whole} operators of the pattern fit"]
        found[0] += f"; {self.times} such places" if self.times > 1 else ""
        found.append(f"  {self.reason}")
        if self.guard:
            found.append(f"  the guard: {self.guard}")
        if self.at != self.place:
            found.append(f"  which is {self.at}")
        return found


@dataclass(frozen=True)
class WhyNot:
    """What became of one rule in one capture; as text, what ``smelt explain --why-not`` prints.

    Attributes:
        rule: its name.
        stage: the pass that it runs in first.
        seen: the stage whose graph the misses are in.
        fired: the places where it fired, in order.
        misses: the places that it nearly fits, the nearest first.
    """

    rule: str
    stage: str
    seen: str
    fired: tuple[Place, ...]
    misses: tuple[Miss, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as data for JSON."""
        return asdict(self)

    def text(self, everything: bool = False) -> str:
        """The text; of the places where it fired only the first few, unless ``everything`` is asked for."""
        lines = [f"{self.rule}, a rule of the pass {self.stage}, fired {_times(len(self.fired))}"]
        shown = self.fired if everything else self.fired[:3]
        lines += [f"  {place}" for place in shown]
        if len(shown) < len(self.fired):
            lines.append(f"  and {len(self.fired) - len(shown)} more")
        if not self.misses:
            lines.append("it nearly fits nowhere: nothing in the graph has its operator and is left")
            return "\n".join(lines) + "\n"
        lines.append(f"it nearly fits, in the graph after {self.seen}:")
        for miss in self.misses:
            for line in miss.lines():
                lines += textwrap.wrap(line, WIDTH, initial_indent="  ", subsequent_indent="      ") or [""]
        return "\n".join(lines) + "\n"

    def __str__(self) -> str:
        return self.text()


def why_not_of(entry: Entry, name: str, limit: int = 5) -> WhyNot:
    """What became of the rule of that name in a capture.

    Raises:
        UnknownRuleError: there is none.
    """
    executable = entry.executable
    fate = fate_of(rule_named(name), all_rules(), executable.graphs, executable.applications, limit=1000)
    return _shown(fate, limit)


def rule_named(name: str) -> Rule:
    """The rule of that name.

    Raises:
        UnknownRuleError: there is none.
    """
    known = rules_by_name(all_rules())
    if name in known:
        return known[name]
    raise UnknownRuleError(f"there is no rule {name!r}{suggestion(name, known)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """What somebody who wrote a name that is not known may have meant, as the end of a message."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 3, 0.5) or [k for k in names if name in k][:5]
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are: {', '.join(names)}"


def _shown(fate: RuleFate, limit: int) -> WhyNot:
    kinds: dict[tuple[Any, ...], list[NearMiss]] = {}
    for miss in fate.misses:
        kinds.setdefault((miss.mismatch.reason, miss.agreed, miss.guard, miss.node.op.name), []).append(miss)
    misses = [Miss.of(alike[0], len(alike)) for alike in kinds.values()]
    return WhyNot(fate.rule.name, fate.stage, fate.seen, tuple(map(Place.of, fate.fired)), tuple(misses[:limit]))


def _times(count: int) -> str:
    return {0: "nowhere", 1: "once"}.get(count, f"{count} times")
